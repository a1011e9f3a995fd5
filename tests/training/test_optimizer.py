"""Muon and AdamW over a cell's parameters: against the papers' formulas, and what is decayed."""

import math
from typing import Any

import pytest
import torch
from tiny import make_cell

from raysweep.corpora.tokenized import TokenizedCorpus
from raysweep.space.cell import Cell
from raysweep.training.optimizer import Optimizer
from raysweep.training.run import Run
from raysweep.training.schedule import learning_rate

RATE = 0.01


def settings(**changes: Any) -> Cell:
    return make_cell(size={"width": 16}, optimizer="muon", weight_decay=0.1, **changes)


def orthogonalised(matrix: torch.Tensor) -> torch.Tensor:
    """Five steps of X <- a X + (b X X^T + c (X X^T)^2) X (Jordan et al. 2024), in float64."""
    x = matrix.double() / matrix.double().norm()
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x


def test_muon_is_its_formula_for_every_matrix_of_a_block(corpus: TokenizedCorpus) -> None:
    """The two steps of each matrix by hand: Nesterov momentum, orthogonal, of the size of AdamW's steps, decayed."""
    cell = settings(qk_norm=True)
    run = Run(cell, corpus, reports=())
    parts = {"att_proj": 3, "ff_proj": 2, "attn_out": 1, "ff_out": 1}
    generator = torch.Generator().manual_seed(0)
    optimizer = Optimizer(cell, run.parameters)
    expected, buffers = {}, {}
    for _ in range(2):
        for name, parameter in run.parameters.items():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            kind = name.split(".")[-2]
            if ".blocks." not in name or kind not in parts:
                continue
            for i, gradient in enumerate(parameter.grad.chunk(parts[kind])):
                key = f"{name}[{i}]"
                buffers[key] = 0.95 * buffers.get(key, 0) + 0.05 * gradient
                update = orthogonalised(0.05 * gradient + 0.95 * buffers[key])
                scale = 0.2 * math.sqrt(max(gradient.shape))
                before = expected.get(key, parameter.detach().chunk(parts[kind])[i].double())
                expected[key] = before * (1 - RATE * 0.1) - RATE * scale * update
        optimizer.step(RATE)
    assert len(expected) == 6 * (3 + 2 + 1 + 1)
    for key, values in expected.items():
        name, i = key.rstrip("]").split("[")
        found = run.parameters[name].detach().chunk(parts[name.split(".")[-2]])[int(i)]
        # bfloat16 has eight bits, and each of the five steps triples what they lack.
        assert float((found - values).norm()) < 0.05 * RATE * 0.2 * math.sqrt(max(found.shape)) * values.shape[0] ** 0.5
        torch.testing.assert_close(optimizer.moments()[f"{key}:momentum_buffer"], buffers[key])
    by_adamw = {key.split(":")[0] for key in optimizer.moments() if key.endswith(":exp_avg")}
    assert by_adamw == {name for name in run.parameters if f"{name}[0]" not in expected}
    assert {"transformer.wte.weight", "transformer.ff_out.weight", "transformer.blocks.0.q_norm.weight"} <= by_adamw


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("on", ["all", "matrices"])
def test_what_decays(corpus: TokenizedCorpus, optimizer: str, on: str) -> None:
    """Without gradients a step multiplies a parameter by 1 - rate x decay, or leaves it alone."""
    cell = make_cell(size={"width": 16}, optimizer=optimizer, weight_decay=0.5, weight_decay_on=on, qk_norm=True)
    run = Run(cell, corpus, reports=())
    before = {name: parameter.detach().clone() for name, parameter in run.parameters.items()}
    optimizer_of_run = Optimizer(cell, run.parameters)
    for parameter in run.parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer_of_run.step(RATE)
    for name, parameter in run.parameters.items():
        decays = on == "all" or ("norm" not in name and "ln_f" not in name)
        torch.testing.assert_close(parameter.detach(), before[name] * (1 - RATE * 0.5 * decays), atol=0, rtol=1e-6)


def test_muon_moves_a_run_as_far_as_adamw(corpus: TokenizedCorpus) -> None:
    """At one rate, which the scaling of Muon's steps is for; both learn."""
    moved = {}
    for optimizer in ("adamw", "muon"):
        run = Run(make_cell(size={"width": 16}, optimizer=optimizer), corpus, reports=(32,))
        name = "transformer.blocks.2.att_proj.weight"
        before = run.parameters[name].detach().clone()
        (row,) = run.rows()
        assert row is not None
        assert row["validation_loss"] < math.log(512) - 0.2
        moved[optimizer] = float((run.parameters[name].detach() - before).norm())
    assert 0.3 < moved["muon"] / moved["adamw"] < 3
    assert learning_rate(run.cell, 31) < learning_rate(run.cell, 10)
