"""Metrics of any matrix: against closed forms, and against their papers' definitions written out slowly here."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.linalg
import torch
from numpy.typing import NDArray

from raysweep.model import metrics
from raysweep.model.metrics import Matrix
from raysweep.space import metrics as names

Array = NDArray[np.float64]


def of(values: torch.Tensor, name: str) -> float:
    return metrics.OF_ONE[name](Matrix(values))


def random(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scales = torch.linspace(1, 0.2, columns, dtype=torch.float64)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64) * scales + 0.3


def with_spectrum(values: list[float], rows: int = 40) -> torch.Tensor:
    columns = len(values)
    left = torch.linalg.qr(random(rows, columns, 1))[0]
    right = torch.linalg.qr(random(columns, columns, 2))[0]
    return left @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ right.T


def test_the_search_space_knows_the_same_names() -> None:
    assert list(metrics.OF_ONE) == list(names.OF_ONE)
    assert list(metrics.OF_TWO) == list(names.OF_TWO)
    assert all(function.__doc__ for function in (*metrics.OF_ONE.values(), *metrics.OF_TWO.values()))


def test_of_a_spectrum_by_hand() -> None:
    matrix = with_spectrum([4.0, 2.0, 2.0])
    shares = np.array([0.5, 0.25, 0.25])
    wanted = {
        "stable_rank": (16 + 4 + 4) / 16,
        "participation_ratio": 24**2 / (256 + 16 + 16),
        "condition_number": 2.0,
        "nuclear_norm": 8.0,
        "frobenius_norm": math.sqrt(24),
        "spectral_norm": 4.0,
        "effective_rank": math.exp(-(shares * np.log(shares)).sum()) / 3,
        "rankme": math.exp(-((shares + 1e-7) * np.log(shares + 1e-7)).sum()),
    }
    assert {name: of(matrix, name) for name in wanted} == pytest.approx(wanted, rel=1e-12)
    assert Matrix(matrix).spectrum.numpy() == pytest.approx([4, 2, 2], rel=1e-12)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.5])
def test_a_power_law_has_its_exponent(exponent: float) -> None:
    matrix = with_spectrum([float(i) ** (-exponent / 2) for i in range(1, 13)])
    assert of(matrix, "alpha_req") == pytest.approx(exponent, rel=1e-9)


def test_alpha_by_weighted_least_squares() -> None:
    values = np.array([3.0, 2.5, 1.0, 0.9, 0.2])
    x, weights = np.log(np.arange(1, 6)), np.sqrt(1 / np.arange(1, 6))
    design = np.stack([np.ones(5), -x], axis=1) * weights[:, None]
    (_, slope), *_ = np.linalg.lstsq(design, 2 * np.log(values) * weights, rcond=None)
    assert of(with_spectrum(values.tolist()), "alpha_req") == pytest.approx(slope, rel=1e-9)


def slow_isoscore(rows: Array) -> float:
    """The algorithm of Rudman et al. 2022, step by step."""
    n = rows.shape[1]
    _, vectors = np.linalg.eigh(np.cov(rows.T))
    variances = np.diag(np.cov((rows @ vectors).T))
    normalised = np.sqrt(n) * variances / np.linalg.norm(variances)
    defect = np.linalg.norm(normalised - 1) / np.sqrt(2 * (n - np.sqrt(n)))
    used = (n - defect**2 * (n - np.sqrt(n))) ** 2 / n**2
    return float((n * used - 1) / (n - 1))


def slow_gini(rows: Array) -> float:
    """Half the mean absolute difference of all pairs over the mean."""
    x = np.abs(rows).flatten()
    return float(np.abs(x[:, None] - x[None, :]).mean() / (2 * x.mean()))


def slow_hoyer(rows: Array) -> float:
    x = rows.flatten()
    n = len(x)
    return float((math.sqrt(n) - np.abs(x).sum() / math.sqrt((x**2).sum())) / (math.sqrt(n) - 1))


def slow_cosine_centred(rows: Array) -> float:
    rows = rows - rows.mean(axis=0)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    pairs = [float(rows[i] @ rows[j]) for i in range(len(rows)) for j in range(i)]
    return float(np.mean(pairs))


@pytest.mark.parametrize(
    ("name", "slow"),
    [
        ("isoscore", slow_isoscore), ("gini", slow_gini), ("hoyer", slow_hoyer), ("cosine_centred", slow_cosine_centred),
    ],
)  # fmt: skip
@pytest.mark.parametrize(("rows", "columns"), [(60, 8), (30, 12), (9, 5)])
def test_against_the_definitions(name: str, slow: Callable[[Array], float], rows: int, columns: int) -> None:
    matrix = random(rows, columns)
    assert of(matrix, name) == pytest.approx(slow(matrix.numpy()), rel=1e-9, abs=1e-12)


def test_sparsity_at_its_ends() -> None:
    one = torch.zeros(5, 4)
    one[2, 1] = -3.0
    assert of(one, "hoyer") == pytest.approx(1)
    assert of(one, "gini") == pytest.approx(1 - 1 / 20)
    even = torch.tensor([[2.0, -2.0], [-2.0, 2.0]])
    assert of(even, "hoyer") == pytest.approx(0)
    assert of(even, "gini") == pytest.approx(0)


def slow_cka(x: Array, y: Array) -> float:
    """By the Gram matrices of examples, with HSIC's centring (Kornblith et al. 2019, equations 2 and 3)."""
    n = len(x)
    centring = np.eye(n) - 1 / n

    def hsic(k: Array, m: Array) -> float:
        return float(np.trace(k @ centring @ m @ centring) / (n - 1) ** 2)

    k, m = x @ x.T, y @ y.T
    return hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m))


