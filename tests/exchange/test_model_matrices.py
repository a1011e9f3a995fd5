"""The matrices of models on disk: an exported cell's are its own, and others' are what the model itself computes with."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tiny import make_cell
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from raysweep.cli.main import main
from raysweep.corpora.tokenized import TokenizedCorpus
from raysweep.errors import UserError
from raysweep.exchange.hidden_states import last_states
from raysweep.exchange.llama import to_llama
from raysweep.exchange.model_matrices import measured, named_weights
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
    of_folder = {(row["matrix"], row["metric"]): row["value"] for row in matrices(str(tmp_path), None, [item])}
    trained = {(r["matrix"], r["metric"]): r["value"] for r in run.state.measures if r["step"] == run.state.step}
    assert of_folder == trained


def test_nothing_is_made_that_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The products of all heads are far larger than the model."""
    monkeypatch.setattr("raysweep.exchange.model_matrices.product", lambda *parts: pytest.fail("made"))
    (row,) = measured("m", neox(), {}, [Measurement(of=("unembedding",), metrics=("gini",))])
    assert 0 < row["value"] < 1


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
        (["--of", "hidden.*"], "--of: hidden states are of a text: add --corpus installed"),
        (["--metrics", "gini"], "--metrics is of --of"),
        (["--of", "embedding", "--metrics", "cka"], "--of: cka is of two matrices"),
        (["--of", "embedding", "--corpus", "installed"], "--corpus installed is for hidden states beside --of"),
    ):
        status, _, error = ran(*options)
        assert status == 1
        assert said in error
        assert error.count("raysweep: error") == 1
    with pytest.raises(UserError, match="--of needs the whole model"):
        matrices(str(tmp_path / "model/model.safetensors"), None, [])


def test_hidden_states_of_an_exported_cell_are_those_of_its_training(corpus: TokenizedCorpus, tmp_path: Path) -> None:
    item = Measurement(of=("hidden.*",), metrics=("effective_rank", "isoscore", "cosine"), sequences=24)
    run = Run(make_cell(tokens=2048, learning_rate=0.03), corpus, measure=[item])
    list(run.rows())
    weights = {name: parameter.detach() for name, parameter in run.parameters.items()}
    end = corpus.manifest["end_of_text"]
    to_llama(run.cell, weights, end).save_pretrained(tmp_path)
    transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(corpus.folder / "tokenizer.json"),
        eos_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    ).save_pretrained(tmp_path)
    tokens = corpus.tokens("pretraining/test")[:40_000]
    documents = np.split(tokens, np.flatnonzero(tokens == end) + 1)
    texts = [corpus.tokenizer.decode(document[:-1].tolist()) for document in documents[:-1]]
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    states = last_states(str(tmp_path), loaded, None, texts, 24)
    found = {(r["matrix"], r["metric"]): r["value"] for r in measured(str(tmp_path), loaded, states, [item])}
    trained = {(r["matrix"], r["metric"]): r["value"] for r in run.state.measures if r["step"] == run.state.step}
    assert found.keys() == trained.keys()
    assert len(found) == 3 * (run.cell.size.depth + 2)
    assert found == pytest.approx(trained, abs=1e-4)
    with pytest.raises(UserError, match=r"the text has \d+ sequences of 32 tokens for .*: set --sequences to no more"):
        last_states(str(tmp_path), loaded, None, texts, 10**4)


@pytest.mark.parametrize("model", [neox(), gpt2(), grouped()], ids=["neox", "gpt2", "grouped"])
def test_hidden_states_of_others(model: transformers.PreTrainedModel, tmp_path: Path) -> None:
    """The last is what the model predicts from, and the final norm of the one before it."""
    model.eval()
    tokenizer = Tokenizer(WordLevel({str(i): i for i in range(50)}, unk_token="0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path)
    generator = np.random.default_rng(0)
    texts = [" ".join(map(str, generator.integers(0, 50, 3000))) for _ in range(4)]
    states = last_states(str(tmp_path), model, None, texts, 3)
    assert list(states) == ["hidden.0", "hidden.1", "hidden.2", "hidden.final"]
    length = min(2048, model.config.max_position_embeddings)
    ids = torch.tensor([int(word) for text in texts for word in text.split()])[: 3 * length].view(3, length)
    with torch.no_grad():
        logits = model(ids).logits[:, -1]
        norm = {"gpt_neox": "gpt_neox.final_layer_norm", "gpt2": "transformer.ln_f", "llama": "model.norm"}
        normed = model.get_submodule(norm[model.config.model_type])(states["hidden.2"])
        torch.testing.assert_close(model.get_output_embeddings()(states["hidden.final"]), logits, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(normed, states["hidden.final"], atol=1e-5, rtol=1e-5)


def test_hidden_states_need_a_text(tmp_path: Path) -> None:
    hidden, weights = Measurement(of=("hidden.*",)), Measurement(of=("unembedding",))
    with pytest.raises(UserError, match="hidden states are of a text: add --corpus installed"):
        matrices(str(tmp_path), None, [hidden])
    with pytest.raises(UserError, match="--corpus installed is for hidden states beside --of: leave it out"):
        matrices(str(tmp_path), None, [weights], "installed")
    with pytest.raises(UserError, match="--sequences is for hidden states beside --of: leave it out"):
        matrices(str(tmp_path), None, [Measurement(of=("unembedding",), sequences=64)])
