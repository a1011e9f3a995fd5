"""Against closed forms, and against the definitions written out slowly here."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from raysweep.model import geometry
from raysweep.model.geometry import effective_rank, isotropy, isotropy_symmetric, mean_cosine, measure, spectral_norm


def random_matrix(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64) * 0.3 + 0.05


def slow_effective_rank(matrix: torch.Tensor) -> float:
    singular_values = np.linalg.svd(matrix.numpy(), compute_uv=False)
    shares = [s / singular_values.sum() for s in singular_values if s > 0]
    return math.exp(-sum(p * math.log(p) for p in shares)) / matrix.shape[1]


def slow_cosine(matrix: torch.Tensor) -> float:
    rows = [row / np.linalg.norm(row) for row in matrix.numpy()]
    pairs = [float(rows[i] @ rows[j]) for i in range(len(rows)) for j in range(i)]
    return sum(pairs) / len(pairs)


def slow_isotropies(matrix: torch.Tensor) -> tuple[float, float]:
    w = matrix.numpy()
    _, vectors = np.linalg.eigh(w.T @ w)
    one_sided, both = [], []
    for a in vectors.T:
        a = a * np.sign(a[np.argmax(np.abs(a))])
        one_sided.append(sum(math.exp(float(row @ a)) for row in w))
        both += [one_sided[-1], sum(math.exp(-float(row @ a)) for row in w)]
    return min(one_sided) / max(one_sided), min(both) / max(both)


@pytest.mark.parametrize(("rows", "columns"), [(60, 8), (9000, 16), (5, 12), (7, 7)])
def test_against_the_definitions_written_out(rows: int, columns: int) -> None:
    matrix = random_matrix(rows, columns)
    small = matrix[:300]
    assert effective_rank(matrix) == pytest.approx(slow_effective_rank(matrix), abs=1e-12)
    assert mean_cosine(small) == pytest.approx(slow_cosine(small), abs=1e-12)
    assert spectral_norm(matrix) == pytest.approx(float(np.linalg.norm(matrix.numpy(), 2)), rel=1e-12)
    # Where there are fewer rows than columns, Z is the same over the whole null space, whatever its basis.
    one_sided, symmetric = slow_isotropies(matrix)
    assert isotropy(matrix) == pytest.approx(one_sided, rel=1e-9)
    assert isotropy_symmetric(matrix) == pytest.approx(symmetric, rel=1e-9)


def test_orthogonal_columns_have_full_rank() -> None:
    orthogonal, _ = torch.linalg.qr(random_matrix(40, 6))
    assert effective_rank(orthogonal) == pytest.approx(1.0, abs=1e-12)
    assert spectral_norm(orthogonal) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_rank_one_has_rank_one_over_d(scale: float) -> None:
    generator = torch.Generator().manual_seed(1)
    row = torch.randn(1, 16, generator=generator, dtype=torch.float64)
    column = torch.randn(50, 1, generator=generator, dtype=torch.float64)
    assert effective_rank(scale * column @ row) == pytest.approx(1 / 16, rel=1e-11)


def test_effective_rank_is_exp_of_minus_singular_entropy() -> None:
    """Singular entropy is KL(p || uniform) over the singular values (facts of the paper)."""
    matrix = random_matrix(100, 10)
    singular_values = np.linalg.svd(matrix.numpy(), compute_uv=False)
    p = singular_values / singular_values.sum()
    singular_entropy = float((p * np.log(p / (1 / 10))).sum())
    assert effective_rank(matrix) == pytest.approx(math.exp(-singular_entropy), rel=1e-12)


def test_invariant_under_scale_and_rotation() -> None:
    matrix = random_matrix(200, 12)
    rotation, _ = torch.linalg.qr(random_matrix(12, 12, seed=3))
    for changed in (17.0 * matrix, matrix @ rotation, matrix[torch.randperm(200)]):
        assert effective_rank(changed) == pytest.approx(effective_rank(matrix), rel=1e-11)
        assert mean_cosine(changed) == pytest.approx(mean_cosine(matrix), abs=1e-11)
    assert isotropy_symmetric(matrix @ rotation) == pytest.approx(isotropy_symmetric(matrix), rel=1e-9)


def test_cosine_of_opposite_and_equal_rows() -> None:
    rows = random_matrix(5, 8)
    # 10 rows in 5 opposite pairs: their unit rows sum to zero.
    assert mean_cosine(torch.cat([rows, -rows])) == pytest.approx(-1 / 9, abs=1e-12)
    assert mean_cosine(rows[:1].repeat(20, 1)) == pytest.approx(1.0, abs=1e-12)
    assert mean_cosine(torch.eye(7)) == pytest.approx(0.0, abs=1e-12)
    # A row of zeros has no direction: it changes nothing.
    assert mean_cosine(torch.cat([rows, torch.zeros(3, 8)])) == pytest.approx(mean_cosine(rows), abs=1e-12)


def test_isotropy_of_two_points_by_hand() -> None:
    """Rows (2, 0) and (0, 1): the eigenvectors are the axes, Z = e^2 + 1 and 1 + e; with both signs also e^-2 + 1."""
    matrix = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    e = math.e
    assert isotropy(matrix) == pytest.approx((1 + e) / (e**2 + 1), rel=1e-12)
    assert isotropy_symmetric(matrix) == pytest.approx((1 + e**-2) / (e**2 + 1), rel=1e-12)


def test_isotropy_of_a_cloud_with_a_mean() -> None:
    """N(0.05, 0.3), 20000 x 64: 0.666 one-sided and 0.449 over both signs, as computed when the design was written."""
    matrix = random_matrix(20000, 64)
    assert isotropy(matrix) == pytest.approx(0.666, abs=0.02)
    assert isotropy_symmetric(matrix) == pytest.approx(0.449, abs=0.02)


@pytest.mark.parametrize(
    "matrix",
    [
        torch.zeros(6, 3),
        torch.ones(1, 1),
        torch.ones(9, 4) * 3e38,
        torch.ones(9, 4, dtype=torch.float64) * 1e300,
        random_matrix(4, 3) * 1e300,
        random_matrix(9, 4) * 1e-300,
        torch.cat([torch.ones(5, 3), torch.zeros(5, 3)]),
        random_matrix(1, 5),
        random_matrix(6, 3).repeat(4, 1),
        random_matrix(6, 3).to(torch.bfloat16),
    ],
)
def test_finite_and_in_range_for_awkward_matrices(matrix: torch.Tensor) -> None:
    measured = measure(matrix)
    assert all(math.isfinite(value) for value in measured.values()), measured
    assert 0 <= measured["effective_rank"] <= 1 + 1e-12
    assert -1 - 1e-9 <= measured["cosine"] <= 1 + 1e-9
    assert 0 <= measured["isotropy_symmetric"] <= measured["isotropy"] <= 1 + 1e-12


def test_zeros_have_rank_zero() -> None:
    assert measure(torch.zeros(6, 3)) == {
        "effective_rank": 0.0, "cosine": 0.0, "isotropy": 1.0, "isotropy_symmetric": 1.0, "spectral_norm": 0.0,
    }  # fmt: skip


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_matrix_that_is_not_finite_gives_nan(bad: float) -> None:
    matrix = random_matrix(5, 3)
    matrix[2, 1] = bad
    assert all(math.isnan(value) for value in measure(matrix).values())
    assert math.isnan(effective_rank(matrix))


def test_each_function_equals_its_entry_of_measure() -> None:
    matrix = random_matrix(50, 6)
    measured = measure(matrix)
    alone = {
        "effective_rank": effective_rank(matrix),
        "cosine": mean_cosine(matrix),
        "isotropy": isotropy(matrix),
        "isotropy_symmetric": isotropy_symmetric(matrix),
        "spectral_norm": spectral_norm(matrix),
    }
    assert measured == alone


@pytest.mark.parametrize("shape", [(3,), (0, 4), (4, 0), (2, 3, 4)])
def test_what_is_no_matrix_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="a matrix with rows and columns"):
        measure(torch.ones(shape))


def test_no_ray_is_imported() -> None:
    code = (
        "import sys; from raysweep.model.geometry import effective_rank; assert not {'ray', 'olmo'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_rows_taken_in_blocks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = random_matrix(100, 6)
    whole = measure(matrix)
    monkeypatch.setattr(geometry, "_ROWS", 7)
    assert measure(matrix) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("smallest", [1e-1, 1e-4, 0.9e-5, 1.1e-5, 1e-8, 1e-13])
def test_a_known_spectrum_whichever_way_it_is_decomposed(smallest: float) -> None:
    """Singular values from 1 down to `smallest`, on both sides of where W^T W stops being enough."""
    left, _ = torch.linalg.qr(random_matrix(3000, 32))
    right, _ = torch.linalg.qr(random_matrix(32, 32, seed=5))
    spectrum = torch.logspace(0, math.log10(smallest), 32, dtype=torch.float64)
    share = spectrum / spectrum.sum()
    measured = measure(left * spectrum @ right.T)
    assert measured["effective_rank"] == pytest.approx(math.exp(-float((share * share.log()).sum())) / 32, rel=1e-12)
    assert measured["spectral_norm"] == pytest.approx(1.0, rel=1e-12)


def test_large_exponents_are_taken_as_logarithms() -> None:
    """Rows (800, 0) and (0, 1): Z = e^800 + 1 and 1 + e, whose ratio is (1 + e) / e^800 but for less than rounding."""
    measured = measure(torch.tensor([[800.0, 0.0], [0.0, 1.0]], dtype=torch.float64))
    assert measured["isotropy"] == pytest.approx((1 + math.e) * math.exp(-800), rel=1e-9, abs=0)
    shifted = measure(torch.tensor([[700.0, 0.0], [0.0, 690.0]], dtype=torch.float64))
    assert shifted["isotropy"] == pytest.approx(math.exp(-10), rel=1e-9)


def test_numbers_of_eight_bits_are_measured_as_what_they_are() -> None:
    small = random_matrix(40, 6).to(torch.float8_e4m3fn)
    assert measure(small) == measure(small.to(torch.float64))


def test_more_equal_rows_change_no_isotropy() -> None:
    """Of one row, of as many as columns, and of more: min Z is at the null space, exp(|w|) times lower than along w."""
    for rows in (1, 3, 5):
        assert isotropy(torch.ones(rows, 3)) == pytest.approx(math.exp(-math.sqrt(3)), rel=1e-12)
