"""What would decide undecided tests: the cells, their cost, the file, and whether they decide in four of five sweeps."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from raysweep.analysis import claims, example, power, sweep_data, trends
from raysweep.analysis.next_cells import Next, next_cells, said
from raysweep.analysis.noise import NOISE_COLUMNS
from raysweep.analysis.untested import Untested
from raysweep.cli.main import main
from raysweep.errors import UserError
from raysweep.exchange.published import read_published
from raysweep.space.cell import Cell
from raysweep.space.read import load, load_with_count
from raysweep.space.space import Space
from raysweep.space.write import MARK, check_target, write_with_cells
from raysweep.sweep import cost

GRID: dict[str, Any] = {
    "name": "grid",
    "base": {"corpus": "pile", "tokens": 32e9, "batch_size": 128},
    "cross": {"size": ["4M", "8M", "16M", "28M"]},
    "ablate": [
        {"batch_size": [64, 256]}, {"weight_decay": [0.01, 0.5]}, {"final_learning_rate_fraction": [0.0, 0.01]},
    ],
    "hypotheses": "own.hypotheses.yaml",
}  # fmt: skip


def written(folder: Path, tests: list[dict[str, Any]], content: dict[str, Any] = GRID) -> Path:
    hypotheses = [{"id": i, "says": "it", "tests": [test]} for i, test in enumerate(tests, 1)]
    (folder / "own.hypotheses.yaml").write_text(yaml.safe_dump({"hypotheses": hypotheses}), encoding="utf-8")
    (folder / "space.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder / "space.yaml"


def simulated(space: Space, seed: int) -> sweep_data.SweepData:
    """The planted numbers of every cell, in memory."""
    rng = np.random.default_rng(seed)
    rows = [cell.describe() | example.simulate(cell, rng) | {"status": "done"} for cell in space.cells]
    kept = ("effective_rank_W", "in_distribution_loss")
    frame = pd.DataFrame(rows)[[*space.cells[0].describe(), "status", *kept]]
    return sweep_data.from_tables("x", frame, pd.DataFrame({"cell": []}), **sweep_data.said_of_space(space, []))


def found(sweep: sweep_data.SweepData) -> list[claims.Tested]:
    return claims.tested(sweep, pd.DataFrame(), None)


def seconds(cell: Cell) -> float:
    """Of training: a machine on which steps cost something, tokens something more, and larger models more again."""
    return 3 * cost.DEVICES["CPU core"].seconds(cell)


def times(space: Space) -> pd.DataFrame:
    """An evaluation of 36 s for each cell beside its training."""
    rows = [{"cell": c.id, "stage": "train", "seconds": seconds(c)} for c in space.cells]
    return pd.DataFrame(rows + [{"cell": c.id, "stage": "in_distribution", "seconds": 36.0} for c in space.cells])


def planned(space: Space, sweep: sweep_data.SweepData, noise: float | None = None, **more: Any) -> Next:
    """`noise` is the deviation of the rank between seeds, where that is known."""
    known = [("effective_rank_W", noise, 0, 1, 9, 3, "")] if noise is not None else []
    between = pd.DataFrame(known, columns=NOISE_COLUMNS)
    return next_cells(space, sweep, found(sweep), between, times(space), **more)


def effect(sweep: sweep_data.SweepData) -> float:
    return found(sweep)[0].finding.value


DECAY = {"trend": {"of": "effective_rank_W", "over": "weight_decay"}, "expect": "> 0.14"}


def test_new_comparisons_decide_in_four_of_five_sweeps(tmp_path: Path) -> None:
    """A pilot of four comparisons whose estimate is the truth's; then whole sweeps with the cells that were planned."""
    space = load(written(tmp_path, [DECAY]))
    truth = float(np.mean([effect(simulated(space, seed)) for seed in range(40)]))
    # 0.1 for each factor of ten, over a line through 0.01, 0.1 and 0.5.
    assert truth == pytest.approx(0.17, abs=0.005)
    pilots = (simulated(space, seed) for seed in range(40, 200))
    pilot = next(p for p in pilots if abs(effect(p) - truth) < 0.001 and found(p)[0].finding.verdict == "undecided")
    plan = planned(space, pilot, budget=1e9)
    (need,) = plan.needs
    assert (need.units, need.today) == ("comparisons", 4)
    larger = space.model_copy(update={"cells": (*space.cells, *plan.cells)})
    sweeps = [simulated(larger, seed) for seed in range(1000, 1025)]
    assert found(sweeps[0])[0].finding.comparisons == need.number > 4
    assert 0.56 <= np.mean([found(one)[0].finding.verdict != "undecided" for one in sweeps]) <= 0.97
    assert np.mean([effect(one) for one in sweeps]) == pytest.approx(truth, abs=0.01)


