"""Hypotheses as a scorecard: each test an effect with a 95% interval, and a verdict that follows from it.

A hypothesis is one or more tests (`raysweep.space.hypotheses`). A test asks that an effect is above or below a bound or
within a margin of zero:

- *supported* where the whole interval is on the claimed side of the bound (inside the margin),
- *contradicted* where the whole interval is on the other side (outside the margin),
- *undecided* otherwise, and wherever there is no interval.

A hypothesis is supported if all of its tests are, contradicted if one of them is, and undecided otherwise; beside it stands
the test that decided. Verdicts are not corrected for the number of tests; beside each test stands its false-discovery rate.

Effects of hyperparameters have exact permutation intervals (`trends`); everything else resamples configurations.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from fnmatch import fnmatchcase

import pandas as pd

from raysweep.analysis.columns import of_domain
from raysweep.analysis.findings import Finding, Tests, false_discovery_rates
from raysweep.analysis.hypothesis_tests import findings
from raysweep.analysis.sweep_data import SweepData
from raysweep.space.hypotheses import Hypothesis, Test

COLUMNS = ("claim", "statement", "place", "verdict", "effect", "value", "low", "high", "n", "rule", "reason")
TEST_COLUMNS = (*COLUMNS, "p", "q")


def claims(sweep: SweepData, regressions: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The scorecard, one row per hypothesis with the columns `COLUMNS`, and every test behind it with `TEST_COLUMNS`.

    `regressions` is the first table of `regressions.regressions`. `p` is that of the interval (`findings.p_value`), `q` the
    false-discovery rate at which the test would be counted as supported (Benjamini and Hochberg 1995, over all tests).
    """
    keys = ["task", "metric", "statistic"]
    tests = Tests(sweep, regressions.set_index(keys) if len(regressions) else regressions)
    card, rows = [], []
    for hypothesis in sweep.hypotheses.hypotheses:
        found = [finding for test in expanded(hypothesis, sweep) for finding in _findings(tests, test)]
        verdicts = [finding.verdict for finding in found]
        verdict = next((v for v in ("contradicted", "undecided") if v in verdicts), "supported")
        about = {"claim": hypothesis.id, "statement": hypothesis.says, "place": hypothesis.where}
        own = [{**about, **vars(f), "verdict": f.verdict, "p": f.p_value} for f in found]
        # Where no interval of a claim exists, the first test says why.
        card.append(own[verdicts.index(verdict)])
        rows += own
    table = pd.DataFrame(rows, columns=TEST_COLUMNS[:-1])
    return pd.DataFrame(card, columns=COLUMNS), table.assign(q=false_discovery_rates(table["p"]))


def expanded(hypothesis: Hypothesis, sweep: SweepData) -> Iterator[Test | Finding]:
    """The tests of a hypothesis, for each column that it is about; what is missing where there is none."""
    if hypothesis.for_each is None:
        yield from hypothesis.tests
        return
    measured = dict.fromkeys([*sweep.tasks.values(), *sweep.cells.select_dtypes("number")])
    named = [c for c in measured if fnmatchcase(c, hypothesis.for_each) and not of_domain(c)]
    columns = [c for c in named if sweep.cells[c].notna().any()]
    for column in columns:
        for test in hypothesis.tests:
            text = test.model_dump_json(by_alias=True, exclude_unset=True)
            yield Test.model_validate_json(text.replace("{each}", json.dumps(column)[1:-1]))
    if not columns:
        yield Finding(
            f"for each {hypothesis.for_each}", "", reason=f"no column called {hypothesis.for_each} was measured"
        )


def _findings(tests: Tests, test: Test | Finding) -> list[Finding]:
    return [test] if isinstance(test, Finding) else findings(tests, test)
