"""Rank correlations, residuals and cross-validation, of one sample or of thousands of bootstrap resamples at once.

A resample is a row of weights: how often each of the n cells is in it. Every function takes weights (B, n) and gives one
number for each row; a row of ones is the sample itself, and the result is then the textbook one. Working on weights
makes the bootstrap a few matrix products instead of B passes through a library: tests compare each function with scipy,
scikit-learn and pingouin, on the sample and on resamples spelled out as repeated rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

Array = npt.NDArray[np.float64]

_TINY = 1e-12


def sample(n: int) -> Array:
    """(1, n) the weights of the sample itself."""
    return np.ones((1, n))


def resamples(groups: npt.ArrayLike, draws: int, seed: int) -> Array:
    """(draws, n) weights of bootstrap resamples that draw whole groups with replacement.

    `groups` (n,) numbers what belongs together: cells that differ by their seed only are drawn together, since they are
    repetitions of one configuration.
    """
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    count = int(group.max()) + 1
    drawn = np.random.default_rng(seed).integers(count, size=(draws, count))
    weights = np.zeros((draws, count))
    np.add.at(weights, (np.arange(draws)[:, None], drawn), 1.0)
    return np.asarray(weights[:, group])


def jackknife(groups: npt.ArrayLike) -> Array:
    """(groups, n) weights that leave out one group each."""
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    return np.asarray(1.0 - (group[None, :] == np.arange(group.max() + 1)[:, None]))


def ranks(values: Array, weights: Array) -> Array:
    """(B, n) the average rank of each value within each resample, as if every cell stood there `weights` times.

    `values` is (n,), the same for all resamples, or (B, n). The rank of a cell that is absent from a resample has no
    meaning, and no weight.
    """
    if values.ndim == 1:
        levels, inverse = np.unique(values, return_inverse=True)
        onehot = np.zeros((len(values), len(levels)))
        onehot[np.arange(len(values)), inverse] = 1.0
        at_level = weights @ onehot
        return np.asarray((np.cumsum(at_level, axis=1) - at_level / 2 + 0.5)[:, inverse])
    order = np.argsort(values, axis=1, kind="stable")
    ordered = np.take_along_axis(values, order, 1)
    after = np.cumsum(np.take_along_axis(weights, order, 1), axis=1)
    before = np.concatenate([np.zeros((len(weights), 1)), after[:, :-1]], axis=1)
    # Equal values share the weight from before the first of them to after the last.
    first = np.ones(values.shape, dtype=bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    last = np.concatenate([first[:, 1:], np.ones((len(weights), 1), dtype=bool)], axis=1)
    low = np.maximum.accumulate(np.where(first, before, -np.inf), axis=1)
    high = np.minimum.accumulate(np.where(last, after, np.inf)[:, ::-1], axis=1)[:, ::-1]
    result = np.empty_like(ordered)
    np.put_along_axis(result, order, (low + high + 1) / 2, 1)
    return result


def pearson(x: Array, y: Array, weights: Array) -> Array:
    """(B,) the weighted Pearson correlation; NaN where either side is constant."""
    total = weights.sum(axis=1, keepdims=True)
    x = x - (weights * x).sum(axis=1, keepdims=True) / total
    y = y - (weights * y).sum(axis=1, keepdims=True) / total
    xx, yy, xy = ((weights * a * b).sum(axis=1) for a, b in ((x, x), (y, y), (x, y)))
    defined = (xx > _TINY * total[:, 0]) & (yy > _TINY * total[:, 0])
    return np.where(defined, xy / np.sqrt(np.where(defined, xx * yy, 1.0)), np.nan)


def spearman(x: Array, y: Array, weights: Array) -> Array:
    """(B,) Spearman's rank correlation of `x` and `y`, each (n,) or (B, n)."""
    return pearson(ranks(x, weights), ranks(y, weights), weights)


def linear_residuals(y: Array, features: Array, weights: Array) -> Array:
    """(B, n) residuals of `y` (n,) after least squares on `features` (n, p) and an intercept, fitted to each resample."""
    design = _design(_standardised(features))
    inverse, right = _normal_equations(design, y, weights)
    return np.asarray(y - (inverse @ right[:, :, None])[:, :, 0] @ design.T)


