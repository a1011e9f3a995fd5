"""The geometry of a matrix of row vectors: pure functions, in float64, exact, in O(V d^2).

Each takes a V x d tensor (an unembedding W, or final hidden states H) of any floating type on any device and returns a
Python float. A matrix with a NaN or an infinity gives NaN; a matrix of zeros gives 0 everywhere except in the
isotropies, which are 1. Nothing of size V x V is made.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

# Rows taken at a time, so that a copy of them stays in the cache from one operation to the next.
_ROWS = 1024

# Columns of W^T W taken at a time.
_COLUMNS = 128

# Up to here a sum of exponentials is taken as it stands: no overflow in any number of rows.
_EXPONENT = 300.0


def measure(matrix: torch.Tensor) -> dict[str, float]:
    """All of them at once, in two passes: effective_rank, cosine, isotropy, isotropy_symmetric, spectral_norm."""
    return measure_with_spectrum(matrix)[0]


def singular_values(matrix: torch.Tensor) -> torch.Tensor:
    """The min(V, d) singular values, float64, the largest first; NaN where the matrix has a NaN or an infinity."""
    return measure_with_spectrum(matrix)[1]


def measure_with_spectrum(matrix: torch.Tensor) -> tuple[dict[str, float], torch.Tensor]:
    """What `measure` and `singular_values` give, for the price of one of them."""
    _check(matrix)
    if matrix.element_size() == 1:  # PyTorch has no arithmetic for numbers of 8 bits.
        matrix = matrix.to(torch.float32)
    scale = float(matrix.detach().abs().max())
    if not math.isfinite(scale):
        names = ("effective_rank", "cosine", "isotropy", "isotropy_symmetric", "spectral_norm")
        spectrum = torch.full((min(matrix.shape),), math.nan, dtype=torch.float64, device=matrix.device)
        return dict.fromkeys(names, math.nan), spectrum
    directions = _directions(matrix, scale)
    spectrum, log_z = _project(matrix, directions, scale)
    if directions.shape[1] < matrix.shape[1]:
        # Every row is at a right angle to the directions that are left: Z is the number of rows there.
        log_z = torch.cat([log_z, torch.full_like(log_z[:, :1], math.log(len(matrix)))], dim=1)
    positive = log_z[0]
    values = {
        "effective_rank": effective_rank_of(spectrum, matrix.shape[1]),
        "cosine": mean_cosine(matrix),
        "isotropy": float(torch.exp(positive.min() - positive.max())),
        "isotropy_symmetric": float(torch.exp(log_z.min() - log_z.max())),
        "spectral_norm": float(spectrum.max()),
    }
    return values, spectrum.sort(descending=True).values


def effective_rank(matrix: torch.Tensor) -> float:
    """exp(-sum p_i ln p_i) / d with p_i = s_i / sum(s) over the singular values s, in (0, 1].

    Roy and Vetterli 2007, normalised by the d columns as in arXiv 2602.20433, equation 1.
    """
    return measure(matrix)["effective_rank"]


def mean_cosine(matrix: torch.Tensor) -> float:
    """Mean cosine similarity over distinct pairs of rows, in [-1, 1].

    Exactly (|sum u_i|^2 - n) / (n (n - 1)) over the n unit rows u_i. A zero row has no direction and is left out; fewer
    than two rows with one give 0.
    """
    _check(matrix)
    n = 0
    total = torch.zeros(matrix.shape[1], dtype=torch.float64, device=matrix.device)
    for rows in _blocks(matrix):
        # Scaling by the largest component first keeps the norm of a very large row from overflowing.
        largest = rows.abs().amax(dim=1, keepdim=True)
        rows = rows / largest.where(largest > 0, 1.0)
        norms = rows.norm(dim=1)
        total += (1 / norms.where(norms > 0, 1.0)) @ rows
        n += int(norms.ne(0).sum())
    if n < 2:
        return float(total.sum()) if bool(total.isnan().any()) else 0.0
    return float((total @ total - n) / (n * (n - 1)))


def isotropy(matrix: torch.Tensor) -> float:
    """min Z(a) / max Z(a), with Z(a) = sum_i exp(a . w_i), over the unit eigenvectors a of W^T W; in [0, 1].

    Arora et al. 2016. An eigenvector's sign is arbitrary and changes the value: here each has its component of largest
    magnitude positive. Rows are taken as they are, not normalised. Where eigenvalues coincide the eigenvectors, and so
    the value, are not determined by the matrix.
    """
    return measure(matrix)["isotropy"]


def isotropy_symmetric(matrix: torch.Tensor) -> float:
    """As `isotropy`, over both signs of every eigenvector: the same for either choice of sign; in [0, 1]."""
    return measure(matrix)["isotropy_symmetric"]


def spectral_norm(matrix: torch.Tensor) -> float:
    """The largest singular value."""
    return measure(matrix)["spectral_norm"]


def _check(matrix: torch.Tensor) -> None:
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise ValueError(f"a matrix with rows and columns is needed, not a tensor of shape {tuple(matrix.shape)}")


def _blocks(matrix: torch.Tensor) -> Iterator[torch.Tensor]:
    """The rows in float64, some at a time, so that no copy of the whole is made."""
    return (rows.to(torch.float64) for rows in matrix.detach().split(_ROWS))


def _directions(matrix: torch.Tensor, scale: float) -> torch.Tensor:
    """Unit eigenvectors of W^T W as columns, d x d, or d x min(V, d) where there are fewer rows than columns.

    From W^T W itself where no singular value is below 1e-5 of the largest. An eigenvector is then off by no more than
    rounding times 1e5 in the directions of the others, and so is the singular value that `_project` takes as the norm of
    W a: about 1e-11 of the largest one. Otherwise, since W^T W has lost half of the digits of the small ones, through the
    triangle of a QR decomposition, a d x d matrix with the same singular values and right vectors.
    """
    d = matrix.shape[1]
    if scale == 0:
        return torch.eye(d, dtype=torch.float64, device=matrix.device)
    if len(matrix) >= d:
        gram = torch.zeros(d, d, dtype=torch.float64, device=matrix.device)
        for rows in _blocks(matrix):
            rows = rows / scale
            # Above the diagonal only: a fraction of the products.
            for start in range(0, d, _COLUMNS):
                gram[start : start + _COLUMNS, start:].addmm_(rows[:, start : start + _COLUMNS].T, rows[:, start:])
        vectors: torch.Tensor
        eigenvalues, vectors = torch.linalg.eigh(gram, UPLO="U")
        if eigenvalues[0] > 1e-10 * eigenvalues[-1]:
            return vectors
    triangle = torch.linalg.qr(matrix.detach().to(torch.float64) / scale, mode="r").R
    vectors = torch.linalg.svd(triangle, full_matrices=False).Vh.T
    return vectors


def _project(matrix: torch.Tensor, directions: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The singular value of each direction, |W a|, and log Z(a) and log Z(-a) as the rows of a 2 x directions tensor."""
    largest = directions.abs().argmax(dim=0)
    directions = directions * directions.gather(0, largest[None]).sign()
    squares = torch.zeros(directions.shape[1], dtype=torch.float64, device=matrix.device)
    parts = []
    for rows in _blocks(matrix):
        products = (rows / scale if scale else rows) @ directions
        squares += torch.linalg.vecdot(products, products, dim=0)
        products *= scale
        if float(products.abs().max()) < _EXPONENT:
            exponentials = products.exp_()
            parts.append(torch.stack([exponentials.sum(dim=0), exponentials.reciprocal_().sum(dim=0)]).log())
        else:
            parts.append(torch.stack([products.logsumexp(dim=0), products.neg_().logsumexp(dim=0)]))
    return squares.sqrt() * scale, torch.stack(parts).logsumexp(dim=0)


def effective_rank_of(singular_values: torch.Tensor, columns: int) -> float:
    """`effective_rank` of a matrix with so many columns, by its singular values."""
    largest = singular_values.max()
    if largest == 0:
        return 0.0
    share = singular_values / largest
    share = share / share.sum()
    return float(torch.exp(torch.special.entr(share).sum()) / columns)
