"""What differs between seeds of one configuration, and every hyperparameter's effect held against it.

The standard deviation is pooled over all configurations that were trained with several seeds: sqrt(sum of squares about each
configuration's mean / degrees of freedom), with the interval of the chi-squared distribution. Where a column's noise
depends on the size it is an average over the sizes that have seeds.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from scipy.stats import chi2

from analysis.sweep import Sweep
from analysis.trends import trend

NOISE_COLUMNS = ("column", "standard_deviation", "low", "high", "degrees_of_freedom", "configurations")
EFFECT_COLUMNS = (
    "hyperparameter", "column", "effect", "low", "high", "n", "comparisons", "seed_standard_deviations",
)  # fmt: skip


def seed_noise(sweep: Sweep) -> pd.DataFrame:
    """One row for each task and metric: its standard deviation between seeds with a 95% interval; none without seeds.

    Columns: `NOISE_COLUMNS`.
    """
    rows = []
    groups = sweep.cells.groupby(sweep.configurations, sort=False)
    for column in outcomes(sweep):
        squares, freedom, several = 0.0, 0, 0
        for _, cells in groups:
            # One that was only measured otherwise is not another seed.
            values = cells.dropna(subset=[column]).drop_duplicates("seed")[column].to_numpy(float)
            if len(values) > 1:
                squares += float(((values - values.mean()) ** 2).sum())
                freedom += len(values) - 1
                several += 1
        if freedom:
            low, high = (math.sqrt(squares / chi2.ppf(q, freedom)) for q in (0.975, 0.025))
            rows.append((column, math.sqrt(squares / freedom), low, high, freedom, several))
    return pd.DataFrame(rows, columns=NOISE_COLUMNS)


def standard_deviations(noise: pd.DataFrame) -> dict[str, float]:
    """That of one run between seeds, for each column of the table of `seed_noise`."""
    return dict(zip(noise["column"], noise["standard_deviation"], strict=True))


def effects(sweep: Sweep, noise: pd.DataFrame) -> pd.DataFrame:
    """What each hyperparameter does to each task and metric, lowest to highest value, and in seeds' standard deviations.

    Token budgets are compared at equal steps, as the paper does. Columns: `EFFECT_COLUMNS`; the last is empty where
    there is no noise to hold an effect against.
    """
    deviation = standard_deviations(noise)
    rows = []
    for name in sweep.hyperparameters:
        for column in outcomes(sweep):
            found = trend(sweep, name, column, equal_steps=name == "tokens")
            if found is None:
                continue
            times = found.value / deviation[column] if deviation.get(column) else np.nan
            rows.append((name, column, found.value, *found.interval, found.n, found.slices, times))
    return pd.DataFrame(rows, columns=EFFECT_COLUMNS)


def outcomes(sweep: Sweep) -> list[str]:
    """Tasks and metrics, and the changes of tasks."""
    changes = [
        c for c in sweep.cells if c.endswith("_loss_change") and c.removesuffix("_change") in sweep.tasks.values()
    ]
    return [c for c in dict.fromkeys([*sweep.tasks.values(), *changes, *sweep.metrics]) if sweep.cells[c].notna().any()]
