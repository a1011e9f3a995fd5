"""The geometry of a matrix of row vectors: pure functions, in float64, exact, in O(V d^2).

Each takes a V x d tensor (an unembedding W, or final hidden states H) of any floating type on any device and returns a
Python float. A matrix with a NaN or an infinity gives NaN; a matrix of zeros gives 0 everywhere except in the
isotropies, which are 1. Nothing of size V x V is made.
"""

from __future__ import annotations

import math

import torch

# Rows taken at a time where a temporary as large as the matrix would be needed.
_ROWS = 8192


def measure(matrix: torch.Tensor) -> dict[str, float]:
    """All of them at once, from one decomposition: effective_rank, cosine, isotropy, isotropy_symmetric, spectral_norm."""
    matrix = _double(matrix)
    if not bool(torch.isfinite(matrix).all()):
        return dict.fromkeys(("effective_rank", "cosine", "isotropy", "isotropy_symmetric", "spectral_norm"), math.nan)
    singular_values, directions = _decompose(matrix)
    one_sided, symmetric = _isotropies(matrix, directions)
    return {
        "effective_rank": _effective_rank(singular_values, matrix.shape[1]),
        "cosine": _mean_cosine(matrix),
        "isotropy": one_sided,
        "isotropy_symmetric": symmetric,
        "spectral_norm": float(singular_values[0]),
    }


def effective_rank(matrix: torch.Tensor) -> float:
    """exp(-sum p_i ln p_i) / d with p_i = s_i / sum(s) over the singular values s, in (0, 1].

    Roy and Vetterli 2007, normalised by the d columns as in arXiv 2602.20433, equation 1.
    """
    return measure_one(matrix, "effective_rank")


def mean_cosine(matrix: torch.Tensor) -> float:
    """Mean cosine similarity over distinct pairs of rows, in [-1, 1].

    Exactly (|sum u_i|^2 - n) / (n (n - 1)) over the n unit rows u_i. A zero row has no direction and is left out; fewer
    than two rows with one give 0.
    """
    return measure_one(matrix, "cosine")


def isotropy(matrix: torch.Tensor) -> float:
    """min Z(a) / max Z(a), with Z(a) = sum_i exp(a . w_i), over the unit eigenvectors a of W^T W; in [0, 1].

    Arora et al. 2016. An eigenvector's sign is arbitrary and changes the value: here each has its component of largest
    magnitude positive. Rows are taken as they are, not normalised. Where eigenvalues coincide the eigenvectors, and so
    the value, are not determined by the matrix.
    """
    return measure_one(matrix, "isotropy")


def isotropy_symmetric(matrix: torch.Tensor) -> float:
    """As `isotropy`, over both signs of every eigenvector: the same for either choice of sign; in [0, 1]."""
    return measure_one(matrix, "isotropy_symmetric")


def spectral_norm(matrix: torch.Tensor) -> float:
    """The largest singular value."""
    return measure_one(matrix, "spectral_norm")


def measure_one(matrix: torch.Tensor, name: str) -> float:
    """One entry of `measure`, without the work of the others."""
    matrix = _double(matrix)
    if not bool(torch.isfinite(matrix).all()):
        return math.nan
    if name == "cosine":
        return _mean_cosine(matrix)
    singular_values, directions = _decompose(matrix)
    if name == "effective_rank":
        return _effective_rank(singular_values, matrix.shape[1])
    if name == "spectral_norm":
        return float(singular_values[0])
    return _isotropies(matrix, directions)[name == "isotropy_symmetric"]


def _double(matrix: torch.Tensor) -> torch.Tensor:
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise ValueError(f"a matrix with rows and columns is needed, not a tensor of shape {tuple(matrix.shape)}")
    return matrix.detach().to(torch.float64)


def _decompose(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Singular values (falling) and right singular vectors as columns, d x min(V, d) or d x d.

    Through the triangle of a QR decomposition, a d x d matrix with the same singular values and right vectors: as
    accurate as an SVD of the whole, where the eigenvalues of W^T W would lose half of the digits of the small ones.
    """
    scale = matrix.abs().max()
    if scale == 0:
        d = matrix.shape[1]
        return matrix.new_zeros(d), torch.eye(d, dtype=matrix.dtype, device=matrix.device)
    triangle = torch.linalg.qr(matrix / scale, mode="r").R
    _, singular_values, directions = torch.linalg.svd(triangle, full_matrices=False)
    return singular_values * scale, directions.T


def _effective_rank(singular_values: torch.Tensor, columns: int) -> float:
    if singular_values[0] == 0:
        return 0.0
    share = singular_values / singular_values[0]
    share = share / share.sum()
    return float(torch.exp(torch.special.entr(share).sum()) / columns)


def _mean_cosine(matrix: torch.Tensor) -> float:
    # Scaling by the largest component first keeps the norm of a very large row from overflowing.
    largest = matrix.abs().amax(dim=1, keepdim=True)
    rows = matrix[largest[:, 0] > 0] / largest[largest > 0][:, None]
    n = len(rows)
    if n < 2:
        return 0.0
    total = (rows / rows.norm(dim=1, keepdim=True)).sum(dim=0)
    return float((total @ total - n) / (n * (n - 1)))


def _isotropies(matrix: torch.Tensor, directions: torch.Tensor) -> tuple[float, float]:
    """`isotropy` and `isotropy_symmetric`, from the logarithms of Z over every direction and its opposite."""
    largest = directions.abs().argmax(dim=0)
    directions = directions * directions.gather(0, largest[None]).sign()
    parts = []
    for rows in matrix.split(_ROWS):
        products = rows @ directions
        parts.append(torch.stack([products.logsumexp(dim=0), products.neg_().logsumexp(dim=0)]))
    log_z = torch.stack(parts).logsumexp(dim=0)
    positive = log_z[0]
    return (
        float(torch.exp(positive.min() - positive.max())),
        float(torch.exp(log_z.min() - log_z.max())),
    )
