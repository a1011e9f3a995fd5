"""Further views of how metrics and outcomes go together: at each size, within sizes and settings, and between seeds.

They answer objections that the regressions leave open, and no claim of the paper's is about them:

- `size ...`: Spearman's correlation over the cells of one size, where nothing is due to the size.
- `two-way`: Spearman's of what is left of both after a mean for each size and setting (two-way fixed effects). A setting
  is what cells of one size can differ in, the seed left out. It asks whether a model that beats others of its size and of
  its setting in the metric beats them in the outcome.
- `between seeds`: of runs that differ in their seed alone, which no training choice can explain. Values are taken in
  standard deviations of their configuration, so that none outweighs the others, and what is left of them after a mean for
  each configuration and each seed is correlated: configurations of one seed read the same data in the same order, so that
  their runs are not independent. Of few seeds each it is drawn towards zero (of four to some 0.44 where it is 0.5).

Intervals are Fisher's, with the degrees of freedom that are left: of Spearman's with the variance (1 + r²/2) / (df - 2) of
Bonett and Wright (2000), of the last 1 / (df - 2).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from raysweep.analysis import statistics
from raysweep.analysis.noise import outcomes
from raysweep.analysis.sweep_data import SweepData

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
View = tuple[float, float, float, int, str]
"""Value, low, high, n and reason."""

VIEW_COLUMNS = ("outcome", "metric", "view", "value", "low", "high", "n", "reason")
FEWEST = 8
"""Degrees of freedom that a view needs."""


def views(sweep: SweepData) -> pd.DataFrame:
    """A row for each outcome (tasks and their changes), metric and view, with the columns `VIEW_COLUMNS`.

    `sweep` is the whole one, not its design: what seeds were added are those between which runs are compared. An empty value
    has its reason beside it; sweeps without sizes or seeds in common have no rows of those views.
    """
    design, runs = sweep.design.over_seeds, sweep.of(sweep.is_untreated)
    # Which are equal is all that matters; published models have names of seeds.
    seeds = pd.factorize(runs.cells["seed"])[0].astype(float) if "seed" in runs.cells else np.zeros(len(runs.cells))
    columns = [c for c in outcomes(sweep) if c not in sweep.metrics]
    layouts: dict[tuple[int, bytes], Any] = {}

    def layout(of: SweepData, make: Callable[[SweepData, Mask], Any], present: Mask) -> Any:
        # Most outcomes and metrics were measured of the same cells.
        key = (id(make), present.tobytes())
        if key not in layouts:
            layouts[key] = make(of, present)
        return layouts[key]

    rows = []
    for outcome in columns:
        for metric in sweep.metrics:
            x, y = (design.cells[c].to_numpy(float) for c in (metric, outcome))
            present = statistics.finite(x, y)
            for size, members in layout(design, _sizes, present):
                rows.append((outcome, metric, f"size {size}", *_spearman(x[members], y[members], len(members) - 1)))
            if (shared := layout(design, _without_size_and_setting, present)) is not None:
                members, left_of, free = shared
                rows.append((outcome, metric, "two-way", *_spearman(left_of(x[members]), left_of(y[members]), free)))
            x, y = (runs.cells[c].to_numpy(float) for c in (metric, outcome))
            if repeated := layout(runs, _repeated, statistics.finite(x, y)):
                rows.append((outcome, metric, "between seeds", *_between_seeds(x, y, repeated, seeds)))
    return pd.DataFrame(rows, columns=VIEW_COLUMNS)


def _sizes(sweep: SweepData, present: Mask) -> list[tuple[str, Indices]]:
    """The name of each size and its cells."""
    N, names = (sweep.cells[c].to_numpy() for c in ("parameters", "size"))
    members = [np.flatnonzero(present & (size == N)) for size in np.unique(N[present])]
    called = [str(names[cells[0]]) for cells in members]
    # Settings such as the vocabulary change the number of parameters, and not the name of a size.
    return [
        (name if called.count(name) == 1 else f"{name} ({N[cells[0]]:,.0f} parameters)", cells)
        for name, cells in zip(called, members, strict=True)
    ]


def _without_size_and_setting(sweep: SweepData, present: Mask) -> tuple[Indices, Callable[[Array], Array], int] | None:
    """The cells in settings that several sizes have, what takes the means of both from a column, and degrees of freedom."""
    cells = sweep.cells[present]
    setting = setting_of(sweep, cells)
    members = np.flatnonzero(present)[(cells.groupby(setting)["parameters"].transform("nunique") > 1).to_numpy()]
    if not len(members):
        return None
    sizes, settings = sweep.cells["parameters"].iloc[members], setting.loc[sweep.cells.index[members]]
    dummies = pd.concat([pd.get_dummies(sizes), pd.get_dummies(settings)], axis=1).to_numpy(float)
    return members, *_without(dummies)


def setting_of(sweep: SweepData, cells: pd.DataFrame) -> pd.Series:
    """(n,) the number of each cell's setting: what cells of one size can differ in, and the seed left out."""
    free = [s for s in sweep.free_settings if s != "seed"]
    within = [s for s in free if cells.groupby("parameters")[s].nunique(dropna=False).max() > 1]
    return cells.groupby(within, dropna=False).ngroup() if within else pd.Series(0, index=cells.index)


