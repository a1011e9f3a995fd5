"""Tests of how two columns go together: correlations, lines, and what one column adds to predictions of another."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd

from raysweep.analysis import statistics
from raysweep.analysis.findings import Array, Finding
from raysweep.analysis.hypothesis_statistics import (
    about_size,
    given_settings,
    spearman,
    task_name,
    task_of,
    within_sizes,
)
from raysweep.analysis.measured import Measured
from raysweep.analysis.regressions import folds_of

_STATISTICS = {
    "nothing": "raw_spearman",
    "line": "residual_spearman_linear",
    "law": "residual_spearman_chinchilla",
    "settings": "partial_spearman",
}


def correlation(m: Measured) -> Iterator[Finding]:
    of, other, given = m.column(m.spec.of), m.column(m.spec.with_), m.spec.given
    pair = f"{m.words(m.spec.of)} and {m.words(m.spec.with_)}"
    task = task_of(m.of_sweep.sweep, other)
    statistic = _STATISTICS.get(given, "")
    if m.spec.size is not None:
        yield _of_sizes(m, of, other)
    elif (not m.narrowed and (task, of, statistic) in m.of_sweep.regressions.index) or (
        # The table leaves out metrics of one layer, and these two are made by no other code.
        given in ("line", "law") and task is not None and m.of_sweep.has(task, of)
    ):
        finding = m.of_sweep.regression(str(task), of, statistic, m.rule)
        yield replace(finding, effect=m.called(finding.effect))
    elif given in ("line", "law"):
        name = m.called(f"Spearman of {pair}, given the {given}")
        yield Finding(name, m.rule, reason="a metric and a task's loss are needed, in this order")
    elif given == "settings":
        statistic_of = partial(given_settings, sweep=m.tests.sweep, x=of, y=other)
        yield m.resampled(f"Partial Spearman, {pair}", (of, other), statistic_of)
    elif given == "size":
        yield m.resampled(
            f"Spearman within sizes of {pair}", (of, other, "parameters"), partial(within_sizes, x=of, y=other)
        )
    else:
        yield m.resampled(f"Spearman of {pair}", (of, other), partial(spearman, x=of, y=other))


def _of_sizes(m: Measured, of: str, other: str) -> Finding:
    # The ends of what is planned: else the smallest that is finished would stand for the smallest.
    planned = m.tests.sweep.planned_sizes if m.test.among.sizes is None else ()
    sizes = planned or (sorted(m.tests.cells["parameters"].unique()) if len(m.tests.cells) else [])
    ends = {"smallest": sizes[0], "largest": sizes[-1]} if sizes else {}
    chosen = [ends[end] for end in (m.spec.size, m.spec.minus_size) if end in ends]

    def at(size: float) -> Callable[[pd.DataFrame], Callable[[Array], Array]]:
        def correlation(cells: pd.DataFrame) -> Callable[[Array], Array]:
            here = (cells["parameters"] == size).to_numpy(float)
            x, y = cells[of].to_numpy(float), cells[other].to_numpy(float)
            return lambda w: statistics.spearman(x, y, w * here)

        return correlation

    def difference(cells: pd.DataFrame) -> Callable[[Array], Array]:
        parts = [at(size)(cells) for size in chosen]
        return lambda w: parts[0](w) - parts[1](w) if len(parts) > 1 else parts[0](w)

    end = f"{m.spec.size} size" + (f" minus {m.spec.minus_size}" if m.spec.minus_size else "")
    name = m.called(f"Spearman of {m.words(m.spec.of)} and {m.words(m.spec.with_)}, {end}")
    if m.spec.minus_size and len(set(chosen)) < 2:
        return Finding(name, m.rule, reason="all cells are of one size")
    return m.resampled(name, (of, other), difference, only=chosen)


def attenuation(m: Measured) -> Iterator[Finding]:
    of, other = m.column(m.spec.of), m.column(m.spec.with_)

    def both(cells: pd.DataFrame) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
        return spearman(cells, of, other), given_settings(cells, m.tests.sweep, of, other)

    def gone(cells: pd.DataFrame) -> Callable[[Array], Array]:
        raw, given = both(cells)
        return lambda w: np.abs(raw(w)) - np.abs(given(w))

    name = f"|raw| minus |partial| Spearman, {m.words(m.spec.of)} and {m.words(m.spec.with_)}"
    found = m.resampled(name, (of, other), gone)
    if math.isfinite(found.low):
        cells = m.tests.cells.dropna(subset=[of, other])
        raw, given = (of_weights(statistics.sample(len(cells)))[0] for of_weights in both(cells))
        found = replace(found, reason=f"raw {raw:.3f}, partial {given:.3f}")
    yield found


def closer(m: Measured) -> Iterator[Finding]:
    columns = tuple(m.column(name) for name in (m.spec.of, m.spec.with_, m.spec.than))

    def closer(cells: pd.DataFrame) -> Callable[[Array], Array]:
        of, other, than = (cells[c].to_numpy(float) for c in columns)
        return lambda w: np.abs(statistics.spearman(of, other, w)) - np.abs(statistics.spearman(of, than, w))

    of, other, than = (m.words(name) for name in (m.spec.of, m.spec.with_, m.spec.than))
    yield m.resampled(f"|Spearman| of {of} with {other} minus with {than}", columns, closer)


def line(m: Measured) -> Iterator[Finding]:
    x, y = m.column(m.spec.from_), m.column(m.spec.to)
    of_size = m.spec.given == "size"

    def r2(cells: pd.DataFrame) -> Callable[[Array], Array]:
        first, second = ((about_size(cells[c], cells) if of_size else cells[c]).to_numpy(float) for c in (x, y))
        return lambda w: statistics.pearson(first, second, w) ** 2

    kind = "a line within sizes" if of_size else "a line"
    yield m.resampled(
        f"R\N{SUPERSCRIPT TWO} of {kind} from {m.words(m.spec.from_)} to {m.words(m.spec.to)}", (x, y), r2
    )


def added_r2(m: Measured) -> Iterator[Finding]:
    """Of several pairs those that were measured, the largest upper end first; one that says why where there is none."""
    of, targets = (v if isinstance(v, tuple) else (v,) for v in (m.spec.of, m.spec.for_))
    pairs = [(task_name(m.column(t)), metric) for t in targets for metric in of]
    made = [m.of_sweep.regression(task, metric, "predictive_r2", m.rule) for task, metric in pairs]
    if len(pairs) == 1:
        yield replace(made[0], effect=m.called(made[0].effect))
        return
    measured = [finding for finding, pair in zip(made, pairs, strict=True) if m.of_sweep.has(*pair)]
    if not measured:
        yield Finding("R\N{SUPERSCRIPT TWO} added", m.rule, reason=f"none of the {len(pairs)} pairs was measured")
    yield from sorted(measured, key=lambda finding: -finding.high if math.isfinite(finding.high) else math.inf)


def curvature(m: Measured) -> Iterator[Finding]:
    of, of_square = m.column(m.spec.of), m.column(m.spec.in_)
    sweep = m.tests.sweep

    def columns(cells: pd.DataFrame) -> tuple[Array, Array, Array]:
        x, y = cells[of_square].to_numpy(float), cells[of].to_numpy(float)
        return x[:, None], (x - x.mean()) ** 2, y

    def bent(cells: pd.DataFrame) -> Callable[[Array], Array]:
        x, square, y = columns(cells)
        partitions = folds_of(np.unique(sweep.configurations[cells.index], return_inverse=True)[1], 3)
        return lambda w: np.mean(
            [statistics.added_r2(x, square[:, None], y, fold, w)[:, 0] for fold in partitions], axis=0
        )

    name = f"R\N{SUPERSCRIPT TWO} that the square of {m.words(m.spec.in_)} adds to a line, for {m.words(m.spec.of)}"
    found = m.resampled(
        name,
        (of_square, of),
        bent,
        interval=lambda cells, groups: statistics.added_r2_interval(*columns(cells), groups),
    )
    yield replace(found, squared=True)
