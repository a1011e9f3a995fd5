"""One test of a claim: an effect with its interval, the rule it is held to, and the verdict that follows.

Effects of hyperparameters have exact permutation intervals (`trends`), those of sampled ones the jackknife's (`adjusted`);
everything else resamples configurations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from raysweep.analysis import statistics
from raysweep.analysis.adjusted import adjusted
from raysweep.analysis.columns import outcome, words
from raysweep.analysis.noise import NOISE_COLUMNS
from raysweep.analysis.regressions import DRAWS, SEED, STATISTIC_WORDS, of_metric
from raysweep.analysis.sweep_data import SweepData
from raysweep.analysis.trends import Effect, trend

Array = npt.NDArray[np.float64]

FEWEST_CONFIGURATIONS = 8
"""From which a bootstrap over configurations has an interval."""


@dataclass(frozen=True)
class Finding:
    """One effect and what a claim says of it."""

    effect: str
    rule: str
    """`> x`, `< x` or `within ±x`."""
    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    reason: str = ""
    squared: bool = False
    """Whether the interval is that of a correlation, squared with its sign (`statistics.added_r2_interval`)."""
    comparisons: int = 0
    """The slices that it is over, of an effect of a hyperparameter at equal settings; 0 of others."""
    enough: int = 0
    """`Effect.enough`, of such an effect without an interval."""
    squares: float = math.nan
    """`Effect.squares`, of such an effect."""

    @property
    def p_value(self) -> float:
        """That of the claimed side against the bound, from the interval as if it were a normal one (Altman and Bland 2011).

        NaN where there is no interval. Within a margin it is the larger of the two sides' (Schuirmann 1987).
        """
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            return math.nan
        sign, _, bound = self.rule.partition(" ")
        limit = float(bound.removeprefix("±"))
        value, low, high, limits = self.value, self.low, self.high, [limit, -limit]
        if self.squared:
            low, high, *limits = (float(np.sign(x) * np.sqrt(abs(x))) for x in (low, high, *limits))
            value = (low + high) / 2
        error = max(high - low, 1e-12) / (2 * stats.norm.ppf(0.975))
        above, below = (float(stats.norm.sf((value - at) / error)) for at in limits)
        if sign == "within":
            return max(1 - above, below)
        return above if sign == ">" else 1 - above

    @property
    def verdict(self) -> str:
        """supported, contradicted or undecided, as the module says."""
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            return "undecided"
        sign, _, bound = self.rule.partition(" ")
        limit = float(bound.removeprefix("±"))
        if sign == "within":
            inside, outside = -limit < self.low and self.high < limit, self.low > limit or self.high < -limit
        elif sign == ">":
            inside, outside = self.low > limit, self.high < limit
        else:
            inside, outside = self.high < limit, self.low > limit
        return "supported" if inside else "contradicted" if outside else "undecided"


@dataclass(frozen=True)
class Tests:
    """The kinds of test there are, on one sweep."""

    sweep: SweepData
    regressions: pd.DataFrame
    """By task, metric and statistic."""
    noise: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=NOISE_COLUMNS))
    """Between seeds, as `noise.seed_noise` has it."""

    @property
    def cells(self) -> pd.DataFrame:
        return self.sweep.cells

    @property
    def loss(self) -> str:
        """Its column; empty where there is none."""
        return self.sweep.tasks.get(self.sweep.main_task, "")

    @property
    def loss_words(self) -> str:
        return outcome(self.sweep.main_task)

    def has(self, task: str, metric: str) -> bool:
        """Whether any cell has both."""
        column = self.sweep.tasks.get(task)
        return (
            column is not None and metric in self.cells and bool(self.cells[[column, metric]].notna().all(axis=1).any())
        )

    def regression(self, task: str, metric: str, statistic: str, rule: str) -> Finding:
        """A row of the regressions; that of a metric of one layer, which they leave out, is computed here."""
        name = f"{STATISTIC_WORDS[statistic]}, {words(metric)} and {outcome(task)}"
        if not self.has(task, metric):
            return Finding(name, rule, reason=f"no cell has both {words(metric)} and {outcome(task)}")
        if (task, metric, statistic) in self.regressions.index:
            row = self.regressions.loc[(task, metric, statistic)]
        else:
            row = of_metric(self.sweep, self.sweep.tasks[task], metric).answer(statistic, metric)
        return Finding(
            name, rule, float(row["value"]), float(row["low"]), float(row["high"]), int(row["n"]), row["reason"],
            squared=statistic == "predictive_r2",
        )  # fmt: skip

    def trend(
        self, hyperparameter: str, column: str, what: str, rule: str, contrast: Callable[[Array], Array] | None = None,
        keep: Callable[[pd.DataFrame], pd.DataFrame] = lambda cells: cells, equal_steps: bool = False,
        ends: str = "lowest to the highest",
    ) -> Finding:  # fmt: skip
        over = words(hyperparameter)
        name = f"{what}, from the {ends} {over}" if contrast is None else f"{what} ({over})"
        if column not in self.cells:
            return Finding(name, rule, reason=f"no cell has {words(column) or 'a loss'}")
        over_range = trend(self.sweep, hyperparameter, column, contrast, keep, equal_steps)
        if over_range is None:
            equal = "steps and all else" if equal_steps else "all else"
            return Finding(name, rule, reason=f"no two cells that this compares differ in {over} with {equal} equal")
        return of_effect(name, rule, over_range)

    def adjusted(self, setting: str, column: str, what: str, rule: str) -> Finding:
        """The effect of a sampled setting over its range."""
        name = f"{what}, from the lowest to the highest {words(setting)}, adjusted for the other settings"
        if column not in self.cells:
            return Finding(name, rule, reason=f"no cell has {words(column) or 'a loss'}")
        found = adjusted(self.sweep, setting, column)
        if found.effect is None or found.reason:
            value, n = (math.nan, 0) if found.effect is None else (found.effect.value, found.effect.n)
            return Finding(name, rule, value, n=n, reason=found.reason)
        return Finding(name, rule, found.effect.value, found.effect.low, found.effect.high, found.effect.n)

    def resampled(
        self, name: str, rule: str, columns: tuple[str, ...],
        statistic: Callable[[pd.DataFrame], Callable[[Array], Array]] | None,
        fewest: int = FEWEST_CONFIGURATIONS, only: list[float] | None = None,
        interval: Callable[[pd.DataFrame, npt.NDArray[np.int64]], tuple[float, float]] | None = None,
    ) -> Finding:  # fmt: skip
        """A statistic of the cells that have `columns`, and its bootstrap interval over configurations.

        `interval` gives another one, of the cells and the configuration of each.
        """
        cells = self.cells
        if missing := [c for c in columns if c not in cells]:
            return Finding(name, rule, reason=f"no cell has {words(missing[0]) or 'a loss'}")
        cells = cells.dropna(subset=list(columns))
        if only is not None:
            cells = cells[cells["parameters"].isin(only)]
        groups = self.sweep.configurations[cells.index]
        count = len(np.unique(groups))
        of_kind = [count] if only is None else [len(np.unique(groups[cells["parameters"] == size])) for size in only]
        if min(of_kind, default=0) < fewest or statistic is None:
            reason = f"{count} configurations; at least {fewest} of a kind are needed"
            return Finding(name, rule, n=len(cells), reason=reason)
        with np.errstate(invalid="ignore", divide="ignore"):
            of = statistic(cells)
            value = float(of(statistics.sample(len(cells)))[0])
            if interval is not None:
                low, high = interval(cells, groups)
            else:
                low, high = bootstrapped(of, value, groups)
        if not math.isfinite(value):
            return Finding(
                name, rule, n=len(cells), reason="not defined: one side is constant, or no cell is of the kind"
            )
        reason = "" if math.isfinite(low) else "no interval: too few resamples have a value"
        return Finding(name, rule, value, low, high, len(cells), reason)


def bootstrapped(of: Callable[[Array], Array], value: float, groups: npt.NDArray[np.int64]) -> tuple[float, float]:
    """The 95% BCa interval of a statistic with that value: `of` takes weights, (B, n) -> (B,). Groups are drawn whole."""
    draws, left_out = of(statistics.resamples(groups, DRAWS, SEED)), of(statistics.jackknife(groups))
    return statistics.bca_interval(value, draws, left_out)


def false_discovery_rates(p_values: pd.Series) -> pd.Series:
    """Benjamini and Hochberg's adjusted p of each; those that have none are no tests."""
    known = p_values.notna()
    rates = pd.Series(math.nan, index=p_values.index)
    if known.any():
        rates[known] = stats.false_discovery_control(p_values[known])
    return rates


def of_mean(name: str, rule: str, values: Array) -> Finding:
    """A mean with Student's t interval."""
    if len(values) < 3:
        return Finding(name, rule, n=len(values), reason=f"{len(values)} configurations; at least 3 are needed")
    value, error = float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))
    reach = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return Finding(name, rule, value, value - reach, value + reach, n=len(values))


def too_few(comparisons: int) -> str:
    """Why an effect has no interval."""
    few = (
        "1 comparison at equal settings allows"
        if comparisons == 1
        else f"{comparisons} comparisons at equal settings allow"
    )
    return f"{few} too few permutations for a 95% interval"


def of_effect(name: str, rule: str, measured: Effect) -> Finding:
    if not math.isfinite(measured.low):
        return Finding(
            name, rule, measured.value, n=measured.n, comparisons=measured.slices, enough=measured.enough,
            reason=too_few(measured.slices),
        )  # fmt: skip
    return Finding(name, rule, measured.value, measured.low, measured.high, measured.n, comparisons=measured.slices,
        squares=measured.squares,
    )  # fmt: skip