def test_seeds_where_they_cost_less(tmp_path: Path) -> None:
    """All of the noise is between seeds: four comparisons with k seeds have the error of 4 k comparisons."""
    space = load(written(tmp_path, [DECAY | {"expect": "> 0.145"}]))
    sweep = next(s for s in (simulated(space, seed) for seed in range(60)) if 0.164 < effect(s) < 0.172)
    finding = found(sweep)[0].finding
    assert finding.verdict == "undecided"
    # Sum of squares of 0, 1/2 and 1 about their mean, in each of four slices.
    assert finding.squares == pytest.approx(4 * 0.5)
    without = planned(space, sweep, budget=1e9)
    error = power.standard_error(finding, 4)
    assert error is not None
    plan = planned(space, sweep, noise=error * math.sqrt(2.0), budget=1e9)
    (need,) = plan.needs
    # The power of the t test with 3 degrees of freedom, at the error of so many seeds.
    enough = next(k for k in range(2, 40) if power.decides(finding, error / math.sqrt(k), 4))
    assert need.seeds == enough
    if need.units == "seeds":
        assert len(plan.cells) == (enough - 1) * len(space.cells)
        assert {cell.seed for cell in plan.cells} == {6198 + i for i in range(1, enough)}
    assert need.cost.core_hours <= without.needs[0].cost.core_hours or without.needs[0].reason
    # Noise that seeds have no part in is not lowered by them.
    assert planned(space, sweep, noise=1e-6, budget=1e9).needs[0].seeds == 0


def test_cells_are_combinations_of_what_was_tested_and_cost_what_those_did(tmp_path: Path) -> None:
    correlation = {"correlation": {"of": "effective_rank_W", "with": "in_distribution_loss"}, "expect": "< 0"}
    smallest = correlation | {"among": {"sizes": "smaller half"}, "expect": "> -0.45"}
    space = load(written(tmp_path, [DECAY, correlation, smallest]))
    sweep = simulated(space, 1)
    plan = planned(space, sweep, budget=1e9)
    assert [need.reason for need in plan.needs] == ["", "", ""]
    there = {cell.id for cell in space.cells}
    for need in plan.needs:
        assert len({cell.id for cell in need.cells} - there) == len(need.cells)
        for cell in need.cells:
            assert cell.batch_size in (64, 128, 256)
            assert cell.weight_decay in (0.01, 0.1, 0.5)
            assert cell.final_learning_rate_fraction in (0.0, 0.01, 0.1)
        hours = sum(seconds(cell) + 36 for cell in need.cells) / 3600
        assert need.cost.core_hours == pytest.approx(hours)
        assert need.cost.gpu_hours == 0
        if need.tested.hypothesis.id == 1:
            # Whole comparisons: each further one has the three decays.
            by_rest: dict[Any, set[float]] = {}
            for cell in (*space.cells, *need.cells):
                rest = (cell.size.label, cell.batch_size, cell.final_learning_rate_fraction)
                by_rest.setdefault(rest, set()).add(cell.weight_decay)
            assert sum(len(decays) == 3 for decays in by_rest.values()) == need.number
        else:
            half = need.tested.hypothesis.id == 3
            assert {cell.size.label for cell in need.cells} == ({"4M", "8M"} if half else {"4M", "8M", "16M", "28M"})
            assert len(need.cells) == need.number - need.today
    assert plan.spent.core_hours == pytest.approx(sum(seconds(c) + 36 for c in space.cells) / 3600)
    # Within the hours given the cheapest, and no more.
    cheapest = min((n for n in plan.needs if n.cells), key=lambda need: need.cost.core_hours)
    little = planned(space, sweep, budget=cheapest.cost.core_hours * 1.001)
    assert [need.tested.hypothesis.id for need in little.chosen] == [cheapest.tested.hypothesis.id]
    assert not planned(space, sweep, budget=1e-6).cells