def partial_spearman(x: Array, y: Array, controls: Array, weights: Array) -> Array:
    """(B,) Spearman correlation of `x` and `y` given `controls` (n, c): the partial correlation of the ranks.

    The correlation of what is left of the ranks of x and y after a linear regression on the ranks of the controls;
    controls that are linear functions of each other are no obstacle. NaN where nothing is left of either.
    """
    ranked = np.stack([ranks(v, weights) for v in (x, y, *controls.T)], axis=2)
    ranked -= (weights[:, :, None] * ranked).sum(axis=1, keepdims=True) / weights.sum(axis=1)[:, None, None]
    covariance = np.matmul((weights[:, :, None] * ranked).transpose(0, 2, 1), ranked)
    variance = np.diagonal(covariance, axis1=1, axis2=2)
    scale = np.sqrt(np.where(variance > _TINY, variance, 1.0))
    correlation = covariance / scale[:, :, None] / scale[:, None, :]
    among, across = correlation[:, 2:, 2:], correlation[:, 2:, :2]
    left = (
        correlation[:, :2, :2] - across.transpose(0, 2, 1) @ np.linalg.pinv(among, rcond=1e-10, hermitian=True) @ across
    )
    xx, yy, xy = left[:, 0, 0], left[:, 1, 1], left[:, 0, 1]
    defined = (xx > 1e-9) & (yy > 1e-9)
    return np.where(defined, xy / np.sqrt(np.where(defined, xx * yy, 1.0)), np.nan)


def added_r2(baseline: Array, metrics: Array, y: Array, fold: npt.NDArray[np.int64], weights: Array) -> Array:
    """(B, m) what each of `metrics` (n, m), alone, adds to the R² of out-of-fold predictions of `y` (n,).

    Predictions are by least squares on `baseline` (n, p), without and with the metric, fitted to the other folds; R² is
    that of all predictions together, 1 - sum (y - prediction)² / sum (y - mean)². `fold` is (n,) or (B, n). A metric that
    is a linear function of the baseline in the fitted folds adds nothing there.
    """
    # Columns of one size; a change of units changes no prediction of least squares.
    design = _design(_standardised(baseline))
    metrics = _standardised(metrics)
    fold = np.broadcast_to(fold, weights.shape)
    total = (weights * (y - (weights @ y / weights.sum(axis=1))[:, None]) ** 2).sum(axis=1)
    gained = np.zeros((len(weights), metrics.shape[1]))
    for k in np.unique(fold):
        held_out = weights * (fold == k)
        fitted = weights - held_out
        inverse, right = _normal_equations(design, y, fitted)
        residual = y - (inverse @ right[:, :, None])[:, :, 0] @ design.T
        # The metric's own coefficient is that of y's residual on the metric's residual (Frisch and Waugh 1933), so the
        # baseline is solved once for all metrics.
        for m, metric in enumerate(metrics.T):
            by_baseline = (inverse @ (fitted @ (design * metric[:, None]))[:, :, None])[:, :, 0]
            left = metric - by_baseline @ design.T
            variance = (fitted * left**2).sum(axis=1)
            varies = variance > 1e-9 * fitted.sum(axis=1)
            slope = np.where(varies, (fitted * left * residual).sum(axis=1) / np.where(varies, variance, 1.0), 0.0)
            gained[:, m] += (held_out * (residual**2 - (residual - slope[:, None] * left) ** 2)).sum(axis=1)
    return np.where(total[:, None] > _TINY, gained / np.where(total > _TINY, total, 1.0)[:, None], np.nan)


def semipartial(baseline: Array, metrics: Array, y: Array, weights: Array) -> Array:
    """(B, m) the semipartial correlation of `y` (n,) with each of `metrics` (n, m), from which `baseline` (n, p) is taken.

    Its square is what the metric adds to the R² of least squares on the baseline (Cohen, Cohen, West and Aiken 2003, 3.3.2).
    NaN where the baseline determines the metric.
    """
    design = _design(_standardised(baseline))
    inverse, right = _normal_equations(design, y, weights)
    residual = y - (inverse @ right[:, :, None])[:, :, 0] @ design.T
    total = (weights * (y - (weights @ y / weights.sum(axis=1))[:, None]) ** 2).sum(axis=1)
    found = np.full((len(weights), metrics.shape[1]), np.nan)
    for m, metric in enumerate(_standardised(metrics).T):
        by_baseline = (inverse @ (weights @ (design * metric[:, None]))[:, :, None])[:, :, 0]
        left = metric - by_baseline @ design.T
        variance = (weights * left**2).sum(axis=1)
        defined = (variance > 1e-9 * weights.sum(axis=1)) & (total > _TINY)
        scale = np.sqrt(np.where(defined, variance * total, 1.0))
        found[:, m] = np.where(defined, (weights * left * residual).sum(axis=1) / scale, np.nan)
    return found


