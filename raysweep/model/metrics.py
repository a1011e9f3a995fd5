"""What can be measured of a matrix, by name: the functions behind `raysweep.space.metrics.MEASURES`.

Each takes a `Matrix` and returns a float; those of two matrices take both. The rows of a matrix are vectors, its d columns
their components. s_1 >= ... >= s_k are its k = min(rows, d) singular values. A matrix with a NaN or an infinity gives NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property

import torch

from raysweep.model import geometry

# Singular values below this share of the largest are rounding.
_NEGLIGIBLE = 1e-10


class Matrix:
    """A matrix with what several metrics need of it, computed once."""

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values.detach()

    @cached_property
    def _geometry(self) -> tuple[dict[str, float], torch.Tensor]:
        return geometry.measure_with_spectrum(self.values)

    @property
    def geometry(self) -> dict[str, float]:
        """What `raysweep.model.geometry.measure` gives."""
        return self._geometry[0]

    @property
    def tall(self) -> bool:
        """Whether it has so many more rows than columns that `raysweep.model.geometry` is faster than LAPACK."""
        return len(self.values) > 4 * self.values.shape[1]

    @cached_property
    def spectrum(self) -> torch.Tensor:
        """Its singular values, float64, (k,), the largest first; NaN where it is not finite."""
        if self.tall or not bool(self.values.isfinite().all()):
            return self._geometry[1]
        values: torch.Tensor = torch.linalg.svdvals(self.values.to(torch.float64))
        return values

    @property
    def eigenvalues(self) -> torch.Tensor:
        """The squares of its singular values, as shares of the largest; zeros where all are."""
        largest = self.spectrum.max()
        return (self.spectrum / largest.where(largest != 0, 1.0)).square()

    @cached_property
    def centred(self) -> torch.Tensor:
        """Its rows less their mean, float64."""
        rows = self.values.to(torch.float64)
        return rows - rows.mean(dim=0)

    @cached_property
    def variances(self) -> torch.Tensor:
        """The eigenvalues of the covariance of its rows, float64, (d,), up to a factor: the largest is 1, or all are 0."""
        spectrum = geometry.singular_values(self.centred)
        largest = spectrum.max()
        shares = (spectrum / largest.where(largest != 0, 1.0)).square()
        return torch.cat([shares, shares.new_zeros(self.values.shape[1] - len(shares))])

    @cached_property
    def entries(self) -> torch.Tensor:
        """The magnitudes of its entries, float64, as shares of the largest; zeros where all are."""
        magnitudes = self.values.to(torch.float64).abs().flatten()
        largest = magnitudes.max()
        return magnitudes / largest.where(largest != 0, 1.0)


def effective_rank(matrix: Matrix) -> float:
    """exp(-sum p_i ln p_i) / d, p_i = s_i / sum(s), in (0, 1]: `raysweep.model.geometry.effective_rank`."""
    if matrix.tall:
        return matrix.geometry["effective_rank"]
    return geometry.effective_rank_of(matrix.spectrum, matrix.values.shape[1])


def cosine(matrix: Matrix) -> float:
    """Mean cosine of distinct pairs of rows, in [-1, 1]: `raysweep.model.geometry.mean_cosine`."""
    return geometry.mean_cosine(matrix.values)


def isotropy(matrix: Matrix) -> float:
    """min Z / max Z over the eigenvectors of W^T W: `raysweep.model.geometry.isotropy`."""
    return matrix.geometry["isotropy"]


def isotropy_symmetric(matrix: Matrix) -> float:
    """As `isotropy`, over both signs of every eigenvector: `raysweep.model.geometry.isotropy_symmetric`."""
    return matrix.geometry["isotropy_symmetric"]


def spectral_norm(matrix: Matrix) -> float:
    """s_1."""
    return float(matrix.spectrum[0])


def rankme(matrix: Matrix) -> float:
    """exp(-sum p_i ln p_i), p_i = s_i / sum(s) + 1e-7. Garrido et al. 2023, "RankMe", equation 1. Zeros give 0."""
    total = matrix.spectrum.sum()
    if float(total) == 0:
        return 0.0
    shares = matrix.spectrum / total + 1e-7
    return float(torch.exp(-(shares * shares.log()).sum()))


def stable_rank(matrix: Matrix) -> float:
    """sum(s^2) / s_1^2, in [1, k]. Rudelson and Vershynin 2007. Zeros give 0."""
    return float(matrix.eigenvalues.sum())


def participation_ratio(matrix: Matrix) -> float:
    """(sum s^2)^2 / sum(s^4), in [1, k]. Gao et al. 2017. Zeros give 0."""
    return _participation(matrix.eigenvalues)


def condition_number(matrix: Matrix) -> float:
    """s_1 / s_k. Infinite where s_k is rounding or 0; zeros give NaN."""
    first, last = float(matrix.spectrum[0]), float(matrix.spectrum[-1])
    if first == 0 or math.isnan(first):
        return math.nan
    return first / last if last > _NEGLIGIBLE * first else math.inf


def nuclear_norm(matrix: Matrix) -> float:
    """sum(s)."""
    return float(matrix.spectrum.sum())


def frobenius_norm(matrix: Matrix) -> float:
    """sqrt(sum s^2), the root of the sum of all squared entries."""
    return float(torch.linalg.vector_norm(matrix.spectrum))


def alpha_req(matrix: Matrix) -> float:
    """The exponent alpha of a power law s_i^2 ~ i^-alpha: Agrawal et al. 2022, "alpha-ReQ".

    By least squares of ln s_i^2 on ln i with weights 1 / i (Stringer et al. 2019), over all singular values that are not
    rounding; NaN where there are fewer than two.
    """
    values = matrix.spectrum[matrix.spectrum > _NEGLIGIBLE * matrix.spectrum[0]]
    if len(values) < 2:
        return math.nan
    places = torch.arange(1, len(values) + 1, dtype=torch.float64, device=values.device)
    weights = 1 / places
    x, y = places.log(), 2 * values.log()
    x = x - (weights * x).sum() / weights.sum()
    return float(-(weights * x * y).sum() / (weights * x * x).sum())


def cosine_centred(matrix: Matrix) -> float:
    """The mean cosine of distinct pairs of rows, after the mean row is taken off. Fewer than two that differ give 0."""
    return geometry.mean_cosine(matrix.centred)


def isoscore(matrix: Matrix) -> float:
    """How evenly the rows vary over all directions, in [0, 1]: Rudman et al. 2022, "IsoScore".

    With the variances v along the d principal components the paper's algorithm comes to (P - 1) / (d - 1), where P is
    (sum v)^2 / sum(v^2). Rows that do not vary, and d = 1, give 0.
    """
    columns = matrix.values.shape[1]
    used = _participation(matrix.variances)
    return (used - 1) / (columns - 1) if columns > 1 and used != 0 else 0.0


def hoyer(matrix: Matrix) -> float:
    """How sparse the entries are, in [0, 1]: (sqrt(n) - |x|_1 / |x|_2) / (sqrt(n) - 1) of n entries. Hoyer 2004.

    1 where one entry is not zero, 0 where all have one magnitude, all are zero, or there is one.
    """
    entries = matrix.entries
    norm, root = float(torch.linalg.vector_norm(entries)), math.sqrt(len(entries))
    return (root - float(entries.sum()) / norm) / (root - 1) if norm != 0 and len(entries) > 1 else 0.0


def gini(matrix: Matrix) -> float:
    """How unequal the magnitudes of the entries are, in [0, 1): the Gini index of Hurley and Rickard 2009.

    1 - 2 sum_k (x_k / sum x) (n - k + 1/2) / n over the n magnitudes in ascending order. Zeros give 0.
    """
    entries = matrix.entries.sort().values
    n, total = len(entries), float(entries.sum())
    if total == 0:
        return 0.0
    places = torch.arange(n, 0, -1, dtype=torch.float64, device=entries.device) - 0.5
    return 1 - 2 * float(entries @ places) / (total * n)


def cka(matrix: Matrix, other: Matrix) -> float:
    """Linear centred kernel alignment of two matrices with as many rows, in [0, 1]. Kornblith et al. 2019, equation 3.

    |Y^T X|_F^2 / (|X^T X|_F |Y^T Y|_F) of centred rows. 0 where the rows of one do not vary.
    """
    x, y = matrix.centred, other.centred
    norms = torch.linalg.matrix_norm(x.T @ x) * torch.linalg.matrix_norm(y.T @ y)
    return float(torch.linalg.matrix_norm(y.T @ x).square() / norms) if float(norms) != 0 else 0.0


def pwcca(matrix: Matrix, other: Matrix) -> float:
    """Projection-weighted canonical correlation of two matrices of as many rows, in [0, 1]. Morcos et al. 2018.

    Their equation 2: the canonical correlations of centred rows, weighted by how much of the first matrix each canonical
    direction accounts for. 0 where the rows of one do not vary. NaN where there are so few rows that some correlations are 1
    whatever the matrices: fewer than their ranks together.
    """
    if not bool(matrix.centred.isfinite().all() and other.centred.isfinite().all()):
        return math.nan
    of_first, of_second = _orthonormal(matrix.centred), _orthonormal(other.centred)
    if not of_first.shape[1] or not of_second.shape[1]:
        return 0.0
    if of_first.shape[1] + of_second.shape[1] >= len(of_first):
        return math.nan
    left, correlations, _ = torch.linalg.svd(of_first.T @ of_second, full_matrices=False)
    weights = ((of_first @ left).T @ matrix.centred).abs().sum(dim=1)
    return float((weights * correlations.clamp_max(1)).sum() / weights.sum())


def _orthonormal(rows: torch.Tensor) -> torch.Tensor:
    """An orthonormal basis of the columns of a matrix, (rows, rank)."""
    vectors, values, _ = torch.linalg.svd(rows, full_matrices=False)
    basis: torch.Tensor = vectors[:, (values > _NEGLIGIBLE * values.max()) & (values > 0)]
    return basis


def _participation(shares: torch.Tensor) -> float:
    squares = float(shares.square().sum())
    return float(shares.sum()) ** 2 / squares if squares != 0 else 0.0


OF_ONE: dict[str, Callable[[Matrix], float]] = {
    "effective_rank": effective_rank,
    "cosine": cosine,
    "isotropy": isotropy,
    "isotropy_symmetric": isotropy_symmetric,
    "spectral_norm": spectral_norm,
    "cosine_centred": cosine_centred,
    "rankme": rankme,
    "stable_rank": stable_rank,
    "participation_ratio": participation_ratio,
    "condition_number": condition_number,
    "nuclear_norm": nuclear_norm,
    "frobenius_norm": frobenius_norm,
    "alpha_req": alpha_req,
    "isoscore": isoscore,
    "hoyer": hoyer,
    "gini": gini,
}

OF_TWO: dict[str, Callable[[Matrix, Matrix], float]] = {"cka": cka, "pwcca": pwcca}
