"""What each kind of test in a file of hypotheses measures (`raysweep.space.hypotheses` says what they are).

A kind is a function of the sweep's `Tests` and of one test, and gives its findings: one, or one for each pair of columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from raysweep.analysis import statistics
from raysweep.analysis.columns import words
from raysweep.analysis.findings import Array, Finding, Tests, of_effect, of_mean
from raysweep.analysis.hypothesis_statistics import (
    SPREADS,
    between,
    given_settings,
    spearman,
    spread_at_equal,
    task_name,
    task_of,
    u,
    within_size_spread,
    within_sizes,
)
from raysweep.analysis.regressions import DRAWS, SEED, folds_of
from raysweep.analysis.trajectories import few_steps, late_rise
from raysweep.analysis.trends import effect, of_lowest_and_middle, of_middle_and_highest, slopes
from raysweep.space.hypotheses import Among, Test

FEWEST_SLOPES = 6
"""Comparisons of one hyperparameter from which their mean change is resampled."""

_STATISTICS = {
    "nothing": "raw_spearman",
    "line": "residual_spearman_linear",
    "law": "residual_spearman_chinchilla",
    "settings": "partial_spearman",
}


def findings(tests: Tests, test: Test) -> list[Finding]:
    """What a test measures, on the cells that it is about."""
    measured = _Measured(tests, test)
    for name in measured.columns:
        if name in tests.cells and not pd.api.types.is_numeric_dtype(tests.cells[name]):
            return [Finding(measured.called(test.kind), measured.rule, reason=f"{words(name)} is no number")]
    return list(_KINDS[test.kind](measured))


@dataclass(frozen=True)
class _Measured:
    """One test on one sweep, with the words and bounds that it uses."""

    of_sweep: Tests
    test: Test

    @property
    def spec(self) -> Any:
        """The kind's own fields."""
        return getattr(self.test, self.test.kind)

    @property
    def tests(self) -> Tests:
        """The tests on the cells that this one is about."""
        among, cells = self.test.among, self.of_sweep.cells
        kept = pd.Series(True, index=cells.index)
        if among.tokens_per_parameter is not None:
            kept &= cells["tokens"] >= among.tokens_per_parameter * cells["parameters"]
        if among.block is not None and "block" in cells:
            kept &= cells["block"] == among.block
        if among.sizes is not None:
            sizes = np.sort(cells["parameters"].unique())
            half = (len(sizes) + 1) // 2
            kept &= cells["parameters"].isin(sizes[:half] if among.sizes == "smaller half" else sizes[-half:])
        return self.of_sweep if kept.all() else replace(self.of_sweep, sweep=self.of_sweep.sweep.of(kept))

    @property
    def columns(self) -> list[str]:
        """The columns that the test names."""
        named = [getattr(self.spec, field, ()) for field in ("of", "with_", "for_", "to", "minus", "in_")]
        return [self.column(name) for value in named for name in (value if isinstance(value, tuple) else (value,))]

    @property
    def narrowed(self) -> bool:
        """Whether it is about some cells only."""
        return self.test.among != Among()

    def column(self, name: str) -> str:
        """The column of a name in the file."""
        return self.of_sweep.loss if name == "loss" else name

    def words(self, name: str) -> str:
        return self.of_sweep.loss_words if name == "loss" else words(name)

    def called(self, default: str = "") -> str:
        """What tables call the effect."""
        if not self.test.called:
            return default
        of = getattr(self.spec, "of", "")
        said = self.test.called.replace("{loss}", self.of_sweep.loss_words)
        return said.replace("{of}", self.words(of) if isinstance(of, str) else "")

    @property
    def rule(self) -> str:
        """What is expected, in numbers."""
        kind, _, rest = self.test.expect.partition(" ")
        if kind != "within":
            return self.test.expect
        number, _, spreads = rest.partition(" ")
        if not spreads:
            return f"within \N{PLUS-MINUS SIGN}{number}"
        margin = float(number) * within_size_spread(self.of_sweep.cells, self.column(self.spec.of))
        return f"within \N{PLUS-MINUS SIGN}{margin:.3g}" if margin > 0 else "within \N{PLUS-MINUS SIGN}0.01"

    def resampled(
        self, default: str, columns: tuple[str, ...], statistic: Callable[[pd.DataFrame], Callable[[Array], Array]],
        **more: Any,
    ) -> Finding:  # fmt: skip
        return self.tests.resampled(self.called(default), self.rule, columns, statistic, **more)


