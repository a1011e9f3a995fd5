"""How many more comparisons or configurations would decide a test, at today's estimate and noise.

A standard error falls with the square root of the number of what it is over. So from an interval over n of them follows
what it would be over n', and how often it would then leave out the bound: the power of Student's t test. The answer is the
smallest n' with a power of 0.8. It takes the estimate for the truth, which it is not: where the effect is smaller than it
seems today, more are needed.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from raysweep.analysis.findings import Finding

POWER = 0.8
"""Of five sweeps of that size four decide the test."""

MOST = 100
"""Beyond so many times today's number the estimate is said to lie on the bound."""


def needed(finding: Finding, units: int) -> int | None:
    """The number of units that would decide an undecided finding whose interval is over so many; None where none would."""
    error = standard_error(finding, units)
    if error is None:
        return None

    def enough_of(number: int) -> bool:
        return decides(finding, error * math.sqrt(units / number), number)

    too_few, enough = units, 2 * units
    while not enough_of(enough):
        too_few, enough = enough, 2 * enough
        if enough > 2 * MOST * units:
            return None
    while enough - too_few > 1:
        middle = (enough + too_few) // 2
        too_few, enough = (too_few, middle) if enough_of(middle) else (middle, enough)
    return enough if enough <= MOST * units else None


def standard_error(finding: Finding, units: int) -> float | None:
    """That of an interval over so many units, of the side that the bound is on; None where it says nothing."""
    low, high, value, limit, within = _on_its_scale(finding)
    half = max(value - low, high - value) if within else (value - low if value > limit else high - value)
    if not (half > 0 and _apart(value, limit, within) > 0) or units < 2:
        return None
    return half / float(stats.t.ppf(0.975, units - 1))


def decides(finding: Finding, error: float, units: int) -> bool:
    """Whether a test of this estimate with such a standard error, over so many units, has the `POWER`."""
    _, _, value, limit, within = _on_its_scale(finding)
    wide = float(stats.t.ppf(0.975, units - 1))
    if within:
        inside = stats.norm.cdf((limit - value) / error - wide) - stats.norm.cdf((-limit - value) / error + wide)
        return bool(inside >= POWER)
    return bool(stats.nct.sf(wide, units - 1, _apart(value, limit, within) / error) >= POWER)


def _apart(value: float, limit: float, within: bool) -> float:
    return abs(limit) - abs(value) if within else abs(value - limit)


def _on_its_scale(finding: Finding) -> tuple[float, float, float, float, bool]:
    """The ends of the interval, the estimate, the bound, and whether the estimate lies within a margin of that size."""
    sign, _, bound = finding.rule.partition(" ")
    low, high, value, limit = finding.low, finding.high, finding.value, float(bound.removeprefix("±"))
    if finding.squared:
        # There the interval is that of a correlation, squared.
        low, high, limit = (float(np.sign(x) * math.sqrt(abs(x))) for x in (low, high, limit))
        value = (low + high) / 2
    if sign == "within" and abs(value) >= limit:
        # It may come to lie outside the margin.
        return low, high, value, math.copysign(limit, value), False
    return low, high, value, limit, sign == "within"
