"""The scaling law L(N, D) = E + A / N^alpha + B / D^beta, fitted as Hoffmann et al. (2022, arXiv 2203.15556, D.2) do.

The Huber loss (delta = 1e-3) of the error in log L is minimised from a grid of starts, with the law written as a
log-sum-exp of (a - alpha log N, b - beta log D, e), where A = exp a, B = exp b, E = exp e. Where they run L-BFGS from
each start in turn, all starts, and all bootstrap resamples, are here steps of one batched Levenberg-Marquardt iteration.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

DELTA = 1e-3
NAMES = ("E", "A", "B", "alpha", "beta")
_FEWEST_AGREE = 0.1
_STARTS = 64
"""Of the grid's 4,500 starts, the best so many are followed."""


@dataclass(frozen=True)
class Law:
    """A fitted law. `problem` says why it cannot be trusted, and is empty where it can."""

    E: float
    """Irreducible loss, nats per token."""
    A: float
    B: float
    alpha: float
    beta: float
    r2: float
    """Of the loss itself, over the cells that were fitted."""
    agreement: float
    """The share of starts that ended at the same loss surface: predictions within 0.1% of the best fit's everywhere."""
    problem: str = ""
    doubtful: bool = False
    """Whether another fit might have other predictions: this one did not converge, or few starts agree with it."""

    def predict(self, N: Array, D: Array) -> Array:
        """Loss, nats per token."""
        return np.asarray(self.E + self.A / N**self.alpha + self.B / D**self.beta)


@dataclass(frozen=True)
class Fits:
    """One law per resample, in the coordinates of the fit."""

    theta: Array
    """(B, 5): a and b at the mean log N and log D, e, alpha, beta."""
    objective: Array
    """(B,)"""
    converged: npt.NDArray[np.bool_]
    """(B,)"""
    centre: tuple[float, float]

    def parameters(self) -> Array:
        """(B, 5) in the order of `NAMES`."""
        a, b, e, alpha, beta = self.theta.T
        with np.errstate(over="ignore"):  # Of a fit that ran away; `_problem` says so.
            A, B = np.exp(a + alpha * self.centre[0]), np.exp(b + beta * self.centre[1])
        return np.stack([np.exp(e), A, B, alpha, beta], axis=1)

    def log_predictions(self, N: Array, D: Array) -> Array:
        """(B, n) log L."""
        return _log_law(self.theta, np.log(N) - self.centre[0], np.log(D) - self.centre[1])[0]


def enough(N: Array, D: Array) -> str:
    """Why these cells cannot determine the law's five parameters, or nothing."""
    # Budgets in whole steps differ a little where batches do; to within a percent they are one.
    sizes, budgets = len(np.unique(N)), len(np.unique(np.round(np.log(D), 2)))
    if sizes < 3 or budgets < 3:
        return f"the law needs 3 sizes and 3 token budgets, not {sizes} and {budgets}"
    return f"the law needs 10 cells, not {len(N)}" if len(N) < 10 else ""


def fit(N: Array, D: Array, loss: Array) -> tuple[Law, Fits]:
    """The law of cells with `N` parameters, `D` tokens and `loss` (nats per token), each (n,), from many starts.

    Raises ValueError where `enough` has a reason.
    """
    if problem := enough(N, D):
        raise ValueError(problem)
    centre = (float(np.log(N).mean()), float(np.log(D).mean()))
    starts = np.array(
        [
            (a - alpha * centre[0], b - beta * centre[1], e, alpha, beta)
            for a, b, e, alpha, beta in itertools.product(
                range(0, 30, 5),
                range(0, 30, 5),
                np.arange(-1, 1.5, 0.5),
                np.arange(0, 2.5, 0.5),
                np.arange(0, 2.5, 0.5),
            )
        ]
    )
    x, y, target = np.log(N) - centre[0], np.log(D) - centre[1], np.log(loss)
    weights = np.ones((1, len(loss)))
    first = _huber(target - _log_law(starts, x, y)[0], weights)
    best_starts = starts[np.argsort(first, kind="stable")[:_STARTS]]
    fits = Fits(*_minimise(best_starts, x, y, target, np.repeat(weights, len(best_starts), axis=0)), centre)
    best = int(np.argmin(fits.objective))
    predictions = fits.log_predictions(N, D)
    same = np.abs(predictions - predictions[best]).max(axis=1) < 1e-3
    agreement = float(same.mean())
    E, A, B, alpha, beta = (float(v) for v in fits.parameters()[best])
    predicted = np.exp(predictions[best])
    r2 = 1 - float(((loss - predicted) ** 2).sum() / ((loss - loss.mean()) ** 2).sum())
    a, b = fits.theta[best, :2]
    problem = _problem(bool(fits.converged[best]), agreement, np.exp(a - alpha * x), np.exp(b - beta * y), E)
    if not np.isfinite([A, B]).all():
        problem = "; ".join(filter(None, (problem, f"{'B' if np.isfinite(A) else 'A'} is beyond any number")))
    doubtful = not fits.converged[best] or agreement < _FEWEST_AGREE
    law = Law(E, A, B, alpha, beta, r2, agreement, problem, bool(doubtful))
    return law, Fits(
        fits.theta[best : best + 1], fits.objective[best : best + 1], fits.converged[best : best + 1], centre
    )