def added_r2_interval(baseline: Array, metric: Array, y: Array, groups: npt.ArrayLike) -> tuple[float, float]:
    """The 95% interval of what `metric` (n,) adds to the R² of predictions of `y` (n,) by `baseline` (n, p).

    Student's t interval of the semipartial correlation, its error by the jackknife over groups, and squared. A square would
    leave out zero always: an end where the correlation has the other sign gets a minus sign, so that zero is left out where
    the correlation is not zero. Resamples of what cross-validation gains, and its variance over folds, cover zero in nearly
    100% of samples where nothing is added: it varies less there than their own error says. NaN where the baseline determines
    the metric.
    """
    every = jackknife(groups)
    root = float(np.abs(semipartial(baseline, metric[:, None], y, sample(len(y)))[0, 0]))
    left_out = semipartial(baseline, metric[:, None], y, every)[:, 0]
    count, freedom = len(every), len(every) - baseline.shape[1] - 2
    if not np.isfinite(root) or not np.isfinite(left_out).all() or freedom < 1:
        return float("nan"), float("nan")
    error = np.sqrt((count - 1) / count * ((left_out - left_out.mean()) ** 2).sum())
    ends = root + np.array([-1, 1]) * stats.t.ppf(0.975, freedom) * error
    low, high = np.sign(ends) * ends**2
    return float(low), float(min(high, 1.0))


def percentile_interval(draws: Array) -> tuple[float, float]:
    """The 2.5th and 97.5th percentile of what the resamples gave; NaN where more than a tenth of them gave nothing."""
    defined = draws[np.isfinite(draws)]
    if len(defined) < 0.9 * len(draws):
        return float("nan"), float("nan")
    low, high = np.percentile(defined, [2.5, 97.5])
    return float(low), float(high)


def basic_interval(value: float, draws: Array) -> tuple[float, float]:
    """The basic 95% bootstrap interval: the estimate minus the 97.5th and the 2.5th percentile of the draws' error.

    For estimates that a resample biases, such as a cross-validated R²: each resample has fewer different cells than the
    sample. NaN where more than a tenth of the resamples gave nothing.
    """
    low, high = percentile_interval(draws)
    return 2 * value - high, 2 * value - low


def bca_interval(value: float, draws: Array, left_out: Array) -> tuple[float, float]:
    """The bias-corrected and accelerated 95% bootstrap interval (Efron 1987) of an estimate.

    `draws` are the resamples' values, `left_out` the jackknife's. NaN where more than a tenth of the resamples gave
    nothing.
    """
    defined = draws[np.isfinite(draws)]
    if len(defined) < 0.9 * len(draws) or not np.isfinite(value):
        return float("nan"), float("nan")
    below = (np.mean(defined < value) + np.mean(defined <= value)) / 2
    bias = stats.norm.ppf(np.clip(below, 0.5 / len(defined), 1 - 0.5 / len(defined)))
    change = left_out[np.isfinite(left_out)]
    change = change.mean() - change
    scale = float((change**2).sum() ** 1.5)
    acceleration = float((change**3).sum()) / (6 * scale) if scale > 0 else 0.0
    z = bias + stats.norm.ppf([0.025, 0.975])
    low, high = np.percentile(defined, 100 * stats.norm.cdf(bias + z / (1 - acceleration * z)))
    return float(low), float(high)


def _design(features: Array) -> Array:
    return np.column_stack([np.ones(len(features)), features])


def _standardised(features: Array) -> Array:
    spread = features.std(axis=0)
    return np.asarray((features - features.mean(axis=0)) / np.where(spread > 0, spread, 1.0))


def _normal_equations(design: Array, y: Array, weights: Array) -> tuple[Array, Array]:
    """(B, p, p) the pseudo-inverse of XᵀWX, and (B, p) XᵀWy."""
    n, p = design.shape
    products = (design[:, :, None] * design[:, None, :]).reshape(n, p * p)
    normal = (weights @ products).reshape(-1, p, p)
    return np.linalg.pinv(normal, rcond=1e-12, hermitian=True), weights @ (design * y[:, None])


def finite(*columns: Any) -> npt.NDArray[np.bool_]:
    """(n,) where every column has a number."""
    return np.asarray(np.logical_and.reduce([np.isfinite(np.asarray(c, dtype=float)) for c in columns]))