def _correlation(m: _Measured) -> Iterator[Finding]:
    of, other, given = m.column(m.spec.of), m.column(m.spec.with_), m.spec.given
    pair = f"{m.words(m.spec.of)} and {m.words(m.spec.with_)}"
    task = task_of(m.of_sweep.sweep, other)
    statistic = _STATISTICS.get(given, "")
    if m.spec.size is not None:
        yield _of_sizes(m, of, other)
    elif not m.narrowed and (task, of, statistic) in m.of_sweep.regressions.index:
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


def _of_sizes(m: _Measured, of: str, other: str) -> Finding:
    sizes = sorted(m.tests.cells["parameters"].unique()) if len(m.tests.cells) else []
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


def _attenuation(m: _Measured) -> Iterator[Finding]:
    of, other = m.column(m.spec.of), m.column(m.spec.with_)

    def gone(cells: pd.DataFrame) -> Callable[[Array], Array]:
        raw, given = spearman(cells, of, other), given_settings(cells, m.tests.sweep, of, other)
        return lambda w: np.abs(raw(w)) - np.abs(given(w))

    name = f"|raw| minus |partial| Spearman, {m.words(m.spec.of)} and {m.words(m.spec.with_)}"
    yield m.resampled(name, (of, other), gone)


def _closer(m: _Measured) -> Iterator[Finding]:
    columns = tuple(m.column(name) for name in (m.spec.of, m.spec.with_, m.spec.than))

    def closer(cells: pd.DataFrame) -> Callable[[Array], Array]:
        of, other, than = (cells[c].to_numpy(float) for c in columns)
        return lambda w: np.abs(statistics.spearman(of, other, w)) - np.abs(statistics.spearman(of, than, w))

    of, other, than = (m.words(name) for name in (m.spec.of, m.spec.with_, m.spec.than))
    yield m.resampled(f"|Spearman| of {of} with {other} minus with {than}", columns, closer)


def _line(m: _Measured) -> Iterator[Finding]:
    x, y = m.column(m.spec.from_), m.column(m.spec.to)
    yield m.resampled(
        f"R\N{SUPERSCRIPT TWO} of a line from {m.words(m.spec.from_)} to {m.words(m.spec.to)}", (x, y),
        lambda cells: lambda w: statistics.pearson(cells[x].to_numpy(float), cells[y].to_numpy(float), w) ** 2,
    )  # fmt: skip


def _added_r2(m: _Measured) -> Iterator[Finding]:
    """Of several pairs those that were measured, the largest upper end first; one that says why where there is none."""
    of, targets = (v if isinstance(v, tuple) else (v,) for v in (m.spec.of, m.spec.for_))
    pairs = [(task_name(m.column(t)), metric) for t in targets for metric in of]
    made = [m.of_sweep.regression(task, metric, "predictive_r2", m.rule) for task, metric in pairs]
    if len(pairs) == 1:
        yield replace(made[0], effect=m.called(made[0].effect))
        return
    table = m.of_sweep.regressions
    measured = [
        f for f, (task, metric) in zip(made, pairs, strict=True) if (task, metric, "predictive_r2") in table.index
    ]
    if not measured:
        yield Finding("R\N{SUPERSCRIPT TWO} added", m.rule, reason=f"none of the {len(pairs)} pairs was measured")
    yield from sorted(measured, key=lambda finding: -finding.high if math.isfinite(finding.high) else math.inf)


