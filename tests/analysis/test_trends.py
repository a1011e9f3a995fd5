import itertools
import math

import numpy as np
import pytest
from scipy import stats

from analysis.sweep import Sweep
from analysis.trends import PERMUTATIONS, curvature, effect, position, slopes, trend


def test_an_effect_without_noise_is_found_exactly() -> None:
    x = np.array([0, 0.5, 1.0])
    found = effect([(x, level + 0.7 * x) for level in (0.0, 3.0, -2.0, 9.0)])
    assert (found.value, found.low, found.high) == pytest.approx((0.7, 0.7, 0.7))
    assert (found.n, found.slices) == (12, 4)


def test_the_interval_excludes_zero_exactly_when_the_permutation_test_rejects() -> None:
    """Against scipy's exact permutation test of one slice's covariance, both sides at 2.5%."""
    rng = np.random.default_rng(0)
    decisions = set()
    x = position(np.arange(6.0))
    for strength in np.linspace(0, 4, 25):
        y = strength * x + rng.standard_normal(6)
        found = effect([(x, y)])
        test = stats.permutation_test(
            (y,), lambda shuffled: shuffled @ (x - x.mean()), permutation_type="pairings", n_resamples=np.inf,
            alternative="greater", vectorized=False,
        )  # fmt: skip
        rejected = test.pvalue <= 0.025
        assert (found.low > 0) == rejected
        decisions.add(rejected)
    assert decisions == {True, False}


def test_the_interval_covers_the_effect_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    x = position(np.arange(3.0))
    covered = []
    for _ in range(400):
        found = effect([(x, 5 * rng.standard_normal() + 0.7 * x + 0.5 * rng.standard_t(3, 3)) for _ in range(5)])
        covered.append(found.low <= 0.7 <= found.high)
    # 95% of 400, three standard errors.
    assert 0.917 <= np.mean(covered) <= 0.983


def test_too_few_permutations_give_no_interval() -> None:
    pair = (np.array([0.0, 1.0]), np.array([0.0, 1.0]))
    assert math.isinf(effect([pair] * 5).low)  # 1 of 32 is more than 2.5%
    assert effect([pair] * 6).low == pytest.approx(1.0)  # 1 of 64 is less


def test_permutations_at_random_agree_with_all_of_them() -> None:
    rng = np.random.default_rng(2)
    x = position(np.arange(4.0))
    slices = [(x, x + 0.4 * rng.standard_normal(4)) for _ in range(3)]
    every = effect(slices)
    assert math.factorial(4) ** 3 < PERMUTATIONS
    many = effect([*slices, (np.array([0.0, 1.0, 0.5]), np.array([1.0, 1.0, 1.0]))])
    assert math.factorial(4) ** 3 * 6 > PERMUTATIONS
    # The slice that was added has no change in y and hardly moves the interval.
    assert many.low == pytest.approx(every.low, abs=0.3)
    assert many.high == pytest.approx(every.high, abs=0.3)


def test_curvature_is_the_height_of_the_ends_and_blind_to_a_line() -> None:
    batch = np.array([32.0, 64, 128, 256, 512])
    x = position(batch)
    assert x == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    bowl = 0.3 * (4 * (x - 0.5) ** 2)
    found = effect([(curvature(batch), 2.0 + 1.7 * x + bowl)] * 2)
    assert found.value == pytest.approx(0.3)
    assert curvature(batch) @ x == pytest.approx(0, abs=1e-12)


def test_slices_of_the_papers_grid(simulated: Sweep) -> None:
    """By hand: at each of 6 sizes the batch is varied at two budgets, and 1, 2 and 2 values are added to the base."""
    assert len(simulated.cells) == 108
    assert len(simulated.slices("batch_size")) == 12
    assert {len(s) for s in simulated.slices("batch_size")} == {5}
    for name in ("weight_decay", "learning_rate_factor", "final_learning_rate_fraction"):
        assert [len(s) for s in simulated.slices(name)] == [3] * 6
    by_steps = simulated.slices("tokens", equal_steps=True)
    # 8B/32 - 32B/128 - 64B/256 - 128B/512, 8B/64 - 32B/256 and 8B/128 - 32B/512, all at sequence length 2048.
    assert sorted(len(s) for s in by_steps) == [2] * 12 + [4] * 6
    for cells in itertools.chain(by_steps, simulated.slices("weight_decay")):
        assert cells["steps"].nunique() == 1
        assert cells["size"].nunique() == 1
    assert simulated.hyperparameters == [
        "tokens", "batch_size", "learning_rate_factor", "final_learning_rate_fraction", "weight_decay",
    ]  # fmt: skip


def test_trend_finds_what_was_planted(simulated: Sweep) -> None:
    """The example's effective rank rises by 0.075 per doubling of the batch, so by 0.3 from 32 to 512."""
    found = trend(simulated, "batch_size", "effective_rank_W")
    assert found is not None
    assert found.low < 0.3 < found.high
    assert found.value == pytest.approx(0.3, abs=0.02)
    sizes, changes = slopes(simulated, "weight_decay", "effective_rank_W")
    assert len(sizes) == 6
    assert changes.mean() == pytest.approx(0.1 * np.log10(50), abs=0.03)
    assert trend(simulated, "warmup_fraction", "effective_rank_W") is None
