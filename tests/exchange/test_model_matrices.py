"""The matrices of models on disk: an exported cell's are its own, and others' are what the model itself computes with."""

from pathlib import Path

import pytest
import torch
import transformers
from tiny import make_cell

from raysweep.cli.main import main
from raysweep.corpora.tokenized import TokenizedCorpus
from raysweep.errors import UserError
from raysweep.exchange.llama import to_llama
from raysweep.exchange.model_matrices import named_weights
from raysweep.exchange.pretrained import matrices
from raysweep.model import matrices as of_cells
from raysweep.space.measure import Measurement, matrix_names
from raysweep.training.run import Run

WIDTH, HEADS = 16, 4


def test_an_exported_cell_has_its_own_numbers(corpus: TokenizedCorpus, tmp_path: Path) -> None:
    """As measured in training, and as measured of the folder."""
    item = Measurement(
        of=("blocks.*", "blocks.*.heads.*", "*embedding"), metrics=("stable_rank", "effective_rank", "gini")
    )
    run = Run(make_cell(tokens=1024), corpus, measure=[item])
    list(run.rows())
    weights = {name: parameter.detach() for name, parameter in run.parameters.items()}
    llama = to_llama(run.cell, weights, end_of_text=0)
    found = named_weights("x", llama)
    ours = [name for name in matrix_names(run.cell.size) if not name.startswith(("hidden", "gradients"))]
    assert set(found) == set(ours)
    for name in ours:
        assert torch.equal(found[name], of_cells.weight(name, weights, run.cell.size)), name
    llama.save_pretrained(tmp_path)
    measured = {(row["matrix"], row["metric"]): row["value"] for row in matrices(str(tmp_path), None, [item])}
    trained = {(r["matrix"], r["metric"]): r["value"] for r in run.state.measures if r["step"] == run.state.step}
    assert measured == trained


def neox() -> transformers.GPTNeoXForCausalLM:
    torch.manual_seed(0)
    return transformers.GPTNeoXForCausalLM(
        transformers.GPTNeoXConfig(
            vocab_size=50, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=HEADS, intermediate_size=40,
        )
    )  # fmt: skip


def gpt2() -> transformers.GPT2LMHeadModel:
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=50, n_embd=WIDTH, n_layer=2, n_head=HEADS, n_positions=32)
    )


def grouped() -> transformers.LlamaForCausalLM:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=50, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=HEADS, num_key_value_heads=2,
            intermediate_size=40,
        )
    )  # fmt: skip


def test_pythias_queries_are_those_that_its_attention_splits_off() -> None:
    """transformers views the fused output as (heads, 3 x head size), and cuts that in three."""
    model = neox()
    found = named_weights("x", model)
    block = model.gpt_neox.layers[1]
    block.attention.query_key_value.bias.data.zero_()
    x = torch.randn(1, 5, WIDTH)
    parts = block.attention.query_key_value(x).view(1, 5, HEADS, 3 * WIDTH // HEADS).transpose(1, 2).chunk(3, dim=-1)
    for part, name in zip(parts, ("query", "key", "value"), strict=True):
        theirs = part.transpose(1, 2).reshape(1, 5, WIDTH)
        assert torch.allclose(x @ found[f"blocks.1.attention.{name}"].T, theirs, atol=1e-6)
    assert torch.allclose(
        x @ found["blocks.1.attention.output"], torch.nn.functional.linear(x, block.attention.dense.weight)
    )
    assert "blocks.0.mlp.gate" not in found
    assert found["blocks.0.mlp.up"].shape == found["blocks.0.mlp.down"].shape == (40, WIDTH)


def test_gpt2s_layers_keep_their_weights_the_other_way_round() -> None:
    model = gpt2()
    found = named_weights("x", model)
    block = model.transformer.h[1]
    x = torch.randn(1, 5, WIDTH)
    for part, name in zip(block.attn.c_attn(x).split(WIDTH, dim=2), ("query", "key", "value"), strict=True):
        assert torch.allclose(
            x @ found[f"blocks.1.attention.{name}"].T, part - block.attn.c_attn.bias.view(3, -1)[0], atol=1e-6
        )
    assert torch.allclose(x @ found["blocks.1.attention.output"], block.attn.c_proj(x), atol=1e-6)
    hidden = x @ found["blocks.1.mlp.up"].T
    assert torch.allclose(hidden, block.mlp.c_fc(x), atol=1e-6)
    assert torch.allclose(hidden @ found["blocks.1.mlp.down"], block.mlp.c_proj(hidden), atol=1e-6)


def test_heads_that_share_keys_read_the_same() -> None:
    found = named_weights("x", grouped())
    assert torch.equal(found["blocks.0.heads.0.key"], found["blocks.0.heads.1.key"])
    assert not torch.equal(found["blocks.0.heads.1.key"], found["blocks.0.heads.2.key"])
    assert torch.equal(torch.cat([found[f"blocks.0.heads.{h}.key"] for h in (0, 2)]), found["blocks.0.attention.key"])
    size = WIDTH // HEADS
    assert torch.equal(found["blocks.0.heads.3.query"], found["blocks.0.attention.query"][3 * size :])
    whole = sum(found[f"blocks.0.heads.{head}.ov"] for head in range(HEADS))
    values = torch.cat([found[f"blocks.0.heads.{head}.value"] for head in range(HEADS)])
    assert torch.allclose(whole, (values.T @ found["blocks.0.attention.output"]).double(), atol=1e-6)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    neox().save_pretrained(tmp_path / "model")

    def ran(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["geometry", str(tmp_path / "model"), *arguments])
        return int(ended.value.code or 0), *capsys.readouterr()

    status, out, _ = ran("--of", "blocks.*.mlp.up", "--metrics", "stable_rank,gini")
    assert status == 0
    assert [line.split()[:2] for line in out.splitlines()] == [
        [f"blocks.{i}.mlp.up", metric] for i in (0, 1) for metric in ("stable_rank", "gini")
    ]
    for options, said in (
        (["--of", "blocks.*.mlp.gate"], "blocks.*.mlp.gate is no matrix of "),
        (["--of", "hidden.*"], "hidden.* is no matrix of"),
        (["--metrics", "gini"], "--metrics is of --of"),
        (["--of", "embedding", "--metrics", "cka"], "--of: cka is of two matrices"),
        (["--of", "embedding", "--corpus", "installed"], "--corpus goes with the geometry of the unembedding alone"),
    ):
        status, _, error = ran(*options)
        assert status == 1
        assert said in error
        assert error.count("raysweep: error") == 1
    with pytest.raises(UserError, match="--of needs the whole model"):
        matrices(str(tmp_path / "model/model.safetensors"), None, [])