def refit(best: Fits, N: Array, D: Array, loss: Array, weights: Array) -> Fits:
    """The law of each resample (B, n), each started from the fit to the sample itself."""
    x, y = np.log(N) - best.centre[0], np.log(D) - best.centre[1]
    starts = np.repeat(best.theta, len(weights), axis=0)
    # A resample's error is far larger than what a last step in thousandths of a percent would gain.
    return Fits(*_minimise(starts, x, y, np.log(loss), weights, tolerance=1e-5, patience=3), best.centre)


def _problem(converged: bool, agreement: float, size_term: Array, token_term: Array, E: float) -> str:
    """What is wrong with a fit; a term that does not reach a thousandth of E anywhere has no exponent to speak of."""
    problems = [] if converged else ["did not converge"]
    if agreement < _FEWEST_AGREE:
        problems.append(f"only {agreement:.0%} of the starts agree")
    for name, term in (("A / N^alpha", size_term), ("B / D^beta", token_term)):
        if np.ptp(term) < 1e-3 * (E + term.mean()):
            problems.append(f"{name} is the same for all cells")
    if E / (size_term.mean() + token_term.mean() + E) < 0.01:
        problems.append("E is nearly zero")
    return "; ".join(problems)


def _log_law(theta: Array, x: Array, y: Array) -> tuple[Array, Array, Array, Array]:
    """log L and the share of each of the three terms, each (B, n)."""
    a, b, e, alpha, beta = (column[:, None] for column in theta.T)
    size, tokens = a - alpha * x, b - beta * y
    largest = np.maximum(np.maximum(size, tokens), e)
    exponentials = [np.exp(term - largest) for term in (size, tokens, e + 0 * size)]
    total = sum(exponentials)
    return largest + np.log(total), *(term / total for term in exponentials)


def _huber(error: Array, weights: Array) -> Array:
    size = np.abs(error)
    return np.asarray((weights * np.where(size < DELTA, 0.5 * error**2, DELTA * (size - DELTA / 2))).sum(axis=1))


def _minimise(
    theta: Array,
    x: Array,
    y: Array,
    target: Array,
    weights: Array,
    tolerance: float = 1e-7,
    patience: int = 6,
    steps: int = 400,
) -> tuple[Array, Array, npt.NDArray[np.bool_]]:
    """Levenberg-Marquardt on the Huber loss, all rows of theta (B, 5) at once; rows that are done take no further part."""
    theta = theta.copy()
    objective = _huber(target - _log_law(theta, x, y)[0], weights)
    damping = np.full(len(theta), 1e-2)
    calm = np.zeros(len(theta), dtype=int)
    active = np.arange(len(theta))
    for _ in range(steps):
        if not len(active):
            break
        here, w = theta[active], weights[active]
        predicted, of_size, of_tokens, of_floor = _log_law(here, x, y)
        error = target - predicted
        # Iteratively reweighted least squares: a quadratic that touches the Huber loss from above.
        emphasis = w * np.minimum(1.0, DELTA / np.maximum(np.abs(error), 1e-300))
        slopes = np.stack([of_size, of_tokens, of_floor, -of_size * x, -of_tokens * y], axis=2)
        weighted = slopes * emphasis[:, :, None]
        gradient = np.matmul(weighted.transpose(0, 2, 1), error[:, :, None])[:, :, 0]
        hessian = np.matmul(weighted.transpose(0, 2, 1), slopes)
        diagonal = np.einsum("bii->bi", hessian)
        scale = diagonal.max(axis=1, keepdims=True)
        hessian = hessian + np.eye(5) * (damping[active][:, None] * diagonal + 1e-12 * scale + 1e-300)[:, None, :]
        step = np.clip(np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0], -2, 2)
        trial = np.clip(here + step, -50, 50)
        reached = _huber(target - _log_law(trial, x, y)[0], w)
        better = reached < objective[active]
        gain = np.where(better, objective[active] - reached, 0.0)
        calm[active] = np.where(gain <= tolerance * objective[active], calm[active] + 1, 0)
        theta[active[better]] = trial[better]
        objective[active[better]] = reached[better]
        damping[active] = np.clip(np.where(better, damping[active] / 4, damping[active] * 4), 1e-9, 1e9)
        active = active[calm[active] < patience]
    converged = np.ones(len(theta), dtype=bool)
    converged[active] = False
    return theta, objective, converged
