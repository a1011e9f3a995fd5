"""Fields of a cell: against PyTorch written out, through resuming, every evaluation, and export."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from tiny import make_cell
from transformers import AutoModelForCausalLM

from raysweep.corpora.tokenized import TokenizedCorpus
from raysweep.errors import UserError
from raysweep.evaluation.run import run as evaluate
from raysweep.exchange import export
from raysweep.exchange.unembedding import of_file
from raysweep.model import matrices, olmo
from raysweep.model.geometry import effective_rank
from raysweep.model.language_model import LanguageModel
from raysweep.space.evaluations import evaluation
from raysweep.space.measure import Measurement
from raysweep.space.size import Shape
from raysweep.space.space import Space
from raysweep.store import Store
from raysweep.training import checkpoint
from raysweep.training.run import Run

CHANGES: dict[str, dict[str, Any]] = {
    "tied": {"weight_tying": True},
    "qk_norm": {"qk_norm": True},
    "narrow": {"mlp_ratio": 2},
    "all": {"weight_tying": True, "qk_norm": True, "mlp_ratio": 6, "block": "parallel"},
    "bottleneck": {"head_bottleneck": 3},
    "muon": {"optimizer": "muon", "weight_decay_on": "matrices"},
    "z_loss": {"z_loss": 0.01},
    "bfloat16": {"precision": "bfloat16"},
}
every = pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)


def test_one_matrix_has_the_gradient_of_both_uses() -> None:
    model = LanguageModel(olmo.build(Shape(16, 1, 4, 300, tied=True), 32, seed=0))
    names = dict(model.olmo.named_parameters())
    assert "transformer.ff_out.weight" not in names
    assert model.unembedding is names["transformer.wte.weight"]
    assert model.olmo.state_dict().keys() == names.keys()
    tokens = torch.randint(0, 300, (2, 33))
    model(tokens).backward()
    found = model.unembedding.grad
    # The two uses apart, by PyTorch's own operations.
    embedding = model.unembedding.detach().clone().requires_grad_()
    unembedding = embedding.detach().clone().requires_grad_()
    hidden = model.olmo(None, input_embeddings=F.embedding(tokens[:, :-1], embedding)).logits
    F.cross_entropy((hidden @ unembedding.T).flatten(0, 1), tokens[:, 1:].flatten()).backward()
    torch.testing.assert_close(found, embedding.grad + unembedding.grad, atol=1e-6, rtol=1e-4)
    assert float(embedding.grad.norm()) > 0.01 < float(unembedding.grad.norm())
    # A copy on another device, or a deep copy, is still one matrix.
    moved = model.double()
    assert moved.unembedding is moved.olmo.transformer.wte.weight


def test_qk_norm_is_an_rmsnorm_of_all_heads_together() -> None:
    """A block written out: q and k are normed over the width before they are cut into heads and rotated."""
    width, heads, length = 16, 4, 12
    built = olmo.build(Shape(width, 1, heads, 300, qk_norm=True), length, seed=0)
    block = built.transformer.blocks[0]
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            parameter.copy_(torch.rand_like(parameter) + 0.5 if "norm" in name else 0.3 * torch.randn_like(parameter))
    x = torch.randn(1, length, width)

    def rms(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return values / (values.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight

    def rotated(values: torch.Tensor) -> torch.Tensor:
        size = width // heads
        values = values.view(length, heads, size).transpose(0, 1)
        angles = torch.outer(torch.arange(length), 10000.0 ** (-torch.arange(0, size, 2) / size)).repeat(1, 2)
        turned = torch.cat([-values[..., size // 2 :], values[..., : size // 2]], dim=-1)
        return values * angles.cos() + turned * angles.sin()

    q, k, v = (rms(x[0], block.attn_norm.weight) @ block.att_proj.weight.T).chunk(3, dim=-1)
    q, k = rotated(rms(q, block.q_norm.weight)), rotated(rms(k, block.k_norm.weight))
    scores = q @ k.transpose(1, 2) / (width // heads) ** 0.5
    weights = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf).softmax(-1)
    attended = (weights @ v.view(length, heads, -1).transpose(0, 1)).transpose(0, 1).reshape(length, width)
    middle = x[0] + attended @ block.attn_out.weight.T
    up, gate = (rms(middle, block.ff_norm.weight) @ block.ff_proj.weight.T).chunk(2, dim=-1)
    expected = middle + (F.silu(gate) * up) @ block.ff_out.weight.T
    torch.testing.assert_close(block(x)[0][0], expected, atol=1e-5, rtol=1e-4)


def test_a_bottleneck_is_a_product_trained_by_its_factors(corpus: TokenizedCorpus) -> None:
    """W = A B: loss and gradients by autograd through the product, all else drawn as without it, rank r to the end."""
    shape = Shape(16, 2, 4, 300, bottleneck=5)
    model, whole = LanguageModel(olmo.build(shape, 32, seed=3)), olmo.build(Shape(16, 2, 4, 300), 32, seed=3)
    names = dict(model.olmo.named_parameters())
    assert shape.parameters == sum(p.numel() for name, p in names.items() if ".wte." not in name)
    for name, parameter in whole.named_parameters():
        if name != matrices.UNEMBEDDING:
            assert torch.equal(parameter, names[name])
    first, second = names[matrices.UNEMBEDDING], names[matrices.BOTTLENECK]
    assert (first.shape, second.shape) == ((300, 5), (5, 16))
    # Logits begin as large as those of a whole W: states have entries of variance 1 after the last norm.
    states = torch.randn(2000, 16)
    ratio = float((states @ model.unembedding.detach().T).std() / (states @ whole.transformer.ff_out.weight.T).std())
    assert 0.7 < ratio < 1.4
    tokens = torch.randint(0, 300, (2, 33), generator=torch.Generator().manual_seed(1))
    model(tokens).backward()
    a, b = (factor.detach().clone().requires_grad_() for factor in (first, second))
    hidden = model.hidden(tokens[:, :-1]).detach()
    F.cross_entropy((hidden @ b.T @ a.T).flatten(0, 1), tokens[:, 1:].flatten()).backward()
    torch.testing.assert_close(first.grad, a.grad, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(second.grad, b.grad, atol=1e-6, rtol=1e-4)
    run = Run(make_cell(size={"width": 16}, head_bottleneck=5), corpus)
    rows = list(run.rows())
    assert torch.linalg.matrix_rank(run.model.measured_unembedding) == 5
    assert rows[-1]["effective_rank_W"] <= 5 / 16
    # The gradient of W as such, of which the factors' are products.
    w = run.model.matrices()[matrices.UNEMBEDDING].float().requires_grad_()
    sequences = torch.from_numpy(run._read(0))
    of_w = torch.autograd.grad(run.model(sequences, w), w)[0]
    run.model(sequences).backward()
    a, b = run.parameters[matrices.UNEMBEDDING], run.parameters[matrices.BOTTLENECK]
    torch.testing.assert_close(a.grad, of_w @ b.detach().T, atol=1e-6, rtol=1e-3)
    torch.testing.assert_close(b.grad, a.detach().T @ of_w, atol=1e-6, rtol=1e-3)


def test_a_checkpoint_of_a_bottleneck_has_the_rank_of_its_product(corpus: TokenizedCorpus, tmp_path: Path) -> None:
    run = Run(make_cell(head_bottleneck=3), corpus, reports=())
    list(run.rows())
    checkpoint.append(run.checkpoint(), Store(str(tmp_path)), "x", [])
    found = effective_rank(of_file(next(tmp_path.rglob("model.safetensors"))))
    assert found == pytest.approx(effective_rank(run.model.unembedding), rel=1e-6)
    assert found < 3 / 8


def test_precision_is_that_of_matrix_products(corpus: TokenizedCorpus) -> None:
    """In bfloat16 the losses are off by its rounding, weights stay float32, and what computed it says so."""
    runs = {name: Run(make_cell(precision=name), corpus) for name in ("float32", "bfloat16")}
    rows = {name: list(run.rows()) for name, run in runs.items()}
    (plain,), (half,) = (run.state.computed_by for run in runs.values())
    assert (plain["precision"], half["precision"], half["kernels"]) == ("float32", "bfloat16 autocast", "ai2-olmo")
    assert list(Run(make_cell(), corpus).rows()) == [row | {"cell": make_cell().id} for row in rows["float32"]]
    for a, b in zip(rows["float32"], rows["bfloat16"], strict=True):
        assert 0 < abs(a["validation_loss"] - b["validation_loss"]) < 0.02
    assert all(parameter.dtype == torch.float32 for parameter in runs["bfloat16"].parameters.values())


@every
def test_it_resumes_to_the_last_bit(changes: dict[str, Any], corpus: TokenizedCorpus, tmp_path: Path) -> None:
    measure = [Measurement(of=("embedding", "unembedding", "blocks.*.mlp.up", "gradients.unembedding"))]
    cell = make_cell(reports=4, **changes)
    whole = Run(cell, corpus, measure=measure)
    store, folder = Store(str(tmp_path)), "train/x"
    for row in whole.rows():
        if row["step"] == cell.steps // 2:
            checkpoint.append(whole.checkpoint(), store, folder, [])
    found = checkpoint.latest(store, folder)
    assert found is not None
    assert found[1].state.step == cell.steps // 2
    resumed = Run(cell, corpus, measure=measure, checkpoint=found[1])
    list(resumed.rows())
    assert resumed.state.rows == whole.state.rows
    assert resumed.state.measures == whole.state.measures
    for name, parameter in whole.parameters.items():
        assert torch.equal(parameter, resumed.parameters[name]), name
    assert whole.state.rows[-1]["validation_loss"] < whole.state.rows[0]["validation_loss"] - 0.1
    rows = matrices.weight("blocks.0.mlp.up", whole.parameters, cell.size)
    assert rows.shape == (cell.mlp_ratio * 8 // 2, 8)
    of_w = {(r["matrix"], r["metric"]): r["value"] for r in whole.state.measures if r["step"] == cell.steps}
    same = of_w["embedding", "effective_rank"] == of_w["unembedding", "effective_rank"]
    assert same == cell.weight_tying


@every
def test_every_evaluation_and_the_export(changes: dict[str, Any], corpus: TokenizedCorpus, tmp_path: Path) -> None:
    cell, store = make_cell(size={"width": 16}, **changes), Store(str(tmp_path / "store"))
    run = Run(cell, corpus, reports=())
    list(run.rows())
    checkpoint.append(run.checkpoint(), store, store.run_directory(cell.id), [])
    for task in (
        {"task": "in_distribution", "sequences": 4}, {"task": "out_of_distribution", "sequences": 2},
        {"task": "representation", "sequences": 32}, {"task": "quantized", "calibration_sequences": 8, "sequences": 4},
        {"task": "finetune_math", "tokens": 512, "batch_size": 4, "sequences": 4},
    ):  # fmt: skip
        rows, _ = evaluate(cell, evaluation(task), run.checkpoint().model, corpus, store, torch.device("cpu"))
        assert rows
        assert all(np.isfinite(row["value"]) for row in rows), task
    space = Space(name="tiny", cells=(cell,))
    if cell.qk_norm or cell.block == "parallel":
        with pytest.raises(UserError, match=r"qk_norm: no transformers class|only sequential blocks can be exported"):
            export.export(space, store, cell, tmp_path / "model")
        return
    export.export(space, store, cell, tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tokens = torch.from_numpy(np.asarray(corpus.tokens("pretraining/test")[: 32 * 3]).astype(np.int64)).view(3, 32)
    with torch.no_grad():
        expected = run.model.hidden(tokens) @ run.model.unembedding.T
        torch.testing.assert_close(loaded(tokens).logits, expected, atol=1e-5, rtol=1e-5)
    assert loaded.config.tie_word_embeddings == cell.weight_tying


def test_what_is_the_embedding_too_is_not_quantized() -> None:
    settings = evaluation({"task": "quantized", "layers": "blocks+unembedding"})
    settings.check_cells([make_cell()])
    with pytest.raises(ValueError, match=r"^layers blocks\+unembedding: W of .*-tied-.* is its embedding too"):
        settings.check_cells([make_cell(weight_tying=True)])
    with pytest.raises(ValueError, match=r"^layers blocks\+unembedding: W of .*-head3-.* is a product of two"):
        settings.check_cells([make_cell(head_bottleneck=3)])


def test_ids_say_it_and_defaults_leave_them_alone() -> None:
    named: Callable[..., str] = lambda **changes: make_cell(**changes).id  # noqa: E731
    assert named(weight_tying=False, qk_norm=False, mlp_ratio=4, optimizer="adamw", z_loss=0, precision=None) == named()
    assert [named(**CHANGES[k]).partition("-f0.1")[2].rpartition("-s")[0] for k in CHANGES] == [
        "-tied", "-qknorm", "-mlp2", "-parallel-tied-qknorm-mlp6", "-head3", "-muon-wd_on_matrices", "-z0.01", "-bfloat16",
    ]  # fmt: skip
    for wrong in (
        {"weight_tying": "yes"},
        {"mlp_ratio": 0},
        {"mlp_ratio": 2.5},
        {"qk_norm": 1},
        {"head_bottleneck": 8},
        {"head_bottleneck": 3, "weight_tying": True},
        {"head_bottleneck": 3, "spectral_norm_cap": 1.0},
        {"precision": "float16"},
        {"optimizer": "sgd"},
        {"z_loss": -1},
    ):
        with pytest.raises(ValidationError):
            make_cell(**wrong)
