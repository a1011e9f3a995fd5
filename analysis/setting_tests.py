"""Tests of what a hyperparameter does, all else equal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
from scipy import stats

from raysweep.analysis.columns import words
from raysweep.analysis.findings import Finding, of_effect, too_few
from raysweep.analysis.hypothesis_statistics import between, shared_choice, u
from raysweep.analysis.intervention_effects import MAX_CONTROL_SHIFT, comparisons, swapped
from raysweep.analysis.measured import Measured, chosen
from raysweep.analysis.trends import effect, of_lowest_and_middle, of_middle_and_highest, slopes

FEWEST_SLOPES = 6
"""Comparisons of one hyperparameter from which their mean change has an interval."""

FEWEST_SLOPES_OF_SIZES = 5
"""Comparisons at three sizes and more from which the change with size has one: of 5! / 2! permutations 2.5% are one."""


def trend(m: Measured) -> Iterator[Finding]:
    over = m.over
    whole = (m.spec.from_, m.spec.to) == ("lowest", "highest") and not m.spec.only_ends
    if whole and m.tests.sweep.is_sampled(over):
        column, name = m.column(m.spec.of), m.called(m.words(m.spec.of))
        if m.spec.equal_steps:
            yield Finding(
                name, m.rule, reason=f"{words(m.spec.over)} was sampled: no two cells have equal steps and all else"
            )
        else:
            yield m.tests.adjusted(over, column, name, m.rule)
        return

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


def at(m: Measured) -> Iterator[Finding]:
    over, value = m.over, m.spec.value
    side = np.less_equal if m.spec.than == "lower" else np.greater_equal
    name = m.called(f"{m.words(m.spec.of)} at {value:g} minus at {m.spec.than} ones")
    values = m.tests.cells.get(over, pd.Series(dtype=float)).dropna()
    if not pd.api.types.is_numeric_dtype(values):
        yield Finding(
            name, m.rule, reason=f"{words(over)} is no number: it has {', '.join(sorted(map(str, values.unique())))}"
        )
        return
    finding = m.tests.trend(
        over, m.column(m.spec.of), name, m.rule, lambda values: (values == value).astype(float),
        lambda cells: cells[side(cells[over], value)],
    )  # fmt: skip
    if finding.reason and len(values) and value not in values.to_numpy():
        most = values.mode().iloc[0]
        finding = replace(finding, reason=f"no cell has {words(over)} {value:g}; most have {most:g}")
    yield finding


def turn(m: Measured) -> Iterator[Finding]:
    setting, column, inverted = m.over, m.column(m.spec.of), m.spec.inverted
    over = words(setting)
    there = column in m.tests.cells
    first, second, middles = u(m.tests.sweep, column, setting, inverted) if there else ([], [], 0)
    turn = "top" if inverted else "bottom"
    where = "taken to be in the middle" if middles else "where the other sizes have it"
    if 0 < middles < len(first):
        where = f"where the other sizes have it, and of {middles} of {len(first)} comparisons taken to be in the middle"
    ends, pairs = (
        (f"lowest {over} to the {turn} ({where})", first)
        if (m.spec.part == "rise") == inverted
        else (f"{turn} to the highest {over}", second)
    )
    name = m.called(f"{m.words(m.spec.of)}, from the {ends}")
    if pairs:
        found = of_effect(name, m.rule, effect(pairs))
        wider = shared_choice(m.tests.sweep, column, setting)
        low, high = (found.value + wider * (end - found.value) for end in (found.low, found.high))
        yield replace(found, low=low, high=high)
    else:
        yield Finding(name, m.rule, reason=f"no three cells differ in {over} with all else equal")


def intervention(m: Measured) -> Iterator[Finding]:
    by, against, column = m.spec.by, m.spec.against, m.column(m.spec.of)
    name = m.called(f"{m.words(m.spec.of)} under {by} minus {f'under {against}' if against else 'left alone'}")
    sweep = m.of_sweep.sweep.whole or m.of_sweep.sweep
    there = comparisons(sweep.of(chosen(m.test.among, sweep.cells, sweep.planned_sizes)))
    compared = [(before, after) for n, a, before, after in there if (n, a) == (by, against)]
    swaps = swapped(column, compared) if column in sweep.cells else []
    if swaps:
        yield of_effect(name, m.rule, effect(swaps))
        return
    known = sorted({f"{n} against {a}" if a else n for n, a, _, _ in there})
    reason = f"no two cells with {column} differ in that; there are {', '.join(known) or 'none'}"
    if against and {by, against} <= {n for n, a, _, _ in there if not a}:
        reason = (
            f"{against} is no control: that is the penalty that moves the rank least, by less than {MAX_CONTROL_SHIFT}"
        )
    yield Finding(name, m.rule, reason=reason)


def trend_by_size(m: Measured) -> Iterator[Finding]:
    over, column = m.over, m.column(m.spec.of)
    name = m.called(f"change of {words(over)}'s effect on {m.words(m.spec.of)} per e-fold of size")
    sizes, changes = slopes(m.tests.sweep, over, column) if column in m.tests.cells else (np.array([]), np.array([]))
    if len(np.unique(sizes)) < 3:
        yield Finding(name, m.rule, reason=f"{words(over)} was varied at fewer than 3 sizes")
    else:
        found = of_effect(name, m.rule, effect([(sizes, changes)]))
        reason = too_few(len(sizes)) if found.reason else ""
        yield replace(found, comparisons=len(sizes), enough=FEWEST_SLOPES_OF_SIZES, reason=reason)


def strongest(m: Measured) -> Iterator[Finding]:
    of, over, sweep = m.column(m.spec.of), m.over, m.tests.sweep
    per_decade = m.spec.per == "decade"
    per = "for each factor of ten in" if per_decade else "over the range of"
    name = m.called(f"mean |change| of {m.words(m.spec.of)} {per} {words(over)} minus {per} any other")
    by_setting = {}
    for h in sweep.hyperparameters if of in sweep.cells else ():
        changes = np.abs(slopes(sweep, h, of, sweep.at_equal_steps(h), per_decade)[1])
        # Fewer have too little to say of their own spread.
        if len(changes) >= FEWEST_SLOPES:
            by_setting[h] = changes
    own = by_setting.pop(over, np.array([]))
    if not len(own) or not by_setting:
        needed = f"{words(over)} and another hyperparameter are needed, with {FEWEST_SLOPES} comparisons of each"
        yield Finding(name, m.rule, reason=needed)
        return
    # Welch's, against the one that is largest here: resamples of six comparisons are too narrow.
    largest = max(by_setting.values(), key=lambda changes: float(changes.mean()))
    apart = stats.ttest_ind(own, largest, equal_var=False).confidence_interval(0.95)
    yield Finding(
        name, m.rule, float(own.mean() - largest.mean()), float(apart.low), float(apart.high), n=len(own),
        comparisons=len(own),
    )  # fmt: skip
