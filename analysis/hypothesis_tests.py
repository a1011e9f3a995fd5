"""What each kind of test in a file of hypotheses measures (`raysweep.space.hypotheses` says what they are).

A kind is a function of a `Measured`, a test on the sweep that it is about, and gives its findings: one, or one for each pair
of columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pandas as pd

from raysweep.analysis import correlation_tests, setting_tests, spread_tests
from raysweep.analysis.columns import words
from raysweep.analysis.findings import Finding, Tests
from raysweep.analysis.measured import Measured
from raysweep.space.hypotheses import Test


def findings(tests: Tests, test: Test) -> list[Finding]:
    """What a test measures, on the cells that it is about."""
    measured = Measured(tests, test)
    for name in measured.columns:
        if name in tests.cells and not pd.api.types.is_numeric_dtype(tests.cells[name]):
            return [Finding(measured.called(test.kind), measured.rule, reason=f"{words(name)} is no number")]
    found = list(_KINDS[test.kind](measured))
    over = getattr(measured.spec, "over", None)
    if test.kind != "trend" and isinstance(over, str) and tests.sweep.is_sampled(over):
        sampled = f"{words(over)} was sampled: of its effects only a trend from the lowest to the highest has a test"
        found = [replace(f, reason=sampled) if f.reason else f for f in found]
    if unmet := measured.unmet:
        return [Finding(f.effect, f.rule, f.value, n=f.n, reason=unmet) for f in found]
    return found


_KINDS: dict[str, Callable[[Measured], Iterator[Finding]]] = {
    "correlation": correlation_tests.correlation,
    "attenuation": correlation_tests.attenuation,
    "closer": correlation_tests.closer,
    "line": correlation_tests.line,
    "added_r2": correlation_tests.added_r2,
    "curvature": correlation_tests.curvature,
    "trend": setting_tests.trend,
    "at": setting_tests.at,
    "turn": setting_tests.turn,
    "trend_by_size": setting_tests.trend_by_size,
    "intervention": setting_tests.intervention,
    "strongest": setting_tests.strongest,
    "spread": spread_tests.spread,
    "mean": spread_tests.mean,
    "spread_at_equal": spread_tests.spread_at_equal,
    "apart": spread_tests.apart,
    "percentile": spread_tests.percentile,
    "under_trained": spread_tests.under_trained,
    "late_rise": spread_tests.late_rise,
}
