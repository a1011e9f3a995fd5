"""Which matrix is the unembedding: what transformers multiplies by, over the architectures and folders that people have."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from raysweep.errors import UserError
from raysweep.exchange.pretrained import unembedding

VOCABULARY, WIDTH = 64, 16
_LLAMA = {
    "hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": VOCABULARY,
    "intermediate_size": 32,
}  # fmt: skip
_GPT2 = {"n_embd": WIDTH, "n_layer": 1, "n_head": 2, "vocab_size": VOCABULARY}

# Architecture -> its configuration. Some tie W by default, some name it otherwise, some have a projection beside it.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _LLAMA),
    "llama tied": ("LlamaConfig", _LLAMA | {"tie_word_embeddings": True}),
    "mistral": ("MistralConfig", _LLAMA | {"num_key_value_heads": 1}),
    "qwen2": ("Qwen2Config", _LLAMA | {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "gemma": ("GemmaConfig", _LLAMA | {"num_key_value_heads": 1, "head_dim": 8}),
    "olmo": ("OlmoConfig", _LLAMA | {"pad_token_id": 1}),
    "olmo2": ("Olmo2Config", _LLAMA | {"pad_token_id": 1}),
    "gpt2": ("GPT2Config", _GPT2),
    "gpt2 untied": ("GPT2Config", _GPT2 | {"tie_word_embeddings": False}),
    "gpt-neox": ("GPTNeoXConfig", _LLAMA),
    "gpt-neo": ("GPTNeoConfig", {
        "hidden_size": WIDTH, "num_layers": 2, "num_heads": 2, "vocab_size": VOCABULARY,
        "attention_types": [[["global", "local"], 1]],
    }),
    "gptj": ("GPTJConfig", _GPT2 | {"rotary_dim": 4}),
    "opt": ("OPTConfig", _LLAMA | {"ffn_dim": 32, "word_embed_proj_dim": WIDTH, "pad_token_id": 1}),
    "opt projected": ("OPTConfig", _LLAMA | {"ffn_dim": 32, "word_embed_proj_dim": 8, "pad_token_id": 1}),
    "bloom": ("BloomConfig", {"hidden_size": WIDTH, "n_layer": 1, "n_head": 2, "vocab_size": VOCABULARY}),
    "falcon": ("FalconConfig", _LLAMA),
    "phi": ("PhiConfig", _LLAMA),
    "stablelm": ("StableLmConfig", _LLAMA),
}  # fmt: skip


def made(name: str) -> Any:
    kind, settings = MODELS[name]
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(getattr(transformers, kind)(**settings))


def multiplied_by(folder: Path) -> torch.Tensor:
    weight: torch.Tensor = AutoModelForCausalLM.from_pretrained(folder).get_output_embeddings().weight
    return weight


SAVES: dict[str, dict[str, Any]] = {
    "one file": {},
    "parts": {"max_shard_size": "2KB"},
    "bin": {"safe_serialization": False},
}


@pytest.mark.parametrize("how", SAVES)
@pytest.mark.parametrize("name", MODELS)
def test_every_architecture_however_it_is_saved(tmp_path: Path, name: str, how: str) -> None:
    made(name).save_pretrained(tmp_path, **SAVES[how])
    found = unembedding(str(tmp_path))
    assert found.shape[0] == VOCABULARY
    assert torch.equal(found, multiplied_by(tmp_path))


@pytest.mark.parametrize("name", ["gpt2", "bloom"])
def test_a_checkpoint_of_the_base_alone(tmp_path: Path, name: str) -> None:
    """As GPT-2's own is: without the prefix of the base's name."""
    model = made(name)
    model.base_model.save_pretrained(tmp_path)
    assert torch.equal(unembedding(str(tmp_path)), multiplied_by(tmp_path))
    assert torch.equal(unembedding(str(tmp_path)), model.get_output_embeddings().weight)


def saved(folder: Path, name: str = "llama", **more: Any) -> dict[str, torch.Tensor]:
    """The tensors of a saved model, to change and to save again."""
    made(name).save_pretrained(folder, **more)
    return load_file(folder / "model.safetensors") if not more else {}


def again(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_another_head_in_the_file_of_a_tied_model_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tensors = saved(tmp_path, "llama tied")
    again(tmp_path, tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()})
    with caplog.at_level(logging.WARNING):
        unembedding(str(tmp_path))
    assert caplog.text == ""  # The same twice is nothing to speak of.
    again(tmp_path, tensors | {"lm_head.weight": torch.randn(VOCABULARY, WIDTH)})
    assert torch.equal(unembedding(str(tmp_path)), multiplied_by(tmp_path))
    assert "lm_head.weight is not used: config.json ties" in caplog.text


def test_older_parts_beside_a_newer_file_do_not_count(tmp_path: Path) -> None:
    saved(tmp_path, max_shard_size="2KB")
    older = unembedding(str(tmp_path))
    newer = saved(tmp_path / "newer")
    again(tmp_path, newer | {"lm_head.weight": newer["lm_head.weight"] * 2})
    assert torch.equal(unembedding(str(tmp_path)), older * 2)
    assert torch.equal(unembedding(str(tmp_path)), multiplied_by(tmp_path))
    # The file itself, named, is that of its folder.
    assert torch.equal(unembedding(str(tmp_path / "model.safetensors")), older * 2)


def test_numbers_of_sixteen_bits_and_rows_of_padding(tmp_path: Path) -> None:
    model = made("llama").to(torch.bfloat16)
    model.resize_token_embeddings(VOCABULARY + 10)
    model.save_pretrained(tmp_path)
    found = unembedding(str(tmp_path))
    assert (found.dtype, len(found)) == (torch.bfloat16, VOCABULARY + 10)
    assert torch.equal(found, model.get_output_embeddings().weight)


def packed(folder: Path) -> None:
    tensors = saved(folder)
    again(folder, tensors | {"lm_head.weight": torch.zeros(VOCABULARY * WIDTH // 2, 1, dtype=torch.uint8)})


def scaled(folder: Path) -> None:
    tensors = saved(folder)
    low = tensors["lm_head.weight"].to(torch.float8_e4m3fn)
    again(folder, tensors | {"lm_head.weight": low, "lm_head.weight_scale_inv": torch.ones(1, 1)})


def headless(folder: Path) -> None:
    tensors = saved(folder)
    del tensors["lm_head.weight"]
    again(folder, tensors)


def of_another_size(folder: Path) -> None:
    tensors = saved(folder)
    again(folder, tensors | {"lm_head.weight": torch.zeros(VOCABULARY + 1, WIDTH)})


def a_part_less(folder: Path) -> None:
    saved(folder, max_shard_size="2KB")
    sorted(folder.glob("model-*.safetensors"))[-1].unlink()


def a_pointer(folder: Path) -> None:
    saved(folder)
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")


def an_adapter(folder: Path) -> None:
    saved(folder)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "someone/base"}))


def two_files(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name in ("a", "b"):
        save_file({"lm_head.weight": torch.zeros(4, 2)}, folder / f"{name}.safetensors")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (packed, r"lm_head.weight is packed \(uint8 of shape \(512, 1\)\): dequantize"),
        (scaled, "lm_head.weight is quantized, with lm_head.weight_scale_inv beside it: dequantize"),
        (headless, "holds no lm_head.weight: transformers would start it at random"),
        (of_another_size, r"lm_head.weight has the shape \(65, 16\), where config.json asks for \(64, 16\)"),
        (a_part_less, r"model-\d+-of-\d+.safetensors is missing: model.safetensors.index.json names it"),
        (a_pointer, "is a pointer of git-lfs.*git lfs pull"),
        (an_adapter, "holds an adapter.*merge the two"),
        (two_files, "lm_head.weight is in a.safetensors and in b.safetensors: give one of the files"),
    ],
)
def test_what_is_not_the_unembedding_is_refused_by_name(
    tmp_path: Path, make: Callable[[Path], None], said: str
) -> None:
    make(tmp_path)
    with pytest.raises(UserError, match=said) as refused:
        unembedding(str(tmp_path))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["./modle", "/no/such/modle", "folder/modle", "a/b/c"])
def test_a_mistyped_path_is_not_asked_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    (tmp_path / "folder" / "model").mkdir(parents=True)
    (tmp_path / "model").mkdir()
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UserError, match="no such folder or file"):
        unembedding(name)


def test_a_file_of_a_similar_name_is_named_and_no_reason_not_to_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of `raysweep geometry gpt2 --json > gpt2.json`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    (tmp_path / "gpt2.json").touch()
    with pytest.raises(
        UserError, match=r"^gpt2: no such folder, and the hub cannot be reached .*did you mean 'gpt2.json'"
    ):
        unembedding("gpt2")


def test_a_tied_model_whose_file_has_only_the_head_is_refused(tmp_path: Path) -> None:
    """transformers 4.57 leaves such a head on the meta device."""
    made("llama tied").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=rf"^{tmp_path} "):
        unembedding(str(tmp_path))


def test_weights_under_another_name_are_those_that_the_configuration_names(tmp_path: Path) -> None:
    made("llama").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "other.safetensors")
    torch.manual_seed(1)
    kind, settings = MODELS["llama"]
    AutoModelForCausalLM.from_config(getattr(transformers, kind)(**settings)).save_pretrained(tmp_path / "b")
    (tmp_path / "b" / "model.safetensors").rename(tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"transformers_weights": "other.safetensors"}))
    assert torch.equal(unembedding(str(tmp_path)), multiplied_by(tmp_path))


def test_some_parts_without_a_configuration_are_no_tied_model(tmp_path: Path) -> None:
    made("llama").save_pretrained(tmp_path, max_shard_size="2KB")
    whole = unembedding(str(tmp_path))
    (tmp_path / "config.json").unlink()
    assert torch.equal(unembedding(str(tmp_path)), whole)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    (tmp_path / index["lm_head.weight"]).unlink()
    with pytest.raises(UserError, match=f"{index['lm_head.weight']} is missing"):
        unembedding(str(tmp_path))
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(UserError, match="holds no unembedding"):
        unembedding(str(tmp_path))


def test_a_damaged_part_that_the_loader_reads_is_one_line(tmp_path: Path) -> None:
    made("gpt2").save_pretrained(tmp_path, max_shard_size="2KB")
    index_file = tmp_path / "model.safetensors.index.json"
    index = json.loads(index_file.read_text())
    # So that the loader is asked.
    del index["weight_map"]["transformer.wte.weight"]
    index_file.write_text(json.dumps(index))
    (tmp_path / index["weight_map"]["transformer.wpe.weight"]).write_bytes(b"")
    with pytest.raises(UserError, match=rf"^{tmp_path} cannot be loaded"):
        unembedding(str(tmp_path))
