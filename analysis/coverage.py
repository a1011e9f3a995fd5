"""How often the 95% intervals hold the truth at a sweep's own cells, by simulation.

Sweeps are simulated whose cells, with sizes and settings, are those of the sweep, and whose loss and metric are drawn: the
mean that settings explain in the sweep's own, and normal errors. Once the errors of metric and loss have nothing in common,
and once as much as the paper reports. The truth is known, or the mean over the simulated sweeps where it has no closed form.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from joblib import Parallel, delayed

from raysweep.analysis import statistics
from raysweep.analysis.columns import words
from raysweep.analysis.regressions import STATISTIC_WORDS, Outcome
from raysweep.analysis.sweep_data import SweepData
from raysweep.analysis.trends import contrasted, effect

Array = npt.NDArray[np.float64]

COVERAGE_COLUMNS = ("interval", "planted", "coverage", "sweeps", "cells")
SWEEPS = 200
DRAWS = 500
"""Of a bootstrap and of permutations; the analysis takes more."""
PARTIAL, ADDED = -0.261, 0.05
"""The paper's partial correlation of the effective rank with the loss, and the largest added R² that it prints."""
_FEWEST = 25
"""Configurations from which a simulation says anything."""


class Row(NamedTuple):
    """One interval of one simulated sweep."""

    interval: str
    planted: str
    value: float
    low: float
    high: float
    truth: float
    """NaN: the mean of the values over all simulated sweeps."""


