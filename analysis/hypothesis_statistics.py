"""Statistics of cells for the tests of hypotheses, of one sample or of many resamples at once (`statistics`)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pandas as pd

from raysweep.analysis import statistics
from raysweep.analysis.columns import PAPER_TASKS
from raysweep.analysis.findings import Array
from raysweep.analysis.noise import Noise
from raysweep.analysis.sweep_data import SweepData


def u(
    sweep: SweepData, column: str, over: str, inverted: bool = False
) -> tuple[list[tuple[Array, Array]], list[tuple[Array, Array]], int]:
    """For each slice over a hyperparameter, the column at its lowest value and at the bottom, and at the bottom and the end.

    The bottom, or the top if `inverted`, is where the mean of the other sizes with the same tokens is lowest, between the
    ends; the middle where there are none, and the third answer is the number of such slices. The lowest of a slice's own
    values is below the ends by chance.
    """
    slices = [
        cells.dropna(subset=[column]).groupby(over, as_index=False).first() for cells in sweep.over_seeds.slices(over)
    ]
    falling, rising, middles = [], [], 0
    for cells in slices:
        if len(cells) < 3:
            continue
        between = cells[over].iloc[1:-1]
        others = [
            other.assign(centred=other[column] - other[column].mean())
            for other in slices
            if other["tokens"].iloc[0] == cells["tokens"].iloc[0]
            and other["parameters"].iloc[0] != cells["parameters"].iloc[0]
        ]
        means = pd.concat(others).groupby(over)["centred"].mean() if others else pd.Series(dtype=float)
        means = means[means.index.isin(between)]
        if len(means):
            bottom = means.idxmax() if inverted else means.idxmin()
        else:
            bottom, middles = between.iloc[len(between) // 2], middles + 1
        low, deep, high = (
            float(cells[column][cells[over] == at].iloc[0])
            for at in (cells[over].iloc[0], bottom, cells[over].iloc[-1])
        )
        falling.append((np.array([0.0, 1.0]), np.array([low, deep])))
        rising.append((np.array([0.0, 1.0]), np.array([deep, high])))
    return falling, rising, middles


def shared_choice(sweep: SweepData, column: str, over: str) -> float:
    """By what factor the error of `u`'s mean rise and fall is larger than that of slices that know nothing of each other.

    Each size helps to choose the bottoms of the others, and they its own: where nothing turns, their errors go together.
    This is the largest factor there is, of a flat truth and normal errors; where there is a clear bottom it is nearer to 1.
    """
    slices = [cells.dropna(subset=[column]) for cells in sweep.over_seeds.slices(over)]
    groups: dict[float, list[tuple[float, int]]] = {}
    for cells in slices:
        values = int(cells[over].nunique())
        if values > 2:
            groups.setdefault(cells["tokens"].iloc[0], []).append((cells["parameters"].iloc[0], values))
    factors = [_error_of_choice(len({N for N, _ in group}), max(v for _, v in group)) for group in groups.values()]
    return max(factors, default=1.0)


@lru_cache
def _error_of_choice(sizes: int, values: int) -> float:
    if sizes < 2:
        return 1.0
    y = np.random.default_rng(0).standard_normal((10_000, sizes, values))
    centred = y - y.mean(axis=2, keepdims=True)
    others = (centred.sum(axis=1, keepdims=True) - centred)[:, :, 1:-1]
    bottom = np.take_along_axis(y, others.argmin(axis=2)[:, :, None] + 1, axis=2)[:, :, 0]
    return max(1.0, float((y[:, :, -1] - bottom).mean(axis=1).std()) / math.sqrt(2 / sizes))


def spearman(cells: pd.DataFrame, x: str, y: str) -> Callable[[Array], Array]:
    """Spearman's correlation of two columns."""
    first, second = cells[x].to_numpy(float), cells[y].to_numpy(float)
    return lambda w: statistics.spearman(first, second, w)


def given_settings(cells: pd.DataFrame, sweep: SweepData, x: str, y: str) -> Callable[[Array], Array]:
    """Spearman's correlation of two columns given all settings that vary."""
    first, second, controls = cells[x].to_numpy(float), cells[y].to_numpy(float), sweep.controls.loc[cells.index]
    held = controls.loc[:, controls.nunique() > 1].to_numpy(float)
    return lambda w: statistics.partial_spearman(first, second, held, w)


