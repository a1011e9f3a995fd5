"""The number that would decide a test, by simulation: sweeps of that size decide it in 70 to 90% of draws."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from raysweep.analysis import power, statistics
from raysweep.analysis.findings import Finding, of_effect, of_mean
from raysweep.analysis.trends import effect

Rng = np.random.Generator


def exact(values: np.ndarray[Any, Any], mean: float, deviation: float) -> np.ndarray[Any, Any]:
    """The values moved and stretched, so that they have this mean and this standard deviation."""
    return np.asarray(mean + deviation * (values - values.mean()) / values.std(ddof=1))


def of_slices(differences: np.ndarray[Any, Any], rule: str) -> Finding:
    """The effect of a setting with two values, in slices that differ so."""
    ends = np.array([0.0, 1.0])
    return of_effect("x", rule, effect([(ends, np.array([0.0, d])) for d in differences], permutations=2000))


def correlation(pairs: np.ndarray[Any, Any], rule: str) -> Finding:
    x, y = pairs
    groups = np.arange(len(x))
    value = float(statistics.spearman(x, y, statistics.sample(len(x)))[0])
    draws = statistics.spearman(x, y, statistics.resamples(groups, 400, 0))
    low, high = statistics.bca_interval(value, draws, statistics.spearman(x, y, statistics.jackknife(groups)))
    return Finding("x", rule, value, low, high, len(x))


def related(rng: Rng, n: int, rho: float) -> np.ndarray[Any, Any]:
    x, own = rng.standard_normal((2, n))
    return np.array([x, rho * x + math.sqrt(1 - rho**2) * own])


def decided(found: Callable[[Rng], Finding], draws: int) -> float:
    return sum(found(np.random.default_rng(seed)).verdict != "undecided" for seed in range(draws)) / draws


@pytest.mark.parametrize(
    ("mean", "slices", "rule"),
    [(0.5, 8, "> 0"), (0.5, 12, "< 1"), (0.1, 12, "within ±0.5"), (1.0, 12, "within ±0.5")],
)
def test_comparisons(mean: float, slices: int, rule: str) -> None:
    """The pilot has this very estimate and noise, which are then the truth."""
    pilot = of_slices(exact(np.random.default_rng(1).standard_normal(slices), mean, 1.2), rule)
    assert pilot.verdict == "undecided"
    number = power.needed(pilot, slices)
    assert number is not None
    assert number > 2 * slices - 1  # A test of power 0.8 is at least twice one that just fails.
    share = decided(lambda rng: of_slices(mean + 1.2 * rng.standard_normal(number), rule), 200)
    assert 0.7 <= share <= 0.9


@pytest.mark.parametrize(("rho", "rule"), [(0.25, "> 0"), (0.05, "within ±0.4")])
def test_configurations(rho: float, rule: str) -> None:
    """A pilot whose sample correlation is the truth's to two digits."""
    truth = 6 / math.pi * math.asin(rho / 2)
    pilots = (correlation(related(np.random.default_rng(seed), 30, rho), rule) for seed in range(400))
    pilot = next(one for one in pilots if abs(one.value - truth) < 0.005 and one.verdict == "undecided")
    number = power.needed(pilot, 30)
    assert number is not None
    share = decided(lambda rng: correlation(related(rng, number, rho), rule), 150)
    assert 0.7 <= share <= 0.9


def test_means_by_the_textbook() -> None:
    """A paired t test of an effect of half a standard deviation with a power of 0.8 takes 34 pairs (Cohen 1988)."""
    pilot = of_mean("x", "> 0", exact(np.random.default_rng(0).standard_normal(10), 0.5, 1.0))
    assert power.needed(pilot, 10) == 34
    error = 1 / math.sqrt(34)
    assert stats.nct.sf(stats.t.ppf(0.975, 33), 33, 0.5 / error) == pytest.approx(0.8, abs=0.01)


def test_of_a_lopsided_interval_more_than_today_are_needed() -> None:
    number = power.needed(Finding("x", "within ±0.5", 0.0, -0.505, 0.05, 100), 100)
    assert number is not None
    assert number > 100


def test_what_lies_on_the_bound_no_number_decides() -> None:
    assert power.needed(Finding("x", "> 0", 0.001, -1.0, 1.0, 20), 20) is None
    assert power.needed(Finding("x", "> 0", 0.0, -1.0, 1.0, 20), 20) is None
    assert power.needed(Finding("x", "within ±0.5", 0.5, 0.1, 0.9, 20), 20) is None
    # An added R2 of 0.05 with an interval that is a correlation's, squared: 0.1 +- 0.1 about a bound of 0.2.
    assert power.needed(Finding("x", "< 0.04", 0.01, 0.0, 0.04, 50, squared=True), 50) == power.needed(
        Finding("x", "< 0.2", 0.1, 0.0, 0.2, 50), 50
    )