def test_what_is_there_beyond_the_design_is_spent_and_not_new(tmp_path: Path) -> None:
    """Further seeds of a few cells count for the noise alone."""
    space = load(written(tmp_path, [DECAY]))
    further = [cell.model_copy(update={"seed": 6199}) for cell in space.cells[:3]]
    whole = space.model_copy(update={"cells": (*space.cells, *further)})
    seeds = Untested(list(space.cells), whole.cells).seeds(list(space.cells), 2)
    assert {cell.id for cell in seeds} == {cell.model_copy(update={"seed": 6199}).id for cell in space.cells[3:]}
    sweep = simulated(space, 1)
    assert planned(whole, sweep).spent.core_hours == pytest.approx(
        sum(seconds(cell) + 36 for cell in whole.cells) / 3600
    )


def test_why_nothing_would(tmp_path: Path) -> None:
    level = effect(simulated(load(written(tmp_path, [DECAY])), 1))
    on_the_bound = DECAY | {"expect": f"> {level:.9f}"}
    missing = {"trend": {"of": "cosine_W", "over": "weight_decay"}, "expect": "> 0"}
    # Three settings of three values make 27 of each of the four sizes, of which 28 are there.
    too_many = {"correlation": {"of": "effective_rank_W", "with": "in_distribution_loss"}, "expect": "< -0.15"}
    space = load(written(tmp_path, [on_the_bound, missing, too_many]))
    sweep = simulated(space, 1)
    reasons = [need.reason for need in planned(space, sweep, budget=1e9).needs]
    assert reasons[0] == "no number would: the estimate lies on the bound (more than 100 times today's)"
    assert reasons[1] == "no cell has cosine of W"
    assert reasons[2].endswith("more configurations are needed, and the values that were tested make 80: test others")


def test_a_test_with_too_few_comparisons_gets_the_first_interval(tmp_path: Path) -> None:
    """Two values, four sizes: of 2^4 permutations none can be left out. With six comparisons one of 2^6 can."""
    half = {
        "trend": {"of": "effective_rank_W", "over": "weight_decay", "from": "middle", "to": "highest"},
        "expect": "> 0",
    }
    at = {"at": {"of": "effective_rank_W", "over": "batch_size", "value": 128, "than": "lower"}, "expect": "> 0"}
    space = load(written(tmp_path, [half, at]))
    sweep = simulated(space, 1)
    assert {one.finding.verdict for one in found(sweep)} == {"undecided"}
    plan = planned(space, sweep, noise=0.01, budget=1e9)
    assert [(need.today, need.number, need.gives) for need in plan.needs] == [(4, 6, "interval")] * 2
    assert said(plan).endswith(
        "would give 2 of 2 undecided tests (of claims 1, 2) a first interval, whatever it will say"
    )
    larger = space.model_copy(update={"cells": (*space.cells, *plan.cells)})
    for one in found(simulated(larger, 1)):
        assert math.isfinite(one.finding.low)
        assert one.finding.comparisons >= 6


