"""What a run's length and its rows over training show."""

from __future__ import annotations

import numpy as np
import pandas as pd

WINDOWS = 20
"""Parts of the training over which the validation loss is averaged before its rise is taken."""


def late_rise(trajectories: pd.DataFrame) -> dict[str, float]:
    """Cell -> how far its validation loss ends above its lowest, as a fraction of the lowest.

    Over the means of each twentieth of the training: the lowest of many noisy readings is low by chance.
    """
    reported = trajectories.dropna(subset=["validation_loss"])
    reported = reported[reported["step"] > 0]
    share = reported["step"] / reported.groupby("cell")["step"].transform("max")
    part = np.ceil(share * WINDOWS - 1e-9).astype(int)
    means = reported.groupby(["cell", part.rename("part")])["validation_loss"].mean().groupby("cell")
    return dict((means.last() / means.min() - 1).items())


def few_steps(cells: pd.DataFrame) -> pd.Series:
    """(n,) of each cell, whether it was trained for at most half the median steps of its size."""
    return cells["steps"] <= cells.groupby("parameters")["steps"].transform("median") / 2
