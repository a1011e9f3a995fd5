"""Hypotheses as a scorecard: each test an effect with a 95% interval, and a verdict that follows from it.

A hypothesis is one or more tests (`raysweep.space.hypotheses`). A test asks that an effect is above or below a bound or
within a margin of zero:

- *supported* where the whole interval is on the claimed side of the bound (inside the margin),
- *contradicted* where the whole interval is on the other side (outside the margin),
- *undecided* otherwise, and wherever there is no interval.

A hypothesis is supported if all of its tests are. That needs no correction for their number: where one is false, all are
supported no more often than that one is (Berger 1982). It is contradicted if one of them is after Bonferroni's correction
for their number: one that holds is contradicted in about 2.5% of sweeps at most, however many tests it has (about, since p
is that of a normal effect with the interval). Tests without an interval do not count. Beside it stands the test that
decided, and beside each test its false-discovery rate.

Effects of hyperparameters have exact permutation intervals (`trends`), added R² the jackknife's (`statistics`), a few
means Student's; everything else resamples configurations. docs/hypotheses.md has which, and how often verdicts are false.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import pandas as pd

from raysweep.analysis.columns import of_domain
from raysweep.analysis.findings import Finding, Tests, false_discovery_rates
from raysweep.analysis.hypothesis_tests import findings
from raysweep.analysis.sweep_data import SweepData
from raysweep.space.hypotheses import Hypothesis, Test

COLUMNS = ("claim", "statement", "place", "verdict", "effect", "value", "low", "high", "n", "rule", "reason")
TEST_COLUMNS = (*COLUMNS, "p", "q", "p_against")
_LEVEL = 0.025


@dataclass(frozen=True)
class Tested:
    """One test of a hypothesis, and what it measured."""

    hypothesis: Hypothesis
    test: Test | None
    """None where the hypothesis has no test, for want of a column."""
    finding: Finding


def tested(sweep: SweepData, regressions: pd.DataFrame, noise: pd.DataFrame | None) -> list[Tested]:
    """Every test of every hypothesis, in their order.

    `regressions` is the first table of `regressions.regressions`, `noise` that of `noise.seed_noise`.
    """
    keys = ["task", "metric", "statistic"]
    table = regressions.set_index(keys) if len(regressions) else regressions
    tests = Tests(sweep, table) if noise is None else Tests(sweep, table, noise)
    found = []
    for hypothesis in sweep.hypotheses.hypotheses:
        for test in expanded(hypothesis, sweep):
            if isinstance(test, Finding):
                found.append(Tested(hypothesis, None, test))
            else:
                found += [Tested(hypothesis, test, finding) for finding in findings(tests, test)]
    return found


def claims(
    sweep: SweepData, regressions: pd.DataFrame, noise: pd.DataFrame | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The `scorecard` of a sweep."""
    return scorecard(tested(sweep, regressions, noise))


def scorecard(every: list[Tested]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The scorecard, one row per hypothesis with the columns `COLUMNS`, and every test behind it with `TEST_COLUMNS`.

    `p` is that of the interval (`findings.p_value`). `q` is the false-discovery rate at which the test would be counted as
    supported (Benjamini and Hochberg 1995, over all tests). `p_against` is the p of the other side times the number of
    tests of the hypothesis, at most 1.
    """
    card, rows = [], []
    for hypothesis, of_hypothesis in itertools.groupby(every, lambda one: one.hypothesis):
        found = [one.finding for one in of_hypothesis]
        about = {"claim": hypothesis.id, "statement": hypothesis.says, "place": hypothesis.where}
        count = sum(math.isfinite(f.p_value) for f in found)
        own = [
            {**about, **vars(f), "verdict": f.verdict, "p": f.p_value, "p_against": min(count * (1 - f.p_value), 1)}
            for f in found
        ]
        card.append(_deciding(own, count))
        rows += own
    made = pd.DataFrame(rows, columns=[c for c in TEST_COLUMNS if c != "q"])
    made = made.assign(q=false_discovery_rates(made["p"]))[list(TEST_COLUMNS)]
    return pd.DataFrame(card, columns=COLUMNS), made


def _deciding(tests: list[dict[str, Any]], count: int) -> dict[str, Any]:
    """The test that decides a hypothesis, with the hypothesis's verdict; of several the first."""
    against = [test for test in tests if test["verdict"] == "contradicted"]
    # Of one test alone nothing is to be corrected.
    if decided := next((test for test in against if count == 1 or test["p_against"] < _LEVEL), None):
        return decided
    if against:
        alone = f"contradicted alone, not among the {count} tests of the hypothesis"
        return {**against[0], "verdict": "undecided", "reason": alone}
    return next((test for test in tests if test["verdict"] == "undecided"), tests[0])


def expanded(hypothesis: Hypothesis, sweep: SweepData) -> Iterator[Test | Finding]:
    """The tests of a hypothesis, for each column that it is about; what is missing where there is none."""
    if hypothesis.for_each is None:
        yield from hypothesis.tests
        return
    measured = dict.fromkeys([*sweep.tasks.values(), *sweep.cells.select_dtypes("number")])
    named = [
        c for c in measured if fnmatchcase(c, hypothesis.for_each) and not of_domain(c) and c not in sweep.settings
    ]
    columns = [c for c in named if sweep.cells[c].notna().any()]
    for column in columns:
        for test in hypothesis.tests:
            text = test.model_dump_json(by_alias=True, exclude_unset=True)
            yield Test.model_validate_json(text.replace("{each}", json.dumps(column)[1:-1]))
    if not columns:
        yield Finding(
            f"for each {hypothesis.for_each}", "", reason=f"no column called {hypothesis.for_each} was measured"
        )
