"""What would decide the tests that are undecided: how many more cells, at what cost, and a search space of the cheapest.

For each test `power` gives the number of comparisons, configurations or points that decide it at today's estimate and noise.
A test with too few comparisons for an interval gets as many as an interval takes. What is lacking is made of combinations
of the values that were tested (`untested`), or, of a sampled design, of further points. Costs are by the finished cells of a
size: how their training compares with what `raysweep plan` says, and how long their evaluations took.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

import pandas as pd

from raysweep.analysis.claims import Tested
from raysweep.analysis.measured import chosen
from raysweep.analysis.noise import standard_deviations
from raysweep.analysis.power import MOST, POWER, decides, needed, standard_error
from raysweep.analysis.sweep_data import SweepData
from raysweep.analysis.untested import Keep, Untested
from raysweep.errors import UserError
from raysweep.space.cell import Cell
from raysweep.space.hypotheses import Among
from raysweep.space.resources import Resources
from raysweep.space.space import Space
from raysweep.store.store import TRAIN
from raysweep.sweep.cost import relative_seconds

COLUMNS = (
    "claim", "effect", "rule", "value", "low", "high", "units", "today", "needed", "gives", "seeds", "new_cells",
    "gpu_hours", "core_hours", "reason",
)  # fmt: skip

# More seeds of every cell than this are not offered.
_MOST_SEEDS = 32

# Kinds of test that compare cells that are equal but for the setting that they are over.
_OF_COMPARISONS = ("trend", "at", "turn", "trend_by_size", "strongest")


@dataclass(frozen=True)
class Cost:
    """Hours of GPUs and of cores."""

    gpu_hours: float = 0.0
    core_hours: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.gpu_hours + other.gpu_hours, self.core_hours + other.core_hours)

    @property
    def order(self) -> tuple[float, float]:
        return self.gpu_hours, self.core_hours

    def __str__(self) -> str:
        parts = [(self.gpu_hours, "GPU-hours"), (self.core_hours, "core-hours")]
        return " and ".join(f"{hours:.3g} {name}" for hours, name in parts if hours) or "nothing"


@dataclass(frozen=True)
class Need:
    """What would decide one undecided test."""

    tested: Tested
    units: str
    """`comparisons`, `configurations`, `points`, or `seeds` of every cell."""
    today: int
    """Their number now."""
    number: int
    """Their number that gives what `gives` says; 0 where there is none."""
    gives: Literal["verdict", "interval"] = "verdict"
    """A `verdict` in four of five sweeps; or an `interval` where there is none today, whatever it then decides."""
    cells: tuple[Cell, ...] = ()
    """What is to be trained for it."""
    count: int = 0
    """Of a sampled design: the `count` of its `sample`; else 0."""
    seeds: int = 0
    """The seeds of every cell that would decide it as well, where the noise between seeds is known; else 0."""
    cost: Cost = Cost()
    reason: str = ""
    """Why there are no cells for it; empty where there are."""

    @property
    def needed(self) -> str:
        """In words."""
        return f"{self.number:,} {self.units}{' for an interval' if self.gives == 'interval' else ''}"

    @property
    def row(self) -> dict[str, object]:
        """Under `COLUMNS`."""
        found = self.tested.finding
        return {
            "claim": self.tested.hypothesis.id, "effect": found.effect, "rule": found.rule, "value": found.value,
            "low": found.low, "high": found.high, "units": self.units, "today": self.today, "needed": self.number or None,
            "gives": self.gives if self.number else None, "seeds": self.seeds or None,
            "new_cells": len(self.cells) if not self.reason else None, "gpu_hours": self.cost.gpu_hours,
            "core_hours": self.cost.core_hours, "reason": self.reason,
        }  # fmt: skip


@dataclass(frozen=True)
class Next:
    """The next cells of a sweep."""

    needs: list[Need]
    """One for each undecided test."""
    chosen: list[Need]
    """Those that `cells` are for: the cheapest, within the budget."""
    cells: list[Cell]
    """The new cells, none twice."""
    count: int
    """Of a sampled design: the `count` of its `sample`; else 0."""
    cost: Cost
    spent: Cost
    """What the finished cells took."""

    @property
    def table(self) -> pd.DataFrame:
        return pd.DataFrame([need.row for need in self.needs], columns=COLUMNS)


def next_cells(
    space: Space, design: SweepData, tested: list[Tested], noise: pd.DataFrame, timings: pd.DataFrame,
    budget: float | None = None, larger: Callable[[int], tuple[Cell, ...]] | None = None,
) -> Next:  # fmt: skip
    """What would decide the undecided ones of `tested`, and the cheapest of it.

    `noise` is what `analysis.noise.seed_noise` gives. `timings` are the rows of `schemas.TIMINGS` of every finished cell,
    also of those outside the design. `budget` is in hours of what cells train on, GPUs or cores; by default what the sweep
    took so far. `larger` gives the cells of a sampled space with another `count`.
    """
    ids = set(design.cells["id"])
    cells = [cell for cell in space.cells if cell.id in ids]
    costs = _Costs(space, cells, timings)
    untested = Untested(cells, space.cells)
    undecided = [one for one in tested if one.finding.verdict == "undecided"]
    deviations = standard_deviations(noise)
    needs = [_need(one, space, design, untested, costs, larger) for one in undecided]
    needs = [_with_seeds(need, cells, design, untested, costs, deviations) for need in needs]
    spent = costs.spent
    on_gpus = space.resources.train.gpus > 0
    limit = budget if budget is not None else (spent.gpu_hours if on_gpus else spent.core_hours)
    kept: list[Need] = []
    new: dict[str, Cell] = {}
    for need in sorted((one for one in needs if one.cells), key=lambda one: one.cost.order):
        with_it = new | {cell.id: cell for cell in need.cells}
        cost = costs.of(with_it.values())
        if (cost.gpu_hours if on_gpus else cost.core_hours) <= limit:
            kept.append(need)
            new = with_it
    count = max((need.count for need in kept), default=0)
    return Next(needs, kept, list(new.values()), count, costs.of(new.values()), spent)


def _need(
    one: Tested, space: Space, design: SweepData, untested: Untested, costs: _Costs,
    larger: Callable[[int], tuple[Cell, ...]] | None,
) -> Need:  # fmt: skip
    found, test = one.finding, one.test
    sampled = space.design.sample
    over = (
        getattr(getattr(test, test.kind), "over", None) if test is not None and test.kind in _OF_COMPARISONS else None
    )
    pairs = test is not None and test.intervention is not None
    compares = over is not None or pairs
    units = "points" if sampled is not None else "comparisons" if compares else "configurations"
    today = found.comparisons or round(found.n / untested.seeds_there)
    if sampled is not None:
        points = [name for name in design.sampled if name in design.cells]
        today = design.cells.groupby(points, dropna=False).ngroups

    def without(reason: str, number: int = 0) -> Need:
        return Need(one, units, today, number, reason=reason)

    gives: Literal["verdict", "interval"] = "verdict"
    if math.isfinite(found.low) and math.isfinite(found.high):
        number = needed(found, today)
    elif over is not None and sampled is None and 0 < found.comparisons < found.enough:
        number, gives = found.enough, "interval"
    else:
        return without(found.reason or "it has no interval")
    if test is None or number is None:
        return without(f"no number would: the estimate lies on the bound (more than {MOST} times today's)")
    if pairs:
        return without(
            f"{number} pairs of cells are needed: finish those that are planned, or add seeds by hand", number
        )
    if sampled is not None and larger is not None:
        # The finished points are to those planned as the new ones will be.
        count = math.ceil(sampled.count * number / today)
        if sampled.design == "latin_hypercube":
            count = sampled.count * 2 ** math.ceil(math.log2(number / today))
        there = {cell.id for cell in space.cells}
        try:
            new = tuple(cell for cell in larger(count) if cell.id not in there)
        except UserError as error:
            return without(f"{count:,} points would be needed: {error}", number)
        return Need(one, units, today, number, gives, new, count, cost=costs.of(new))
    if getattr(getattr(test, test.kind), "equal_steps", False):
        return without(f"{number} {units} at equal steps: add token budgets with their batch sizes by hand", number)
    groups = (
        untested.configurations(_about(one, design))
        if over is None
        else untested.comparisons(over, _about(one, design))
    )
    lacking = number - today
    taken = list(itertools.islice(groups, lacking))
    if len(taken) < lacking:
        return without(
            f"{lacking:,} more {units} are needed, and the values that were tested make {len(taken):,}: test others",
            number,
        )
    new = tuple({cell.id: cell for group in taken for cell in group}.values())
    return Need(one, units, today, number, gives, new, cost=costs.of(new))


def _with_seeds(
    need: Need, cells: list[Cell], design: SweepData, untested: Untested, costs: _Costs, deviations: dict[str, float]
) -> Need:
    """The same with further seeds of every cell, where those would decide the test and cost less.

    Of an effect's variance s^2 / (k squares) is the seeds', with k seeds of each cell and a deviation s between them. More
    of them lower that part, and leave the rest.
    """
    found, test = need.tested.finding, need.tested.test
    if need.gives == "interval" or need.units == "points" or found.comparisons < 2:
        return need
    if test is None or test.kind not in ("trend", "at"):
        return need
    of = getattr(test, test.kind).of
    deviation = deviations.get(design.tasks.get(design.main_task, "") if of == "loss" else of)
    error, there = standard_error(found, found.comparisons), untested.seeds_there
    if deviation is None or error is None:
        return need
    of_seeds = deviation**2 / (there * found.squares)
    rest = max(error**2 - of_seeds, 0.0)
    for number in range(there + 1, _MOST_SEEDS + 1):
        if decides(found, math.sqrt(rest + of_seeds * there / number), found.comparisons):
            new = tuple(untested.seeds(cells, number))
            if not new:  # They are planned, and not finished.
                return need
            cost = costs.of(new)
            if need.cells and need.cost.order <= cost.order:
                return replace(need, seeds=number)
            return replace(
                need, units="seeds", today=there, number=number, cells=new, seeds=number, cost=cost, reason=""
            )
    return need


def _about(one: Tested, design: SweepData) -> Keep:
    """Whether a test is about a cell."""
    assert one.test is not None
    among = one.test.among
    if among == Among():
        return lambda cell: True
    sizes = set(design.cells[chosen(Among(sizes=among.sizes), design.cells, design.planned_sizes)]["parameters"])
    alone = among.model_copy(update={"sizes": None})

    def keep(cell: Cell) -> bool:
        of_size = among.sizes is None or cell.shape.parameters in sizes
        return of_size and bool(chosen(alone, pd.DataFrame([cell.describe()])).all())

    return keep


class _Costs:
    """What cells take, by what the finished ones took."""

    def __init__(self, space: Space, finished: list[Cell], timings: pd.DataFrame) -> None:
        self._resources: Resources = space.resources
        by_id = {cell.id: cell for cell in finished}
        rows = timings[timings["cell"].isin(by_id)]
        rows = rows.assign(size=[by_id[cell].size.label for cell in rows["cell"]])
        training, others = rows[rows["stage"] == TRAIN], rows[rows["stage"] != TRAIN]
        if not len(training):
            raise UserError("there are no timings of finished cells, by which the cost of others could be told")
        trained = timings["stage"] == TRAIN
        self.spent = self._cost(float(timings["seconds"][trained].sum()), float(timings["seconds"][~trained].sum()))
        """What training and evaluating took, of interventions and seeds beyond the design too."""
        rate = training["seconds"] / [self._planned(by_id[cell]) for cell in training["cell"]]
        self._rates, self._rate = rate.groupby(training["size"]).median(), float(rate.median())
        of_cells = others.groupby(["size", "cell"])["seconds"].sum()
        self._evaluations = of_cells.groupby("size").median()
        self._evaluation = float(of_cells.median()) if len(of_cells) else 0.0

    def of(self, cells: Iterable[Cell]) -> Cost:
        """Of training and evaluating cells, each once."""
        return sum((self._one(cell) for cell in cells), Cost())

    def _one(self, cell: Cell) -> Cost:
        return self._cost(
            float(self._rates.get(cell.size.label, self._rate)) * self._planned(cell),
            float(self._evaluations.get(cell.size.label, self._evaluation)),
        )

    def _planned(self, cell: Cell) -> float:
        return relative_seconds(cell, self._resources.train.gpus > 0)

    def _cost(self, training: float, evaluation: float) -> Cost:
        """Of seconds of each."""
        train, evaluate = self._resources.train, self._resources.evaluate
        training, evaluation = training / 3600, evaluation / 3600
        return Cost(
            training * train.workers * train.gpus + evaluation * evaluate.gpus,
            (0 if train.gpus else training * train.workers * train.cpus)
            + (0 if evaluate.gpus else evaluation * evaluate.cpus),
        )


def said(plan: Next) -> str:
    """What the new cells are for, in a sentence."""
    decided, measured = ([need for need in plan.chosen if need.gives == gives] for gives in ("verdict", "interval"))
    first = f"{len(measured)} of {len(plan.needs)} undecided tests ({_claims(measured)}) a first interval"
    cells = f"{len(plan.cells):,} more cells, about {plan.cost}"
    if not decided:
        return f"{cells}, would give {first}, whatever it will say"
    return (
        f"{cells}, would decide {len(decided)} of {len(plan.needs)} undecided tests ({_claims(decided)}) in {POWER:.0%} of "
        f"sweeps each, if today's estimates are the truth{f'; and give {first}' if measured else ''}"
    )


def _claims(needs: list[Need]) -> str:
    return "of claims " + ", ".join(dict.fromkeys(str(need.tested.hypothesis.id) for need in needs))