def _trend(m: _Measured) -> Iterator[Finding]:
    over = m.spec.over

    def ends(cells: pd.DataFrame) -> pd.DataFrame:
        return cells[cells[over].isin([cells[over].min(), cells[over].max()])]

    halves = {("lowest", "middle"): of_lowest_and_middle, ("middle", "highest"): of_middle_and_highest}
    keep: Callable[[pd.DataFrame], pd.DataFrame] = ends if m.spec.only_ends else lambda cells: cells
    if (half := halves.get((m.spec.from_, m.spec.to))) is not None:
        keep = partial(between, over, half)
    yield m.tests.trend(
        over, m.column(m.spec.of), m.called(m.words(m.spec.of)), m.rule, keep=keep, equal_steps=m.spec.equal_steps,
        ends=f"{m.spec.from_} to the {m.spec.to}",
    )  # fmt: skip


def _at(m: _Measured) -> Iterator[Finding]:
    over, value = m.spec.over, m.spec.value
    side = np.less_equal if m.spec.than == "lower" else np.greater_equal
    name = m.called(f"{m.words(m.spec.of)} at {value:g} minus at {m.spec.than} ones")
    finding = m.tests.trend(
        over, m.column(m.spec.of), name, m.rule, lambda values: (values == value).astype(float),
        lambda cells: cells[side(cells[over], value)],
    )  # fmt: skip
    values = m.tests.cells.get(over, pd.Series(dtype=float))
    if finding.reason and len(values) and value not in values.to_numpy():
        most = values.mode().iloc[0]
        finding = replace(finding, reason=f"no cell has {words(over)} {value:g}; most have {most:g}")
    yield finding


def _turn(m: _Measured) -> Iterator[Finding]:
    over, column = words(m.spec.over), m.column(m.spec.of)
    falling, rising = u(m.tests.sweep, column, m.spec.over) if column in m.tests.cells else ([], [])
    ends, pairs = (
        (f"lowest {over} to the bottom (where the other sizes have it)", falling)
        if m.spec.part == "fall"
        else (f"bottom to the highest {over}", rising)
    )
    name = m.called(f"{m.words(m.spec.of)}, from the {ends}")
    if pairs:
        yield of_effect(name, m.rule, effect(pairs))
    else:
        yield Finding(name, m.rule, reason=f"no three cells differ in {over} with all else equal")


def _trend_by_size(m: _Measured) -> Iterator[Finding]:
    over, column = m.spec.over, m.column(m.spec.of)
    name = m.called(f"change of {words(over)}'s effect on {m.words(m.spec.of)} per e-fold of size")
    sizes, changes = slopes(m.tests.sweep, over, column) if column in m.tests.cells else (np.array([]), np.array([]))
    if len(np.unique(sizes)) < 3:
        yield Finding(name, m.rule, reason=f"{words(over)} was varied at fewer than 3 sizes")
    else:
        yield of_effect(name, m.rule, effect([(sizes, changes)]))


def _spread(m: _Measured) -> Iterator[Finding]:
    of, minus = m.column(m.spec.of), m.column(m.spec.minus)
    what, digits, spread = SPREADS[m.spec.measure]

    def difference(cells: pd.DataFrame) -> Callable[[Array], Array]:
        def of_weights(w: Array) -> Array:
            apart = spread(cells[of], w) - spread(cells[minus], w)
            return apart if digits is None else np.round(apart, digits)

        return of_weights

    yield m.resampled(f"{what}, {m.words(m.spec.of)} minus {m.words(m.spec.minus)}", (of, minus), difference)


def _mean(m: _Measured) -> Iterator[Finding]:
    of, minus = m.column(m.spec.of), m.column(m.spec.minus)

    def mean(cells: pd.DataFrame) -> Callable[[Array], Array]:
        apart = (cells[of] - cells[minus]).to_numpy(float)
        return lambda w: w @ apart / w.sum(axis=1)

    yield m.resampled(f"mean {m.words(m.spec.of)} minus {m.words(m.spec.minus)}", (of, minus), mean)


