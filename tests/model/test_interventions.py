"""The gradient of the effective rank and the capped W, against torch's own SVD; and what they do to a training run."""

import copy

import pytest
import torch
from tiny import make_cell

from raysweep.corpora.build import open_corpus
from raysweep.evaluation import finetune
from raysweep.model import geometry, interventions
from raysweep.training.run import Run


def through_svd(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The effective rank by its definition, and autograd's gradient of it through the singular values."""
    weight = weight.double().requires_grad_()
    share = torch.linalg.svdvals(weight)
    share = share / share.sum()
    rank = (-(share * share.log()).sum()).exp() / weight.shape[1]
    return rank.detach(), torch.autograd.grad(rank, weight)[0]


def test_the_gradient_of_the_effective_rank() -> None:
    torch.manual_seed(0)
    weight = torch.randn(60, 12) @ torch.diag(torch.logspace(0, -2, 12)) + 0.1
    rank, gradient = interventions.effective_rank_and_gradient(weight)
    wanted, wanted_gradient = through_svd(weight)
    assert rank == pytest.approx(float(wanted), rel=1e-9)
    assert rank == pytest.approx(geometry.effective_rank(weight), rel=1e-9)
    torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-6, atol=1e-9)


def test_single_precision_as_on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 where the singular values are far from rounding, in float64 where some are near."""
    torch.manual_seed(0)
    monkeypatch.setattr(interventions, "_precision", lambda weight: torch.float32)
    for smallest, precision in ((0.1, torch.float32), (0.01, torch.float64)):
        weight = torch.linalg.qr(torch.randn(5000, 48))[0] @ torch.diag(torch.linspace(1, smallest, 48))
        rank, gradient = interventions.effective_rank_and_gradient(weight)
        wanted, wanted_gradient = through_svd(weight)
        assert gradient.dtype == precision
        assert rank == pytest.approx(float(wanted), rel=1e-6)
        assert float((gradient - wanted_gradient).norm() / wanted_gradient.norm()) < 1e-4
        capped = torch.nn.Parameter(weight.clone())
        interventions.cap_spectral_norm(capped, 0.5)
        assert torch.linalg.matrix_norm(capped.detach().double(), 2) == pytest.approx(0.5, rel=1e-5)


def test_no_gradient_where_all_singular_values_are_equal() -> None:
    """The rank is at its largest there; autograd through the vectors of an SVD would divide by zero."""
    weight = torch.linalg.qr(torch.randn(40, 8))[0]
    rank, gradient = interventions.effective_rank_and_gradient(weight)
    assert rank == pytest.approx(1)
    assert float(gradient.abs().max()) < 1e-6


@pytest.mark.parametrize("weight", [torch.zeros(5, 3), torch.ones(5, 3)])
def test_matrices_without_full_rank_give_finite_numbers(weight: torch.Tensor) -> None:
    parameter = torch.nn.Parameter(weight.clone())
    interventions.add_rank_penalty(parameter, 0.5, 10.0)
    interventions.cap_spectral_norm(parameter, 1.0)
    assert parameter.grad is not None
    assert bool(parameter.grad.isfinite().all())
    assert bool(parameter.isfinite().all())


def test_a_matrix_that_diverged_stays_so() -> None:
    parameter = torch.nn.Parameter(torch.full((5, 3), torch.nan))
    interventions.add_rank_penalty(parameter, 0.5, 10.0)
    interventions.cap_spectral_norm(parameter, 0.5)
    assert bool(parameter.isnan().all())


def test_a_run_with_a_penalty_and_a_cap_goes_on_to_the_same_bits() -> None:
    settings = {
        "effective_rank_target": 0.5,
        "effective_rank_penalty": 30.0,
        "spectral_norm_cap": 4.0,
        "block": "parallel",
    }
    cell = make_cell(**settings)
    corpus = open_corpus(cell.corpus)
    whole = Run(cell, corpus)
    rows = [row for row in whole.rows() if row]
    first = Run(cell, corpus)
    for _ in first.rows():
        if first.state.step >= cell.steps // 2:
            break
    state = copy.deepcopy(first.checkpoint())
    second = Run(cell, corpus, checkpoint=state)
    assert 0 < second.state.step < cell.steps
    for _ in second.rows():
        pass
    assert second.state.rows == rows
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters.values(), second.parameters.values(), strict=True))


def test_the_gradient_of_everything_else_is_clipped_as_without_a_penalty() -> None:
    """A penalty far above the clipping: the rest of the model takes the very step that it takes without one."""
    cell = make_cell()
    corpus = open_corpus(cell.corpus)
    after = []
    for changes in ({}, {"effective_rank_target": 0.5, "effective_rank_penalty": 1e5}):
        run = Run(make_cell(**changes), corpus)
        run._step(0)
        after.append({name: p.detach().clone() for name, p in run.parameters.items()})
    different = [name for name in after[0] if not torch.equal(after[0][name], after[1][name])]
    assert different == ["transformer.ff_out.weight"]


def test_the_penalty_adds_its_gradient() -> None:
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(30, 6))
    parameter.grad = torch.ones(30, 6)
    interventions.add_rank_penalty(parameter, 0.3, 7.0)
    weight = parameter.detach().double().requires_grad_()
    share = torch.linalg.svdvals(weight)
    share = share / share.sum()
    (7.0 * ((-(share * share.log()).sum()).exp() / 6 - 0.3) ** 2).backward()
    torch.testing.assert_close(parameter.grad.double() - 1, weight.grad, rtol=1e-4, atol=1e-6)


def test_the_cap_lowers_what_is_above_it_and_nothing_else() -> None:
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(50, 10) @ torch.diag(torch.linspace(2, 0.1, 10)))
    before = torch.linalg.svd(parameter.detach(), full_matrices=False)
    interventions.cap_spectral_norm(parameter, 6.0)
    wanted = before.U @ torch.diag(before.S.clamp(max=6.0)) @ before.Vh
    assert before.S[0] > 6 > before.S[-1]
    torch.testing.assert_close(parameter.detach(), wanted, rtol=1e-4, atol=1e-5)
    kept = parameter.detach().clone()
    interventions.cap_spectral_norm(parameter, 6.1)
    assert torch.equal(parameter.detach(), kept)


def test_a_run_is_pushed_to_its_target_and_held_under_its_cap() -> None:
    cell = make_cell(tokens=4096 * 4)
    corpus = open_corpus(cell.corpus)
    free = last(cell, corpus)
    for target in (0.5, 0.95):
        changes = {"effective_rank_target": target, "effective_rank_penalty": 3000.0}
        pushed = last(make_cell(tokens=cell.tokens, **changes), corpus)
        assert abs(pushed["effective_rank_W"] - target) < abs(free["effective_rank_W"] - target) / 2
    cap = free["spectral_norm_W"] / 2
    assert last(make_cell(tokens=cell.tokens, spectral_norm_cap=cap), corpus)["spectral_norm_W"] == pytest.approx(cap)


def last(cell: object, corpus: object) -> dict[str, float]:
    return [row for row in Run(cell, corpus).rows() if row][-1]  # type: ignore[arg-type]


def test_fine_tuning_is_left_alone() -> None:
    cell = make_cell(effective_rank_target=0.5, effective_rank_penalty=3.0, spectral_norm_cap=1.0)
    tuned = finetune.finetuning(cell, finetune.Settings(task="finetune_python", tokens=2048, batch_size=2))
    assert (tuned.effective_rank_target, tuned.effective_rank_penalty, tuned.spectral_norm_cap) == (None, 0, None)
