"""Tests of how columns are spread over the cells, and of which cells are at an end."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pandas as pd

from raysweep.analysis import statistics
from raysweep.analysis.columns import words
from raysweep.analysis.findings import Array, Finding, of_mean
from raysweep.analysis.hypothesis_statistics import (
    SPREADS,
    about_size,
    at_end,
    distances,
    mean_reciprocal,
    percentiles,
    spread_among_equals,
)
from raysweep.analysis.measured import Measured
from raysweep.analysis.noise import Noise, of_sizes
from raysweep.analysis.regressions import DRAWS, SEED
from raysweep.analysis.trajectories import few_steps
from raysweep.analysis.trajectories import late_rise as late_rises


def spread(m: Measured) -> Iterator[Finding]:
    of, other = m.column(m.spec.of), m.column(m.spec.minus or m.spec.over)
    what, digits, measure = SPREADS[m.spec.measure]
    within, ratio = m.spec.given == "size", m.spec.minus is None

    def compared(cells: pd.DataFrame) -> Callable[[Array], Array]:
        first, second = (about_size(cells[c], cells) if within else cells[c] for c in (of, other))

        def of_weights(w: Array) -> Array:
            spreads = measure(first, w), measure(second, w)
            apart = spreads[0] / spreads[1] if ratio else spreads[0] - spreads[1]
            return apart if digits is None else np.round(apart, digits)

        return of_weights

    where = " within sizes" if within else ""
    names = f"{m.words(m.spec.of)} {'over that of' if ratio else 'minus'} {m.words(m.spec.minus or m.spec.over)}"
    yield m.resampled(f"{what}{where}, {names}", (of, other), compared)


def mean(m: Measured) -> Iterator[Finding]:
    of, minus = m.column(m.spec.of), m.column(m.spec.minus)

    def mean(cells: pd.DataFrame) -> Callable[[Array], Array]:
        apart = (cells[of] - cells[minus]).to_numpy(float)
        return lambda w: w @ apart / w.sum(axis=1)

    yield m.resampled(f"mean {m.words(m.spec.of)} minus {m.words(m.spec.minus)}", (of, minus), mean)


def spread_at_equal(m: Measured) -> Iterator[Finding]:
    of, at = m.column(m.spec.of), m.column(m.spec.at)
    near = f"the tenth of same-size pairs closest in {m.words(m.spec.at)}"
    name = f"spread of {m.words(m.spec.of)} among {near} / among all pairs"
    yield m.resampled(name, (of, at), partial(spread_among_equals, sweep=m.tests.sweep, of=of, at=at))


def apart(m: Measured) -> Iterator[Finding]:
    of, at = m.column(m.spec.of), m.column(m.spec.at)
    name = m.called(
        f"distance in {m.words(m.spec.of)} of same-size pairs equal in {m.words(m.spec.at)} but for the noise of seeds "
        "(standard deviations between seeds)"
    )
    sweep, noise = m.tests.sweep, m.of_sweep.noise
    if missing := next((c for c in (of, at) if c not in sweep.cells), None):
        yield Finding(name, m.rule, reason=f"no cell has {words(missing) or 'a loss'}")
        return
    cells = sweep.cells.dropna(subset=[of, at])
    sizes = list(cells["size"].unique())
    noise_of, noise_at = (of_sizes(noise, column, sizes) for column in (of, at))
    if noise_of is None or noise_at is None:
        yield Finding(name, m.rule, reason="fewer than three seeds of a configuration: their noise is not known")
        return
    if any(deviation == 0 for deviation, _ in noise_of.values()):
        yield Finding(
            name, m.rule, n=len(cells), reason="seeds of a configuration do not differ in it: there is no noise"
        )
        return
    groups = sweep.configurations[cells.index]
    distance = distances(cells, groups, of, at, noise_of, noise_at)
    value = float(distance(statistics.sample(len(cells)))[0])
    if not math.isfinite(value):
        yield Finding(name, m.rule, n=len(cells), reason="no same-size pair is that close")
        return
    draws = distance(statistics.resamples(groups, DRAWS, SEED)) / _errors_of_noise(noise_of)
    yield Finding(name, m.rule, value, *statistics.percentile_interval(draws), n=len(cells))


def _errors_of_noise(noise: Noise) -> Array:
    """(DRAWS,) the factor by which distances are too large since the noise is an estimate, drawn from its distribution."""
    rng = np.random.default_rng(SEED)
    # Sizes without seeds of their own share one estimate.
    drawn = [np.sqrt(f / rng.chisquare(f, DRAWS)) / mean_reciprocal(f) for _, f in dict.fromkeys(noise.values())]
    return np.asarray(np.mean(drawn, axis=0))


def percentile(m: Measured) -> Iterator[Finding]:
    of, by = m.column(m.spec.of), m.column(m.spec.in_)

    def mean_percentile(cells: pd.DataFrame) -> Callable[[Array], Array]:
        percentile, chosen = percentiles(cells, of), at_end(cells, by, m.spec.end)
        return lambda w: (w * chosen) @ percentile / (w * chosen).sum(axis=1)

    name = (
        f"mean within-size percentile of {m.words(m.spec.of)} of the tenth with the {m.spec.end} {m.words(m.spec.in_)}"
    )
    yield m.resampled(name, (of, by), mean_percentile)


def under_trained(m: Measured) -> Iterator[Finding]:
    column = m.column(m.spec.of)

    def percentile_of(cells: pd.DataFrame) -> Callable[[Array], Array]:
        percentile = percentiles(cells, column)
        large = cells["batch_size"] > cells.groupby("parameters")["batch_size"].transform("median")
        short = (few_steps(cells) & large).to_numpy(float)
        return lambda w: (w * short) @ percentile / (w * short).sum(axis=1)

    yield m.resampled(
        f"mean within-size percentile of the {m.words(m.spec.of)} of cells with at most half the median steps and a batch "
        "above the median", (column,), percentile_of,
    )  # fmt: skip


def late_rise(m: Measured) -> Iterator[Finding]:
    over, sweep = m.over, m.tests.sweep
    rise = late_rises(sweep.trajectories)
    lowest = [cells["id"].iloc[0] for cells in sweep.slices(over)]
    rises = sweep.cells.assign(rise=sweep.cells["id"].map(rise))[sweep.cells["id"].isin(lowest)].dropna(subset=["rise"])
    # Seeds of a configuration are one observation.
    means = rises.groupby(sweep.configurations[rises.index])["rise"].mean().to_numpy(float)
    name = f"mean rise of the validation loss above its lowest, at the lowest {words(over)} (fraction of the loss)"
    yield of_mean(m.called(name), m.rule, means)