def _spread_at_equal(m: _Measured) -> Iterator[Finding]:
    of, at = m.column(m.spec.of), m.column(m.spec.at)
    near = f"the tenth of same-size pairs closest in {m.words(m.spec.at)}"
    name = f"spread of {m.words(m.spec.of)} among {near} / among all pairs"
    yield m.resampled(name, (of, at), partial(spread_at_equal, sweep=m.tests.sweep, of=of, at=at))


def _under_trained(m: _Measured) -> Iterator[Finding]:
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


def _late_rise(m: _Measured) -> Iterator[Finding]:
    over, sweep = m.spec.over, m.tests.sweep
    rise = late_rise(sweep.trajectories)
    lowest = [cells["id"].iloc[0] for cells in sweep.slices(over)]
    rises = sweep.cells.assign(rise=sweep.cells["id"].map(rise))[sweep.cells["id"].isin(lowest)].dropna(subset=["rise"])
    # Seeds of a configuration are one observation.
    means = rises.groupby(sweep.configurations[rises.index])["rise"].mean().to_numpy(float)
    name = f"mean rise of the validation loss above its lowest, at the lowest {words(over)} (fraction of the loss)"
    yield of_mean(m.called(name), m.rule, means)


def _curvature(m: _Measured) -> Iterator[Finding]:
    of, of_square = m.column(m.spec.of), m.column(m.spec.in_)
    sweep = m.tests.sweep

    def bent(cells: pd.DataFrame) -> Callable[[Array], Array]:
        x, y = cells[of_square].to_numpy(float), cells[of].to_numpy(float)
        square = ((x - x.mean()) ** 2)[:, None]
        partitions = folds_of(np.unique(sweep.configurations[cells.index], return_inverse=True)[1], 3)
        return lambda w: np.mean(
            [statistics.added_r2(x[:, None], square, y, fold, w)[:, 0] for fold in partitions], axis=0
        )

    name = f"R\N{SUPERSCRIPT TWO} that the square of {m.words(m.spec.in_)} adds to a line, for {m.words(m.spec.of)}"
    yield m.resampled(name, (of_square, of), bent, basic=True)


def _strongest(m: _Measured) -> Iterator[Finding]:
    of, over, sweep = m.column(m.spec.of), m.spec.over, m.tests.sweep
    name = m.called(f"mean |change| of {m.words(m.spec.of)} over the range of {words(over)} minus over any other's")
    by_setting = {}
    for h in sweep.hyperparameters if of in sweep.cells else ():
        changes = np.abs(slopes(sweep, h, of, sweep.at_equal_steps(h))[1])
        # Resamples of fewer differ too little among each other for an interval.
        if len(changes) >= FEWEST_SLOPES:
            by_setting[h] = changes
    own = by_setting.pop(over, np.array([]))
    if not len(own) or not by_setting:
        needed = f"{words(over)} and another hyperparameter are needed, with {FEWEST_SLOPES} comparisons of each"
        yield Finding(name, m.rule, reason=needed)
        return
    rng = np.random.default_rng(SEED)

    def means(changes: Array) -> Array:
        return np.asarray(changes[rng.integers(len(changes), size=(DRAWS, len(changes)))].mean(axis=1))

    draws = means(own) - np.max([means(changes) for changes in by_setting.values()], axis=0)
    value = float(own.mean() - max(changes.mean() for changes in by_setting.values()))
    yield Finding(name, m.rule, value, *statistics.percentile_interval(draws), n=len(own))


_KINDS: dict[str, Callable[[_Measured], Iterator[Finding]]] = {
    "correlation": _correlation,
    "attenuation": _attenuation,
    "closer": _closer,
    "line": _line,
    "added_r2": _added_r2,
    "trend": _trend,
    "at": _at,
    "turn": _turn,
    "trend_by_size": _trend_by_size,
    "spread": _spread,
    "mean": _mean,
    "spread_at_equal": _spread_at_equal,
    "under_trained": _under_trained,
    "late_rise": _late_rise,
    "curvature": _curvature,
    "strongest": _strongest,
}