@pytest.mark.parametrize("values", [[0.0, 1.0], [0.0, 0.5, 1.0], [1.0, 0.0, 0.0], [0.0, 0.25, 0.5, 0.75, 1.0]])
def test_so_many_comparisons_are_enough_and_one_fewer_is_not(values: list[float]) -> None:
    rng = np.random.default_rng(0)
    x = np.array(values)

    def of(slices: int) -> trends.Effect:
        return trends.effect([(x, rng.normal(size=len(x))) for _ in range(slices)], permutations=10**6)

    enough = of(1).enough
    assert math.isfinite(of(enough).low)
    assert enough == 1 or not math.isfinite(of(enough - 1).low)


def test_planned_cells_are_not_new_and_two_values_are_a_comparison_already(tmp_path: Path) -> None:
    """One decay of one size diverged: it is not offered, and its comparison is there with the other two."""
    space = load(written(tmp_path, [DECAY]))
    for seed in range(40):
        sweep = simulated(space, seed)
        gone = (sweep.cells["weight_decay"] == 0.01) & (sweep.cells["size"] == "8M")
        (need,) = planned(space, sweep.of(~gone), budget=1e9).needs or [None]
        if need is not None and need.cells:
            break
    assert need is not None
    assert need.today == 4
    offered = [(cell.size.label, cell.batch_size, cell.final_learning_rate_fraction) for cell in need.cells]
    assert not {cell.id for cell in need.cells} & {cell.id for cell in space.cells}
    assert not [one for one in offered if one[1:] == (128, 0.1)]


def test_configurations_are_counted_and_not_their_seeds(tmp_path: Path) -> None:
    correlation = {"correlation": {"of": "effective_rank_W", "with": "in_distribution_loss"}, "expect": "< 0"}
    space = load(written(tmp_path, [correlation], GRID | {"cross": GRID["cross"] | {"seed": [1, 2, 3]}}))
    sweeps = (simulated(space, seed) for seed in range(20))
    sweep = next(one for one in sweeps if found(one)[0].finding.verdict == "undecided")
    (need,) = planned(space, sweep, budget=1e9).needs
    assert need.today == 28
    assert len(need.cells) in (0, 3 * (need.number - 28))


def test_too_many_points_are_a_reason(tmp_path: Path) -> None:
    content = {
        "name": "sampled", "base": {"corpus": "pile", "tokens": 32e9, "batch_size": 128, "size": "4M"},
        "sample": {"count": 20, "seed": 1}, "over": {"weight_decay": {"log_uniform": [0.01, 0.5]}},
        "hypotheses": "own.hypotheses.yaml",
    }  # fmt: skip
    space = load(written(tmp_path, [DECAY], content))
    sweeps = (simulated(space, seed) for seed in range(60))
    sweep = next(s for s in sweeps if found(s)[0].finding.verdict == "undecided" and abs(effect(s) - 0.14) > 0.005)

    def larger(count: int) -> tuple[Cell, ...]:
        raise UserError(f"{count} are too many")

    (need,) = planned(space, sweep, budget=1e9, larger=larger).needs
    assert need.reason == f"{need.number} points would be needed: {need.number} are too many"


def test_a_sampled_design_gets_more_points(tmp_path: Path) -> None:
    content = {
        "name": "sampled", "base": {"corpus": "pile", "tokens": 32e9, "size": "4M"}, "sample": {"count": 20, "seed": 1},
        "over": {"batch_size": {"powers_of": 2, "between": [32, 512]}, "weight_decay": {"log_uniform": [0.01, 0.5]}},
        "hypotheses": "own.hypotheses.yaml",
    }  # fmt: skip
    file = written(tmp_path, [DECAY], content)
    space = load(file)
    sweeps = (simulated(space, seed) for seed in range(60))
    sweep = next(s for s in sweeps if found(s)[0].finding.verdict == "undecided" and abs(effect(s) - 0.14) > 0.005)
    plan = planned(space, sweep, budget=1e9, larger=lambda count: load_with_count(file, count).cells)
    (need,) = plan.needs
    assert (need.units, need.today, plan.count) == ("points", 20, need.number)
    assert len(plan.cells) == plan.count - 20
    assert load_with_count(file, plan.count).cells == (*space.cells, *plan.cells)