def within_sizes(cells: pd.DataFrame, x: str, y: str) -> Callable[[Array], Array]:
    """Spearman's correlation of the ranks within each size, as shares of it, about its mean: pooled over the sizes."""
    first, second, size = (cells[c].to_numpy(float) for c in (x, y, "parameters"))

    def pooled(weights: Array) -> Array:
        xx, yy, xy = (np.zeros(len(weights)) for _ in range(3))
        for s in np.unique(size):
            w = weights * (size == s)
            count = w.sum(axis=1, keepdims=True)
            a, b = (statistics.ranks(values, w) / np.maximum(count, 1) for values in (first, second))
            a, b = (r - (w * r).sum(axis=1, keepdims=True) / np.maximum(count, 1) for r in (a, b))
            xx += (w * a * a).sum(axis=1)
            yy += (w * b * b).sum(axis=1)
            xy += (w * a * b).sum(axis=1)
        return np.asarray(xy / np.sqrt(xx * yy))

    return pooled


def between(name: str, keep: Callable[[pd.DataFrame, pd.Series], pd.DataFrame], cells: pd.DataFrame) -> pd.DataFrame:
    """A slice's cells at two of its values, where it has at least three."""
    return keep(cells, cells[name]) if cells[name].nunique() > 2 else cells.head(0)


def within_size_spread(cells: pd.DataFrame, column: str) -> float:
    """Standard deviation of a column about the mean of its size."""
    if column not in cells or not len(cells):
        return 0.0
    return float(about_size(cells[column], cells).std())


def about_size(values: pd.Series, cells: pd.DataFrame) -> pd.Series:
    """A column about the mean of its size."""
    return values - values.groupby(cells["parameters"]).transform("mean")


def deviation(values: pd.Series, weights: Array) -> Array:
    """Standard deviation, of each resample."""
    v = values.to_numpy(float)
    v = v - v.mean()
    total = weights.sum(axis=1)
    mean = weights @ v / total
    return np.asarray(np.sqrt(np.maximum(weights @ v**2 / total - mean**2, 0)))


def interquartile_range(values: pd.Series, weights: Array) -> Array:
    """The distance of the quartiles, of each resample."""
    low, _, high = _quartiles(values, weights)
    return high - low


def relative_range(values: pd.Series, weights: Array) -> Array:
    """Interquartile range over median, of each resample."""
    low, middle, high = _quartiles(values, weights)
    return np.asarray((high - low) / np.abs(middle))


def _quartiles(values: pd.Series, weights: Array) -> tuple[Array, Array, Array]:
    v = values.to_numpy(float)
    order = np.argsort(v)
    share = np.cumsum(weights[:, order], axis=1) / weights.sum(axis=1, keepdims=True)
    low, middle, high = (v[order][np.argmax(share >= q - 1e-12, axis=1)] for q in (0.25, 0.5, 0.75))
    return low, middle, high


def spread_among_equals(cells: pd.DataFrame, sweep: SweepData, of: str, at: str) -> Callable[[Array], Array]:
    """The spread among same-size pairs that are close in `at`, over that of all same-size pairs."""
    first, second = np.triu_indices(len(cells), 1)
    size, spread_in, equal_in = (cells[c].to_numpy(float) for c in ("parameters", of, at))
    configuration = sweep.configurations[cells.index]
    # Two seeds of one configuration are one model twice.
    same = (size[first] == size[second]) & (configuration[first] != configuration[second])
    first, second = first[same], second[same]
    apart, of_size = np.abs(equal_in[first] - equal_in[second]), size[first]
    close = np.zeros(len(first), dtype=bool)
    for s in np.unique(of_size):
        close[of_size == s] = apart[of_size == s] <= np.quantile(apart[of_size == s], 0.1)
    spread = np.abs(spread_in[first] - spread_in[second])

    def ratio(weights: Array) -> Array:
        pairs = weights[:, first] * weights[:, second]
        near = pairs * close
        return np.asarray((near @ spread / near.sum(axis=1)) / (pairs @ spread / pairs.sum(axis=1)))

    return lambda weights: np.concatenate([ratio(weights[some]) for some in _in_parts(len(weights), len(first))])


