"""What one hyperparameter does to a column with everything else equal, with exact permutation intervals.

A slice is a group of cells that differ in one hyperparameter only (`SweepData.slices`), each the mean over its seeds. An
effect is a slope shared by all slices, each of which has a level of its own: y = level of the slice + effect * x +
error, where x is a contrast over the values of the hyperparameter. If the errors within a slice are exchangeable,
shuffling them within slices gives the exact distribution of the effect's error, and so an interval (Garthwaite 1996):
with S(x, y) the sum over slices of the centred products, the effect b is compatible with permutation p unless S(x, y)
- b S(x, x) is beyond S(x, p y) - b S(x, p x), and the interval's ends are quantiles of (S(x, y) - S(x, p y)) / (S(x,
x) - S(x, p x)) over the permutations. It excludes zero exactly when the permutation test rejects zero.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import pandas as pd

from raysweep.analysis.sweep_data import SweepData

Array = npt.NDArray[np.float64]

PERMUTATIONS = 20_000
"""All permutations are taken where there are no more than these, else so many at random."""

FEWEST_PERMUTATIONS = 40
"""Of so many different ones 2.5% are one: with fewer no interval leaves any out."""

TURN = 1.5
"""A column turns if the largest difference between two values is this many times that of the straight line."""


@dataclass(frozen=True)
class Effect:
    """An effect with its 95% interval; infinite ends where there are too few permutations to have any."""

    value: float
    low: float
    high: float
    n: int
    """Cells in the slices."""
    slices: int
    enough: int = 0
    """So many slices, of as many values each, have an interval."""
    squares: float = math.nan
    """Of the contrast about its mean in each slice, summed: of errors of deviation s the effect has s / sqrt(squares)."""

    @property
    def interval(self) -> tuple[float, float]:
        """(low, high) for a table: NaN for both where there is no interval."""
        return (self.low, self.high) if math.isfinite(self.low) else (math.nan, math.nan)


def position(values: Array, levels: Array) -> Array:
    """0 at the lowest of the levels tested, 1 at the highest, equal steps between: the change over the range tested."""
    return np.asarray(np.searchsorted(levels, values) / (len(levels) - 1))


def of_lowest_and_middle(cells: pd.DataFrame, values: pd.Series) -> pd.DataFrame:
    """The cells of a slice at the lowest and at the middle value of its hyperparameter."""
    levels = np.sort(values.unique())
    return cells[values.isin([levels[0], levels[len(levels) // 2]])]


def of_middle_and_highest(cells: pd.DataFrame, values: pd.Series) -> pd.DataFrame:
    """The cells of a slice at the middle and at the highest value of its hyperparameter."""
    levels = np.sort(values.unique())
    return cells[values.isin([levels[len(levels) // 2], levels[-1]])]


def trend(
    sweep: SweepData,
    hyperparameter: str,
    column: str,
    contrast: Callable[[Array], Array] | None = None,
    keep: Callable[[pd.DataFrame], pd.DataFrame] = lambda cells: cells,
    equal_steps: bool = False,
) -> Effect | None:
    """The effect of a hyperparameter on a column, or None where no slice has two values of it.

    `contrast` gives x for the hyperparameter's values in a slice: by default their `position` among the values of all
    slices, so that a slice that has some of them tells of a part of the range. `keep` may leave out some of a slice's cells.
    """
    pairs = contrasted(_slices(sweep, hyperparameter, column, equal_steps, keep), hyperparameter, column, contrast)
    return effect(pairs) if pairs else None


def contrasted(
    slices: list[pd.DataFrame], hyperparameter: str, column: str, contrast: Callable[[Array], Array] | None = None
) -> list[tuple[Array, Array]]:
    """x and y of each slice, as `trend` compares them."""
    contrast = contrast or _positions(slices, hyperparameter)
    pairs = [(contrast(cells[hyperparameter].to_numpy(float)), cells[column].to_numpy(float)) for cells in slices]
    return [(x, y) for x, y in pairs if np.ptp(x) > 1e-9]


def swing(sweep: SweepData, hyperparameter: str, column: str, equal_steps: bool = False) -> float:
    """The largest difference between two values of a hyperparameter, over the slices that have all its values.

    Beside an effect, which is a straight line, it says whether the column turns in between. NaN where no slice has all.
    """
    slices = _slices(sweep, hyperparameter, column, equal_steps)
    pairs = [(cells[hyperparameter].to_numpy(float), cells[column].to_numpy(float)) for cells in slices]
    most = max((len(np.unique(values)) for values, _ in pairs), default=0)
    whole = [(values, y - y.mean()) for values, y in pairs if len(values) == most]
    if not whole:
        return math.nan
    _, level = np.unique(np.concatenate([values for values, _ in whole]), return_inverse=True)
    return float(np.ptp(np.bincount(level, np.concatenate([y for _, y in whole])) / np.bincount(level)))


def _slices(
    sweep: SweepData, hyperparameter: str, column: str, equal_steps: bool,
    keep: Callable[[pd.DataFrame], pd.DataFrame] = lambda cells: cells,
) -> list[pd.DataFrame]:  # fmt: skip
    """The slices over the cells that have the column, where two values of the hyperparameter are left."""
    of_all = sweep.over_seeds.slices(hyperparameter, equal_steps)
    # Leaving rows out copies every column of a table that has hundreds.
    slices = [keep(cells if cells[column].notna().all() else cells.dropna(subset=[column])) for cells in of_all]
    return [cells for cells in slices if len(np.unique(cells[hyperparameter].to_numpy())) > 1]


def _positions(slices: list[pd.DataFrame], hyperparameter: str) -> Callable[[Array], Array]:
    every = [cells[hyperparameter].to_numpy(float) for cells in slices]
    return partial(position, levels=np.unique(np.concatenate([*every, np.empty(0)])))


def slopes(
    sweep: SweepData, hyperparameter: str, column: str, equal_steps: bool = False, per_decade: bool = False
) -> tuple[Array, Array]:
    """(slices,) the log size of each slice and the column's change over the values tested in it.

    `per_decade`: the change for each factor of ten of the hyperparameter, over its values above zero.
    """
    positive = partial(_above_zero, hyperparameter) if per_decade else lambda cells: cells
    slices = _slices(sweep, hyperparameter, column, equal_steps, positive)
    positions = np.log10 if per_decade else _positions(slices, hyperparameter)
    sizes, slopes_of = [], []
    for cells in slices:
        sizes.append(math.log(cells["parameters"].iloc[0]))
        slopes_of.append(float(np.polyfit(positions(cells[hyperparameter].to_numpy(float)), cells[column], 1)[0]))
    return np.array(sizes), np.array(slopes_of)


def _above_zero(hyperparameter: str, cells: pd.DataFrame) -> pd.DataFrame:
    return cells[cells[hyperparameter] > 0]


def effect(slices: Iterable[tuple[Array, Array]], seed: int = 0, permutations: int = PERMUTATIONS) -> Effect:
    """The shared slope of y on x over slices of (x, y), with its permutation interval."""
    centred = [(x - x.mean(), y - y.mean()) for x, y in slices]
    xx = sum(float(x @ x) for x, _ in centred)
    xy = sum(float(x @ y) for x, y in centred)
    count = math.prod(math.factorial(len(x)) for x, _ in centred)
    shuffled = _all(centred) if count <= permutations else _some(centred, seed, permutations)
    below, gap = xy - shuffled[:, 0], xx - shuffled[:, 1]
    # A permutation that changes nothing says nothing, and so is compatible with every effect.
    says = gap > 1e-9 * xx
    ends = below[says] / gap[says]
    silent = int((~says).sum())
    spared = math.floor(0.025 * len(shuffled)) - silent
    ordered = np.sort(ends)
    low, high = (float(ordered[spared]), float(ordered[-1 - spared])) if spared >= 0 else (-math.inf, math.inf)
    return Effect(xy / xx, low, high, sum(len(x) for x, _ in centred), len(centred), _enough(centred), xx)


def _enough(slices: list[tuple[Array, Array]]) -> int:
    """Permutations that move no x say nothing: a slice of values, t of them equal, has n! / t! that differ."""
    differing = []
    for x, _ in slices:
        _, equal = np.unique(x, return_counts=True)
        differing.append(math.lgamma(len(x) + 1) - sum(math.lgamma(count + 1) for count in equal))
    return math.ceil(math.log(FEWEST_PERMUTATIONS) / (sum(differing) / len(differing)) - 1e-9)


def _all(slices: list[tuple[Array, Array]]) -> Array:
    """(permutations, 2) the sums of x * y and x * x over slices for every way to shuffle y, and x with it."""
    sums = np.zeros((1, 2))
    for x, y in slices:
        orders = np.array(list(itertools.permutations(range(len(x)))))
        own = np.stack([y[orders] @ x, x[orders] @ x], axis=1)
        sums = (sums[:, None, :] + own[None, :, :]).reshape(-1, 2)
    return sums


def _some(slices: list[tuple[Array, Array]], seed: int, permutations: int) -> Array:
    rng = np.random.default_rng(seed)
    sums = np.zeros((permutations, 2))
    for x, y in slices:
        orders = rng.random((permutations, len(x))).argsort(axis=1)
        # The order as it is belongs to the set, as it does to the set of all.
        orders[0] = np.arange(len(x))
        sums += np.stack([y[orders] @ x, x[orders] @ x], axis=1)
    return sums
