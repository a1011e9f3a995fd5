"""The unembedding of models as others save them, against transformers' own idea of it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from suites.hub_on_localhost import Hub
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

from raysweep.errors import UserError
from raysweep.exchange import pretrained
from raysweep.exchange.pretrained import unembedding
from raysweep.model import geometry

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}


def small_models() -> list[torch.nn.Module]:
    torch.manual_seed(0)
    return [
        LlamaForCausalLM(LlamaConfig(**SMALL, intermediate_size=32)),
        LlamaForCausalLM(LlamaConfig(**SMALL, intermediate_size=32, tie_word_embeddings=True)),
        GPTNeoXForCausalLM(GPTNeoXConfig(**SMALL, intermediate_size=32)),
        GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=50)),
    ]


@pytest.mark.parametrize("index", range(4), ids=["llama", "llama-tied", "gpt-neox", "gpt-2"])
def test_models_saved_by_transformers(tmp_path: Path, index: int) -> None:
    model = small_models()[index]
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    expected = model.get_output_embeddings().weight  # type: ignore[operator]
    assert torch.equal(unembedding(str(tmp_path)), expected)


def test_a_folder_of_several_files(tmp_path: Path) -> None:
    model = small_models()[0]
    model.save_pretrained(tmp_path, max_shard_size="2KB")  # type: ignore[operator]
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert torch.equal(unembedding(str(tmp_path)), model.get_output_embeddings().weight)  # type: ignore[operator]


def test_one_of_raysweep_s_checkpoints(tmp_path: Path) -> None:
    weight = torch.randn(50, 8)
    save_file(
        {"transformer.ff_out.weight": weight, "transformer.wte.weight": torch.zeros(50, 8)}, tmp_path / "m.safetensors"
    )
    assert torch.equal(unembedding(str(tmp_path / "m.safetensors")), weight)


def run(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "raysweep.cli", "geometry", *arguments],
        env=os.environ | {"HF_HUB_OFFLINE": "1"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command(tmp_path: Path) -> None:
    model = small_models()[0]
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    done = run(str(tmp_path), "--json")
    assert done.returncode == 0, done.stderr
    expected = geometry.measure(model.get_output_embeddings().weight)  # type: ignore[operator]
    assert json.loads(done.stdout) == pytest.approx(expected)
    assert set(expected) == {"effective_rank", "cosine", "isotropy", "isotropy_symmetric", "spectral_norm"}


@pytest.mark.parametrize("case", ["no such model", "empty folder", "no unembedding", "not safetensors", "a pickle"])
def test_what_is_no_model_gives_one_clear_line(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "model"
    if case == "empty folder":
        target.mkdir()
    elif case == "no unembedding":
        target = tmp_path / "m.safetensors"
        save_file({"weight": torch.ones(2, 2)}, target)
    elif case == "not safetensors":
        target = tmp_path / "m.safetensors"
        target.write_bytes(b"x" * 100)
    elif case == "a pickle":
        target.mkdir()
        (target / "config.json").write_text(json.dumps({"model_type": "llama"} | SMALL))

        class Harm:
            def __reduce__(self) -> tuple[object, tuple[str]]:
                return (exec, (f"open({str(tmp_path / 'harmed')!r}, 'w')",))

        torch.save({"lm_head.weight": Harm()}, target / "pytorch_model.bin")
    if case == "no such model":
        done = run(str(target))
        assert done.returncode == 1
        assert done.stderr.startswith("raysweep: error: "), done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
    else:
        with pytest.raises(UserError, match=re.escape(str(target))) as caught:
            pretrained.geometry(str(target))
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "harmed").exists()


def test_user_error_names_the_model() -> None:
    with pytest.raises(UserError, match="no/such"):
        unembedding("/no/such/model")


def test_a_part_that_holds_the_embedding_alone_is_not_taken_for_the_unembedding(tmp_path: Path) -> None:
    model = small_models()[0]
    model.save_pretrained(tmp_path, max_shard_size="2KB")  # type: ignore[operator]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    part = tmp_path / index["model.embed_tokens.weight"]
    assert index["lm_head.weight"] != part.name
    for _ in range(2):  # With the configuration beside it, and without.
        with pytest.raises(UserError, match=r"holds no unembedding.*give the model's folder"):
            unembedding(str(part))
        (tmp_path / "config.json").unlink(missing_ok=True)
    assert torch.equal(
        unembedding(str(tmp_path / index["lm_head.weight"])),
        model.get_output_embeddings().weight,  # type: ignore[operator]
    )


def test_what_is_not_a_number_is_null_in_json(tmp_path: Path) -> None:
    save_file({"lm_head.weight": torch.full((4, 2), float("nan"))}, tmp_path / "m.safetensors")
    done = run(str(tmp_path / "m.safetensors"), "--json")
    assert done.returncode == 0, done.stderr
    assert "NaN" not in done.stdout
    assert set(json.loads(done.stdout).values()) == {None}


def test_revisions_of_a_model_on_a_hub_are_a_trajectory(tmp_path: Path) -> None:
    ranks = {}
    for step, model in zip((1, 1000), small_models(), strict=False):
        model.save_pretrained(tmp_path / "hub" / "owner" / "model" / f"step{step}")  # type: ignore[operator]
        ranks[f"step{step}"] = geometry.measure(model.get_output_embeddings().weight)["effective_rank"]  # type: ignore[operator]
    figure = tmp_path / "revisions.png"
    with Hub(tmp_path / "hub") as hub:
        done = run(
            "owner/model", "--revision", "step1000", "--revision", "step1", "--figure", str(figure), "--json",
            HF_ENDPOINT=hub.address, HF_HOME=str(tmp_path / "cache"), HF_HUB_OFFLINE="0",
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = {row["revision"]: row["effective_rank"] for row in json.loads(done.stdout)}
    assert found == pytest.approx(ranks)
    assert len(Image.open(figure).convert("RGB").getcolors(1 << 24) or []) > 50, "the figure is nearly empty"
    one = run("owner/model", "--figure", str(figure))
    assert (one.returncode, one.stderr.count("\n")) == (1, 1)