def _repeated(sweep: SweepData, present: Mask) -> list[Indices]:
    """The cells of each configuration that was trained with three seeds or more, one for each seed."""
    cells = sweep.cells.assign(position=np.arange(len(present)))[present]
    groups = [
        runs.drop_duplicates("seed")["position"].to_numpy()
        for _, runs in cells.groupby(sweep.configurations[present], sort=False)
    ]
    return [runs for runs in groups if len(runs) > 2]


def _between_seeds(x: Array, y: Array, repeated: list[Indices], seed: Array) -> View:
    kept = [runs for runs in repeated if np.ptp(x[runs]) > 0 and np.ptp(y[runs]) > 0]
    if not kept:
        return math.nan, math.nan, math.nan, 0, "no configuration's seeds differ in both"
    members = np.concatenate(kept)
    configuration = np.repeat(np.arange(len(kept)), [len(runs) for runs in kept])
    dummies = [(labels[:, None] == np.unique(labels)).astype(float) for labels in (configuration, seed[members])]
    left_of, free = _without(np.column_stack(dummies))
    if free < FEWEST:
        return math.nan, math.nan, math.nan, len(members), _too_few(free)
    a, b = (left_of(np.concatenate([v[runs] / v[runs].std(ddof=1) for runs in kept])) for v in (x, y))
    if min(float(a @ a), float(b @ b)) <= 1e-12:
        return math.nan, math.nan, math.nan, len(members), "nothing is left after the means of configurations and seeds"
    value = float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))
    return value, *_fisher(value, 1 / (free - 2)), len(members), ""


def _without(dummies: Array) -> tuple[Callable[[Array], Array], int]:
    """What takes from a column all that is linear in dummies (n, k), and the degrees of freedom that are left."""
    u, scale, _ = np.linalg.svd(dummies, full_matrices=False)
    basis = u[:, scale > 1e-10 * scale[0]]
    return lambda values: values - basis @ (basis.T @ values), len(dummies) - basis.shape[1]


def _spearman(x: Array, y: Array, free: int) -> View:
    if free < FEWEST:
        return math.nan, math.nan, math.nan, len(x), _too_few(free)
    if min(np.ptp(x), np.ptp(y)) <= 1e-12:
        return math.nan, math.nan, math.nan, len(x), "one side is constant"
    value = float(stats.spearmanr(x, y).statistic)
    return value, *_fisher(value, (1 + value**2 / 2) / (free - 2)), len(x), ""


def _too_few(free: int) -> str:
    return f"{free} degrees of freedom; at least {FEWEST} are needed"


def _fisher(value: float, variance: float) -> tuple[float, float]:
    """The 95% interval of a correlation whose Fisher's z has this variance."""
    centre, reach = math.atanh(min(max(value, -1 + 1e-12), 1 - 1e-12)), 1.959964 * math.sqrt(variance)
    return math.tanh(centre - reach), math.tanh(centre + reach)