def coverage(sweep: SweepData, sweeps: int = SWEEPS, jobs: int = -1) -> pd.DataFrame:
    """For each kind of interval and what was planted the share of simulated sweeps in which it holds the truth.

    Columns: `COVERAGE_COLUMNS`. No rows where the sweep has no loss, no metric, unknown tokens, or fewer than 25
    configurations. `sweep` is a `SweepData.design`.
    """
    columns = sweep.tasks.get(sweep.main_task), next(iter(sweep.metrics), None)
    if None in columns:
        return pd.DataFrame(columns=COVERAGE_COLUMNS)
    loss, metric = map(str, columns)
    cells = sweep.cells.dropna(subset=[loss, metric])
    measured = sweep.of(sweep.cells.index.isin(cells.index))
    if len(np.unique(measured.configurations)) < _FEWEST:
        return pd.DataFrame(columns=COVERAGE_COLUMNS)
    design = Design(measured, loss, metric)
    if design.unknown:
        return pd.DataFrame(columns=COVERAGE_COLUMNS)
    pool = Parallel(n_jobs=jobs)
    chunks = np.array_split(np.arange(sweeps), max(1, sweeps // 25))
    found = pd.DataFrame([row for rows in pool(delayed(design.simulated)(chunk) for chunk in chunks) for row in rows])
    rows = []
    for (interval, planted), of in found.groupby(["interval", "planted"], sort=False):
        truth = of["truth"].fillna(of["value"].mean())
        held = (of["low"] <= truth) & (truth <= of["high"])
        rows.append((interval, planted, held.mean(), len(of), len(cells)))
    return pd.DataFrame(rows, columns=COVERAGE_COLUMNS)


def said(table: pd.DataFrame) -> str:
    """The table as a footnote; empty where there is none."""
    if not len(table):
        return ""
    parts = []
    for interval, of in table.groupby("interval", sort=False):
        shares = [
            f"{share:.0%}" + (f" ({planted})" if planted else "")
            for planted, share in of[["planted", "coverage"]].itertuples(index=False)
        ]
        parts.append(f"{interval} {', '.join(shares)}")
    count, cells = table["sweeps"].max(), table["cells"].max()
    return (
        f"How often 95% intervals hold what was planted, in {count} simulated sweeps of these {cells} cells, give or take "
        f"three points: {'; '.join(parts)}. An interval of an effect moves with it, so that it holds any as often as none."
    )


@dataclass(frozen=True)
class Design:
    """A sweep's cells, and what its settings explain of a loss and a metric."""

    sweep: SweepData
    loss: str
    metric: str

    @cached_property
    def _outcome(self) -> Outcome:
        loss, metric = (self.sweep.cells[c].to_numpy(float) for c in (self.loss, self.metric))
        return Outcome(self.sweep, loss, np.ones(len(loss), dtype=bool), DRAWS, self.loss, {self.metric: metric})

    @property
    def unknown(self) -> int:
        """Of how many cells nobody knows the tokens: without those nothing is simulated."""
        return self._outcome.unknown

    @cached_property
    def _explained(self) -> dict[str, list[tuple[Array, float]]]:
        """By the ranks of the settings and by the baseline: the mean and the errors' deviation of loss and metric."""
        one = statistics.sample(self._outcome.n)
        ranked = np.column_stack([statistics.ranks(c, one)[0] for c in self._outcome.controls.T])
        found = {}
        for name, features in (("settings", ranked), ("baseline", self._outcome.baseline)):
            pairs = []
            for values in (self._outcome.loss, self._outcome.metrics[self.metric]):
                left = statistics.linear_residuals(values, features, one)[0]
                pairs.append((values - left, float(left.std())))
            found[name] = pairs
        return found

    @cached_property
    def _slices(self) -> dict[str, list[tuple[Array, npt.NDArray[np.int64]]]]:
        """Hyperparameter -> of each slice the contrast and the numbers of its configurations."""
        means = self.sweep.over_seeds
        numbered = replace(means, cells=means.cells.assign(number=np.arange(len(means.cells))))
        found = {}
        for name in self.sweep.hyperparameters:
            pairs = contrasted(numbered.slices(name, self.sweep.at_equal_steps(name)), name, "number")
            found[name] = [(x, number.astype(np.int64)) for x, number in pairs]
        return found

    def simulated(self, seeds: npt.NDArray[np.int64]) -> list[Row]:
        """The rows of some seeds."""
        return [row for seed in seeds for row in self._one(np.random.default_rng(seed))]

    def _one(self, rng: np.random.Generator) -> Iterator[Row]:
        of_loss, own = rng.standard_normal((2, self._outcome.n))
        (mean, deviation), (of_metric, spread) = self._explained["settings"]
        loss = mean + deviation * of_loss
        for rho in (0.0, PARTIAL):
            metric = of_metric + spread * (rho * of_loss + math.sqrt(1 - rho**2) * own)
            truth = math.nan if rho else 0.0
            yield from self._correlation("partial_spearman", f"{rho:g}" if rho else "none", loss, metric, truth)
            # What settings explain of both is a raw correlation of its own.
            related = ("the sweep's", metric, math.nan) if rho else ("none", own, 0.0)
            yield from self._correlation("raw_spearman", related[0], loss, *related[1:])

        (mean, deviation), (of_metric, spread) = self._explained["baseline"]
        unexplained = deviation**2 / (mean.var() + deviation**2)
        for added in (0.0, min(ADDED, unexplained / 2)):
            rho = math.sqrt(added / unexplained)
            metric = of_metric + spread * (rho * of_loss + math.sqrt(1 - rho**2) * own)
            low, high = statistics.added_r2_interval(
                self._outcome.baseline, metric, mean + deviation * of_loss, self._outcome.groups
            )
            yield Row(STATISTIC_WORDS["predictive_r2"], f"{added:.2g}" if added else "none", math.nan, low, high, added)

        for name, slices in self._slices.items():
            drawn = rng.standard_normal(self._outcome.n)
            found = effect([(x, drawn[number]) for x, number in slices], permutations=DRAWS) if slices else None
            if found is not None and math.isfinite(found.low):
                yield Row(f"effect of {words(name)}", "", found.value, found.low, found.high, 0.0)

    def _correlation(self, statistic: str, planted: str, loss: Array, metric: Array, truth: float) -> Iterator[Row]:
        answer = self._outcome.drawn(loss, {self.metric: metric}).answer(statistic, self.metric)
        if math.isfinite(answer["low"]):
            yield Row(STATISTIC_WORDS[statistic], planted, answer["value"], answer["low"], answer["high"], truth)
