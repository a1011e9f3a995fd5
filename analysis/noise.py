"""How much seeds of one configuration differ, and every hyperparameter's effect compared with that.

The standard deviation is pooled over the configurations that were trained with several seeds and left alone by
interventions: sqrt(sum of squares about each configuration's mean / degrees of freedom), over all sizes and for each. Its
interval is that of the chi-squared distribution: of normal errors that are as large at every size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import chi2

from raysweep.analysis.adjusted import adjusted
from raysweep.analysis.columns import of_domain
from raysweep.analysis.sweep_data import SweepData
from raysweep.analysis.trends import swing, trend

NOISE_COLUMNS = ("column", "standard_deviation", "low", "high", "degrees_of_freedom", "configurations", "size")
Noise = dict[str, tuple[float, int]]
"""Size -> standard deviation of one run between seeds, and its degrees of freedom."""

EFFECT_COLUMNS = (
    "hyperparameter", "column", "effect", "low", "high", "n", "comparisons", "swing", "seed_standard_deviations",
)  # fmt: skip


def seed_noise(sweep: SweepData) -> pd.DataFrame:
    """One row for each task and metric, over all sizes (`size` is empty) and for each: its standard deviation between seeds
    with a 95% interval; none without seeds.

    Columns: `NOISE_COLUMNS`.
    """
    alone = sweep.cells[sweep.is_untreated]
    repeated = [cells for _, cells in alone.groupby(sweep.configurations[alone.index], sort=False) if len(cells) > 1]
    sizes = dict.fromkeys(cells["size"].iloc[0] for cells in repeated)
    rows = []
    for size in ["", *sizes]:
        groups = [cells for cells in repeated if size in ("", cells["size"].iloc[0])]
        rows += [
            (column, *pooled, size) for column in outcomes(sweep) if (pooled := _pooled(groups, column)) is not None
        ]
    return pd.DataFrame(rows, columns=NOISE_COLUMNS)


def _pooled(configurations: list[pd.DataFrame], column: str) -> tuple[float, float, float, int, int] | None:
    squares, freedom, several = 0.0, 0, 0
    for cells in configurations:
        # One that was only measured otherwise is not another seed.
        values = cells.dropna(subset=[column]).drop_duplicates("seed")[column].to_numpy(float)
        if len(values) > 1:
            squares += float(((values - values.mean()) ** 2).sum())
            freedom += len(values) - 1
            several += 1
    if not freedom:
        return None
    low, high = (math.sqrt(squares / chi2.ppf(q, freedom)) for q in (0.975, 0.025))
    return math.sqrt(squares / freedom), low, high, freedom, several


def of_sizes(noise: pd.DataFrame, column: str, sizes: Sequence[str]) -> Noise | None:
    """For each size its own standard deviation between seeds and degrees of freedom; those of all where one size has none.

    None where there are fewer than two degrees of freedom.
    """
    rows = noise[(noise["column"] == column) & (noise["degrees_of_freedom"] >= 2)].set_index("size")
    if "" not in rows.index:
        return None
    own = all(size in rows.index for size in sizes)
    of = {size: rows.loc[size if own else ""] for size in sizes}
    return {size: (float(row["standard_deviation"]), int(row["degrees_of_freedom"])) for size, row in of.items()}


def standard_deviations(noise: pd.DataFrame, size: str = "") -> dict[str, float]:
    """That of one run between seeds, for each column of the table of `seed_noise`; of one size, or over all."""
    of_size = noise[noise["size"] == size]
    return dict(zip(of_size["column"], of_size["standard_deviation"], strict=True))


def effects(sweep: SweepData, noise: pd.DataFrame) -> pd.DataFrame:
    """What each hyperparameter does to each task and metric, lowest to highest value, and in seeds' standard deviations.

    An effect is the slope of a straight line over the values tested, times their range; `swing` is the largest difference
    between two of the values. That of a setting that was sampled is adjusted for the others (`adjusted`): then `comparisons`
    is 0 and `swing` is empty. Token budgets are compared at equal steps where they can be, as the paper does. `sweep` is a
    `SweepData.design`. Columns: `EFFECT_COLUMNS`; the last is empty where there is no noise to hold an effect against.
    """
    deviation = standard_deviations(noise)
    rows = []
    for name in sweep.hyperparameters:
        for column in outcomes(sweep):
            equal_steps = sweep.at_equal_steps(name)
            if sweep.is_sampled(name):
                measured = adjusted(sweep, name, column).effect
            else:
                measured = trend(sweep, name, column, equal_steps=equal_steps)
            if measured is None:
                continue
            times = measured.value / deviation[column] if deviation.get(column) else np.nan
            turns = math.nan if sweep.is_sampled(name) else swing(sweep, name, column, equal_steps)
            rows.append((name, column, measured.value, *measured.interval, measured.n, measured.slices, turns, times))
    return pd.DataFrame(rows, columns=EFFECT_COLUMNS)


def outcomes(sweep: SweepData) -> list[str]:
    """Tasks and metrics, and the changes of tasks."""
    changes = [
        c
        for c in sweep.cells
        if c.endswith("_loss_change") and c.removesuffix("_change") in sweep.tasks.values() and not of_domain(c)
    ]
    return [c for c in dict.fromkeys([*sweep.tasks.values(), *changes, *sweep.metrics]) if sweep.cells[c].notna().any()]
