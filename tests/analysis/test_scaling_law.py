import numpy as np
import pytest
from scipy.optimize import minimize

from raysweep.analysis import scaling_law, statistics

TRUTH = {"E": 1.8, "A": 400.0, "B": 1000.0, "alpha": 0.34, "beta": 0.29}


@pytest.fixture
def grid() -> tuple[np.ndarray, np.ndarray]:
    sizes, budgets = np.meshgrid([3.5e6, 7.4e6, 16.8e6, 28e6, 41e6, 74e6], [8e9, 16e9, 32e9, 64e9, 128e9])
    return sizes.ravel(), budgets.ravel()


def law(N: np.ndarray, D: np.ndarray) -> np.ndarray:
    return TRUTH["E"] + TRUTH["A"] / N ** TRUTH["alpha"] + TRUTH["B"] / D ** TRUTH["beta"]


def test_the_planted_law_comes_back(grid: tuple[np.ndarray, np.ndarray]) -> None:
    N, D = grid
    found, _ = scaling_law.fit(N, D, law(N, D))
    assert {name: getattr(found, name) for name in TRUTH} == pytest.approx(TRUTH, rel=2e-3)
    assert found.r2 == pytest.approx(1, abs=1e-6)
    assert found.problem == ""
    assert found.agreement > 0.2
    np.testing.assert_allclose(found.predict(N, D), law(N, D), rtol=1e-5)


@pytest.mark.parametrize("noise", [0.005, 0.03])
def test_no_other_minimiser_gets_lower(grid: tuple[np.ndarray, np.ndarray], noise: float) -> None:
    """Hoffmann et al.'s own way, L-BFGS from many starts, polished by Nelder and Mead."""
    N, D = grid
    rng = np.random.default_rng(3)
    loss = law(N, D) * np.exp(noise * rng.standard_normal(len(N)))
    x, y = np.log(N), np.log(D)

    def objective(theta: np.ndarray) -> float:
        a, b, e, alpha, beta = theta
        error = np.abs(np.log(loss) - np.logaddexp(np.logaddexp(a - alpha * x, b - beta * y), e))
        delta = scaling_law.DELTA
        return float(np.where(error < delta, error**2 / 2, delta * (error - delta / 2)).sum())

    starts = [(a, b, e, 0.3, 0.3) for a in (4, 8) for b in (4, 8) for e in (0, 0.7)]
    theirs = [minimize(objective, s, method="L-BFGS-B", options={"maxiter": 2000}) for s in starts]
    best = min(theirs, key=lambda r: r.fun)
    best = minimize(
        objective, best.x, method="Nelder-Mead", options={"maxiter": 20000, "maxfev": 20000, "fatol": 1e-14}
    )
    _, ours = scaling_law.fit(N, D, loss)
    assert ours.objective[0] <= best.fun * (1 + 1e-4)


def test_a_refit_of_the_sample_stays_where_it_is(grid: tuple[np.ndarray, np.ndarray]) -> None:
    N, D = grid
    loss = law(N, D) * np.exp(0.01 * np.random.default_rng(1).standard_normal(len(N)))
    found, best = scaling_law.fit(N, D, loss)
    again = scaling_law.refit(best, N, D, loss, statistics.sample(len(N)))
    np.testing.assert_allclose(again.parameters()[0], best.parameters()[0], rtol=1e-3)
    np.testing.assert_allclose(best.parameters()[0, 0], found.E)


def test_too_few_sizes_or_budgets_is_a_reason() -> None:
    N, D = np.repeat([1e6, 2e6], 10), np.tile(np.arange(1, 11) * 1e9, 2)
    assert scaling_law.enough(N, D) == "the law needs 3 sizes and 3 token budgets, not 2 and 10"
    with pytest.raises(ValueError, match="3 sizes"):
        scaling_law.fit(N, D, np.ones(20))


def test_a_loss_that_tokens_do_not_change_is_said_to_be_so(grid: tuple[np.ndarray, np.ndarray]) -> None:
    N, D = grid
    found, _ = scaling_law.fit(N, D, 1.8 + 400 / N**0.34)
    assert "B / D^beta is the same for all cells" in found.problem


def test_a_loss_without_a_floor_is_said_to_be_so(grid: tuple[np.ndarray, np.ndarray]) -> None:
    N, D = grid
    found, _ = scaling_law.fit(N, D, 40 / N**0.15 + 40 / D**0.12)
    assert "E is nearly zero" in found.problem