def distances(
    cells: pd.DataFrame, groups: npt.NDArray[np.int64], of: str, at: str, noise_of: Noise, noise_at: Noise
) -> Callable[[Array], Array]:
    """Of weights (B, n): (B,) the mean distance of pairs in `of`, over the standard deviation between seeds of their size.

    Pairs are of one size and two configurations, and differ in `at` by less than two seeds do in 95% of cases. The mean is
    that of the means of sizes: where the noise is large most pairs are close. A deviation known from few seeds is smaller
    than the true one more often than not, and its reciprocal too large on average: it is corrected for that.
    """
    first, second = np.triu_indices(len(cells), 1)
    size = cells["size"].to_numpy(object)
    values, close_in = cells[of].to_numpy(float), cells[at].to_numpy(float)
    reach = 1.96 * np.sqrt(2) * np.array([noise_at[s][0] for s in size])
    kept = (size[first] == size[second]) & (groups[first] != groups[second])
    kept &= np.abs(close_in[first] - close_in[second]) <= reach[first]
    first, second = first[kept], second[kept]
    over = {s: 1 / (deviation * mean_reciprocal(freedom)) for s, (deviation, freedom) in noise_of.items()}
    apart = np.abs(values[first] - values[second]) * np.array([over[s] for s in size[first]])

    def distance(weights: Array) -> Array:
        means = np.full((len(noise_of), len(weights)), np.nan)
        for mean, s in zip(means, noise_of, strict=True):
            one, other, far = (values[size[first] == s] for values in (first, second, apart))
            for some in _in_parts(len(weights), len(one)):
                pairs = weights[some][:, one] * weights[some][:, other]
                count = pairs.sum(axis=1)
                mean[some] = pairs @ far / np.where(count > 0, count, np.nan)
        with warnings.catch_warnings():  # A resample may have no such pair.
            warnings.simplefilter("ignore", RuntimeWarning)
            return np.asarray(np.nanmean(means, axis=0))

    return distance


def mean_reciprocal(freedom: int) -> float:
    """The mean of 1 / s over a standard deviation of 1, where s is its estimate from normal values; two degrees at least."""
    return math.sqrt(freedom / 2) * math.exp(math.lgamma((freedom - 1) / 2) - math.lgamma(freedom / 2))


def _in_parts(resamples: int, pairs: int) -> list[slice]:
    """Slices of the resamples: there are many pairs of cells, so that some are taken at a time."""
    at_once = max(1, 10_000_000 // max(1, pairs))
    return [slice(start, start + at_once) for start in range(0, resamples, at_once)]


def percentiles(cells: pd.DataFrame, column: str) -> Array:
    """(n,) where each cell is in a column among its size: 0 the lowest, 1 the highest."""
    by_size = cells.groupby("parameters")[column]
    return np.asarray((by_size.rank() - 0.5) / by_size.transform("size"), dtype=float)


def at_end(cells: pd.DataFrame, column: str, end: str) -> Array:
    """(n,) 1 for the tenth of each size, at least one cell, that is lowest or highest in a column, else 0."""
    by_size = cells.groupby("parameters")[column]
    rank, count = by_size.rank(ascending=end == "lowest", method="first"), by_size.transform("size")
    return np.asarray(rank <= np.ceil(count / 10), dtype=float)


def task_of(sweep: SweepData, column: str) -> str | None:
    """The task whose loss a column is, where the sweep has it."""
    return next((task for task, of_task in sweep.tasks.items() if of_task == column), None)


def task_name(column: str) -> str:
    """The task whose loss a column is, whether the sweep has it or not."""
    return PAPER_TASKS.get(column, column.removesuffix("_loss"))


SPREADS: dict[str, tuple[str, int | None, Callable[[pd.Series, Array], Array]]] = {
    "deviation": ("standard deviation", None, deviation),
    "interquartile_range": ("interquartile range", 12, interquartile_range),
    "relative_range": ("interquartile range / median", 12, relative_range),
}
"""Measure -> its words, the digits that count, and the statistic."""