@pytest.mark.parametrize("folder", [".", "elsewhere"])
def test_the_file_has_every_cell_under_its_id(tmp_path: Path, folder: str) -> None:
    """Of all kinds of settings, and of `installed` as it is without decontamination."""
    file = written(tmp_path, [DECAY])
    old = {"name": "installed", "tokenizer": "bpe", "vocabulary": 512, "decontaminate": None}
    cells = [
        Cell.model_validate({"size": {"width": 32, "heads": 2}, "tokens": 10**6, "batch_size": 4} | more)
        for more in (
            {"corpus": old}, {"corpus": old | {"decontaminate": 13}}, {"corpus": "pile", "weight_tying": True},
            {"corpus": old, "learning_rate": 0.01, "schedule": "wsd", "decay_fraction": 0.5, "seed": 4},
            {"corpus": old, "head_bottleneck": 8, "size": "4M"}, {"corpus": old, "tokens": 2**24, "precision": "bfloat16"},
        )
    ]  # fmt: skip
    output = tmp_path / folder / "next.yaml"
    write_with_cells(file, cells, output, "two\nlines")
    again = load(output)
    assert [cell.id for cell in again.cells] == [cell.id for cell in cells]
    assert again.cells == tuple(cells)
    assert again.hypotheses == load(file).hypotheses
    assert output.read_text(encoding="utf-8").startswith("# two\n# lines\n")


def test_folders_that_look_like_something_else_and_files_that_are_there(tmp_path: Path) -> None:
    file = written(tmp_path, [DECAY], GRID | {"name": "mine"})
    cells = [
        Cell.model_validate({
            "size": {"width": 16}, "tokens": 10**6, "batch_size": 4,
            "corpus": {"name": "own", "tokenizer": "bpe", "vocabulary": 512, "pretraining": {"folder": folder}},
        })
        for folder in ("yes", "1:30", "on", "1e3", "~", "0x10")
    ]  # fmt: skip
    output = tmp_path / "next.yaml"
    for cell in cells:
        write_with_cells(file, [cell], output, f"x, with what {MARK} found")
        assert load(output).cells == (cell,)
    check_target(file, output)  # Which it wrote itself.
    with pytest.raises(UserError, match="is what is analysed"):
        check_target(file, file)
    output.write_text("name: somebody's\n", encoding="utf-8")
    with pytest.raises(UserError, match="exists: choose another name, or delete it"):
        check_target(file, output)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--next", "next.txt"], "--next next.txt: a search space is a .yaml file"),
        (["--hours", "3"], "--hours is for --next FILE.yaml, which is missing"),
        (["--next", "next.yaml", "--where", "steps > 1"], "leave --where out"),
        (["--next", "next.yaml", "--hours", "0"], "a number above 0 is needed, not 0"),
    ],
)
def test_options_alone_and_other_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    """Before anything is analysed; `test_adjusted` runs the command."""
    with pytest.raises(SystemExit, match=r"^[12]$"):
        main(["analyze", str(written(tmp_path, [DECAY])), "--output", str(tmp_path / "report"), *options])
    assert said in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


def test_cells_without_the_intervention_are_not_offered_for_one() -> None:
    """None of them would make a pair, however many there are."""
    published = read_published(Path(__file__).parents[2] / "results/interventions-2")
    sweep = sweep_data.published(published)
    tested = [one for one in found(sweep) if str(one.hypothesis.id) == "costs-at-96"]
    assert [one.finding.verdict for one in tested] == ["undecided"] * 2
    between = pd.DataFrame([], columns=NOISE_COLUMNS)
    proposed = next_cells(published.space, sweep.design, tested, between, published.timings.to_pandas())
    assert proposed.cells == []
    for need in proposed.needs:
        assert (need.units, need.today) == ("comparisons", 8)
        assert need.number > 8
        assert need.reason.endswith("add seeds by hand")
