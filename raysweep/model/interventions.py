"""Moving the rank of W while all else is equal: settings of a cell that act on its unembedding in every training step.

`effective_rank_penalty` adds strength x (effective rank - target)^2 to the loss. Its gradient is added after clipping, and
the losses and gradient norms that are reported are without it. `spectral_norm_cap` replaces W after each step by the nearest
matrix whose spectral norm is no more than the cap: W with the singular values above the cap lowered to it. Neither acts on
fine-tuning. Where several singular values are at the cap their directions are not determined, and nor is the isotropy that
is taken over them: two runs that differ by rounding may report isotropies that differ in the third decimal.
"""

from __future__ import annotations

import torch

# In float32 an eigenvalue of W^T W is off by some 1e-6 of the largest: below this share of it, float64 is used.
_CLEAR = 1e-3

# Singular values below this share of the largest are rounding, and have no direction to push in.
_NEGLIGIBLE = 1e-6


def add_rank_penalty(weight: torch.Tensor, target: float, strength: float) -> None:
    """Add the gradient of strength x (effective rank of W - target)^2 to `weight.grad`; W is (V, d)."""
    rank, gradient = effective_rank_and_gradient(weight)
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    weight.grad.add_(gradient.to(weight.grad.dtype), alpha=2 * strength * (rank - target))


def effective_rank_and_gradient(weight: torch.Tensor) -> tuple[float, torch.Tensor]:
    """The effective rank of W (V, d), as `raysweep.geometry.effective_rank`, and its gradient (V, d).

    Both are 0 where W is. In float64; on GPUs in float32 where no singular value is below 3% of the largest.

    With r = exp(H) / d, H = -sum p_i ln p_i and p_i = s_i / S over the singular values s_i of their sum S, dr/ds_i is
    -r (ln p_i + H) / S. The gradient of a function of singular values is U diag(dr/ds) V^T (Lewis 1995), which is
    W V diag(dr/ds / s) V^T: no derivative of an eigenvector is needed, and values that coincide do no harm.
    """
    columns = weight.shape[1]
    matrix, values, directions = _singular(weight)
    kept = values > _NEGLIGIBLE * values.max()
    if not bool(kept.any()):
        return 0.0, matrix
    share = values.where(kept, 0.0) / values.where(kept, 0.0).sum()
    entropy = torch.special.entr(share).sum()
    rank = torch.exp(entropy) / columns
    slope = -rank * (share.where(kept, 1.0).log() + entropy) / values.sum()
    factors = torch.where(kept, slope / values.where(kept, 1.0), 0.0)
    return float(rank), matrix @ ((directions * factors) @ directions.T)


def cap_spectral_norm(weight: torch.Tensor, cap: float) -> None:
    """Replace W (V, d) by the nearest matrix, in the Frobenius norm, whose spectral norm is at most `cap`."""
    matrix, values, directions = _singular(weight)
    if float(values.max()) > cap:
        factors = cap / values.clamp_min(cap)
        with torch.no_grad():
            weight.copy_(matrix @ ((directions * factors) @ directions.T))


def _singular(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """W, its singular values and its right singular vectors as columns, through W^T W: in `_precision`."""
    if not bool(torch.isfinite(weight).all()):
        # It has none; a run that diverges is found out by its loss.
        matrix = weight.detach().to(torch.float64)
        return matrix, torch.zeros_like(matrix[0]), torch.eye(matrix.shape[1]).to(matrix)
    matrix, eigenvalues, directions = _decomposed(weight, _precision(weight))
    if matrix.dtype != torch.float64 and float(eigenvalues[0]) < _CLEAR * float(eigenvalues[-1]):
        matrix, eigenvalues, directions = _decomposed(weight, torch.float64)
    return matrix, eigenvalues.clamp_min(0).sqrt(), directions


def _precision(weight: torch.Tensor) -> torch.dtype:
    """float64; float32 on GPUs, most of which do float64 at a thirtieth of its rate or less."""
    return torch.float32 if weight.is_cuda else torch.float64


def _decomposed(weight: torch.Tensor, precision: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """W, and the eigenvalues (ascending) and eigenvectors of W^T W."""
    matrix = weight.detach().to(precision)
    eigenvalues, directions = torch.linalg.eigh(matrix.T @ matrix)
    return matrix, eigenvalues, directions
