"""Tests of how columns are spread over the cells, and of which cells are at an end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pandas as pd

from raysweep.analysis.columns import words
from raysweep.analysis.findings import Array, Finding, of_mean
from raysweep.analysis.hypothesis_statistics import SPREADS, spread_among_equals
from raysweep.analysis.measured import Measured
from raysweep.analysis.trajectories import few_steps
from raysweep.analysis.trajectories import late_rise as late_rises


def spread(m: Measured) -> Iterator[Finding]:
    of, minus = m.column(m.spec.of), m.column(m.spec.minus)
    what, digits, spread = SPREADS[m.spec.measure]

    def difference(cells: pd.DataFrame) -> Callable[[Array], Array]:
        def of_weights(w: Array) -> Array:
            apart = spread(cells[of], w) - spread(cells[minus], w)
            return apart if digits is None else np.round(apart, digits)

        return of_weights

    yield m.resampled(f"{what}, {m.words(m.spec.of)} minus {m.words(m.spec.minus)}", (of, minus), difference)


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


def under_trained(m: Measured) -> Iterator[Finding]:
    column = m.column(m.spec.of)

    def percentile_of(cells: pd.DataFrame) -> Callable[[Array], Array]:
        by_size = cells.groupby("parameters")
        percentile = ((by_size[column].rank() - 0.5) / by_size[column].transform("size")).to_numpy(float)
        large = cells["batch_size"] > by_size["batch_size"].transform("median")
        short = (few_steps(cells) & large).to_numpy(float)
        return lambda w: (w * short) @ percentile / (w * short).sum(axis=1)

    yield m.resampled(
        f"mean within-size percentile of the {m.words(m.spec.of)} of cells with at most half the median steps and a batch "
        "above the median", (column,), percentile_of,
    )  # fmt: skip


def late_rise(m: Measured) -> Iterator[Finding]:
    over, sweep = m.spec.over, m.tests.sweep
    rise = late_rises(sweep.trajectories)
    lowest = [cells["id"].iloc[0] for cells in sweep.slices(over)]
    rises = sweep.cells.assign(rise=sweep.cells["id"].map(rise))[sweep.cells["id"].isin(lowest)].dropna(subset=["rise"])
    # Seeds of a configuration are one observation.
    means = rises.groupby(sweep.configurations[rises.index])["rise"].mean().to_numpy(float)
    name = f"mean rise of the validation loss above its lowest, at the lowest {words(over)} (fraction of the loss)"
    yield of_mean(m.called(name), m.rule, means)