def slow_pwcca(x: Array, y: Array) -> float:
    """Canonical directions by the generalised eigenproblem, not by an SVD of orthonormal bases."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    cross = x.T @ y @ np.linalg.solve(y.T @ y, y.T @ x)
    squares, directions = scipy.linalg.eigh(cross, x.T @ x)
    order = np.argsort(-squares)[: min(x.shape[1], y.shape[1])]
    variates = x @ directions[:, order]
    weights = np.abs(variates.T @ x).sum(axis=1)
    return float((weights * np.sqrt(squares[order].clip(0, 1))).sum() / weights.sum())


def test_what_too_few_rows_make_alike_has_no_number() -> None:
    """Independent matrices of 12 rows and 8 columns each: some canonical correlations are 1 whatever they are."""
    assert math.isnan(metrics.pwcca(Matrix(random(12, 8)), Matrix(random(12, 8, 1))))
    assert metrics.pwcca(Matrix(random(400, 8)), Matrix(random(400, 8, 1))) < 0.3


def test_likeness_of_two_matrices() -> None:
    x = random(50, 6)
    y = torch.cat([x[:, :3] @ random(3, 3, 3), torch.zeros(50, 4)], dim=1) + 0.5 * random(50, 7, 4)
    assert metrics.cka(Matrix(x), Matrix(y)) == pytest.approx(slow_cka(x.numpy(), y.numpy()), rel=1e-9)
    assert metrics.pwcca(Matrix(x), Matrix(y)) == pytest.approx(slow_pwcca(x.numpy(), y.numpy()), rel=1e-7)
    rotation = torch.linalg.qr(random(6, 6, 5))[0]
    for like in (metrics.cka, metrics.pwcca):
        assert like(Matrix(x), Matrix(3 * x @ rotation + 1)) == pytest.approx(1, rel=1e-9)
        assert like(Matrix(x), Matrix(torch.ones(50, 4))) == 0
    # What any linear map leaves as it is; CKA does not.
    assert metrics.pwcca(Matrix(x), Matrix(x @ random(6, 6, 6))) == pytest.approx(1, rel=1e-7)


@pytest.mark.parametrize("name", [name for name in metrics.OF_ONE if name not in ("condition_number", "alpha_req")])
def test_zero_singular_values_one_row_and_equal_rows_have_a_number(name: str) -> None:
    for matrix in (
        torch.zeros(6, 3),
        random(1, 5),
        random(1, 5).repeat(7, 1),
        with_spectrum([2.0, 1.0, 0.0]),
        torch.ones(1, 1),
    ):
        assert math.isfinite(of(matrix, name)), matrix


def test_a_matrix_of_lower_rank_has_an_infinite_condition_and_the_power_law_of_what_is_there() -> None:
    assert of(with_spectrum([2.0, 1.0, 0.0]), "condition_number") == math.inf
    assert math.isnan(of(torch.zeros(6, 3), "condition_number"))
    assert of(with_spectrum([2.0, 1.0, 0.0]), "alpha_req") == pytest.approx(2.0)  # 4 and 1: 2^-2.
    assert math.isnan(of(with_spectrum([2.0, 0.0]), "alpha_req"))
    assert of(with_spectrum([3.0, 0.0]), "stable_rank") == pytest.approx(1)


@pytest.mark.parametrize("name", metrics.OF_ONE)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_no_number_gives_none(name: str, bad: float) -> None:
    matrix = random(8, 4)
    matrix[3, 2] = bad
    assert math.isnan(of(matrix, name))


@pytest.mark.parametrize("name", metrics.OF_TWO)
def test_what_is_no_number_is_like_nothing(name: str) -> None:
    matrix = random(8, 4)
    matrix[3, 2] = math.nan
    assert math.isnan(metrics.OF_TWO[name](Matrix(matrix), Matrix(random(8, 3))))


@pytest.mark.parametrize("name", metrics.OF_ONE)
def test_extreme_scales_do_not_overflow(name: str) -> None:
    if name in ("isotropy", "isotropy_symmetric", "nuclear_norm", "frobenius_norm", "spectral_norm"):
        return  # They change with the scale.
    plain = of(random(30, 6), name)
    for scale in (1e-150, 1e150):
        assert of(scale * random(30, 6), name) == pytest.approx(plain, rel=1e-9)


def test_pico_analyze_has_the_same_numbers() -> None:
    """Golden values: pico-lm/pico-analyze at c4a4e84, its `compute_metric` of each on these very matrices, in float64.

    Its proportional effective rank is `effective_rank` of a matrix with more rows than columns. Its PWCCA is another number
    (0.53143 of the centred x and y, where equation 2 of Morcos et al. gives 0.52784): it takes the left singular vectors for
    canonical directions without the inverse square root of the covariance before them.
    """
    steps = torch.arange(1, 24 * 6 + 1, dtype=torch.float64).square()
    x = torch.sin(steps * 0.37).reshape(24, 6)
    y = torch.cos(steps * 0.23).reshape(24, 6) + 0.5 * x
    golden = {
        "gini": 0.28278962505608063, "hoyer": 0.11484557210913238, "effective_rank": 0.9821872267332404,
        "condition_number": 1.8227271626791355, "frobenius_norm": 8.413728003947854, "nuclear_norm": 20.25830856506977,
    }  # fmt: skip
    assert {name: of(x, name) for name in golden} == pytest.approx(golden, rel=1e-12)
    assert metrics.cka(Matrix(x), Matrix(y)) == pytest.approx(0.29846200552159885, rel=1e-12)
    assert metrics.pwcca(Matrix(x), Matrix(y)) == pytest.approx(0.52784347303, rel=1e-9)
