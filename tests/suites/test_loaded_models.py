"""A published model as evaluations see it: against transformers, over a dozen architectures that it makes."""

import json
import math
from pathlib import Path
from typing import Any

import published_layouts as layouts
import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from tiny import make_cell

from raysweep.errors import UserError
from raysweep.evaluation import quantized
from raysweep.exchange.model_matrices import named_weights
from raysweep.exchange.unembedding import of_folder
from raysweep.suites.model import LoadedModel, load_model

CPU = torch.device("cpu")
COMMON = {"vocab_size": 96, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
LLAMA = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
         "intermediate_size": 24, "max_position_embeddings": 64}  # fmt: skip
EXPERTS = LLAMA | {"num_local_experts": 2, "num_experts_per_tok": 1}

# Name -> (model, what its configuration is given, whether its logits are its last states times W).
ARCHITECTURES: dict[str, tuple[str, dict[str, Any], bool]] = {
    "gpt-neox": ("GPTNeoX", LLAMA, True),
    "llama, tied": ("Llama", LLAMA | {"tie_word_embeddings": True}, True),
    "llama, own W": ("Llama", LLAMA | {"tie_word_embeddings": False}, True),
    "mistral": ("Mistral", LLAMA, True),
    "qwen2": ("Qwen2", LLAMA, True),
    "olmo": ("Olmo", LLAMA, True),
    "olmo2": ("Olmo2", LLAMA, True),
    "gpt2, tied": ("GPT2", {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}, True),
    "opt": ("OPT", {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 32,
                    "word_embed_proj_dim": 16, "max_position_embeddings": 64}, True),
    "bloom": ("Bloom", {"hidden_size": 16, "n_layer": 2, "n_head": 2}, True),
    "gpt-neo": ("GPTNeo", {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "attention_types": [[["global"], 2]],
                           "max_position_embeddings": 64}, True),
    "mixtral": ("Mixtral", EXPERTS, True),
    "phi, with a bias": ("Phi", LLAMA | {"num_key_value_heads": 2}, False),
    "gemma2, capped": ("Gemma2", LLAMA | {"head_dim": 8, "final_logit_softcapping": 0.5}, False),
    "cohere, scaled": ("Cohere", LLAMA | {"logit_scale": 0.25}, False),
    "granite, scaled": ("Granite", LLAMA | {"logits_scaling": 4.0}, False),
}  # fmt: skip


def made(name: str, seed: int = 1) -> Any:
    kind, settings, _ = ARCHITECTURES[name]
    config = getattr(transformers, f"{kind}Config")(**(COMMON | settings))
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_losses_and_w_are_those_of_transformers(name: str) -> None:
    model = made(name)
    loaded = LoadedModel(name, model)
    assert loaded.product is ARCHITECTURES[name][2]
    assert torch.equal(loaded.unembedding, model.get_output_embeddings().weight)
    ids = torch.randint(96, (3, 21), generator=torch.Generator().manual_seed(0))
    inputs, targets = ids[:, :-1], ids[:, 1:]
    with torch.no_grad():
        logits = model(inputs).logits
        wanted = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
        torch.testing.assert_close(loaded.token_losses(inputs, targets), wanted, atol=2e-4, rtol=1e-4)
        some = torch.rand(targets.shape, generator=torch.Generator().manual_seed(1)) < 0.3
        torch.testing.assert_close(loaded.token_losses(inputs, targets, some), wanted[some], atol=2e-4, rtol=1e-4)
        if loaded.product:
            torch.testing.assert_close(loaded.hidden(inputs) @ loaded.unembedding.T, logits, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("begin", [None, 5])
@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_gradients_are_those_of_transformers(name: str, begin: int | None) -> None:
    model = made(name)
    loaded = LoadedModel(name, model, begin)
    if not loaded.product:
        # A part of the sequences at a time.
        loaded._most_rows = lambda length: 2  # type: ignore[method-assign]
    ids = torch.randint(96, (3, 21), generator=torch.Generator().manual_seed(0))
    given = ids[:, :-1] if begin is None else torch.cat([torch.full((3, 1), begin), ids[:, :-1]], dim=1)
    logits = model(given).logits[:, -20:]
    wanted = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad(wanted, list(parameters.values()), allow_unused=True)
    loss = loaded.trained_by(make_cell())(ids)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
    # Some are zero but for rounding, such as those of a router of one expert.
    rounding = 1e-5 * max(float(gradient.abs().max()) for gradient in gradients if gradient is not None)
    for (parameter, own), gradient in zip(parameters.items(), gradients, strict=True):
        assert (own.grad is None) == (gradient is None), parameter
        if gradient is not None:
            assert own.grad is not None
            torch.testing.assert_close(own.grad, gradient, atol=rounding, rtol=1e-4)


@pytest.mark.parametrize("layout", [*layouts.LAYOUTS, "hf_olmo, tied", "gpt_neox_pickled"])
def test_published_layouts_are_read_as_transformers_reads_them(layout: str, tmp_path: Path) -> None:
    if layout == "hf_olmo, tied":
        layouts.hf_olmo(tmp_path, 3, tied=True, step=100)
    elif layout == "gpt_neox_pickled":
        layouts.gpt_neox_pickled(tmp_path, 3, step=100)
    else:
        layouts.LAYOUTS[layout](tmp_path, 3, step=100)
    loaded, tokenizer = load_model("m", tmp_path, CPU)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).float()
    assert torch.equal(loaded.unembedding, theirs.get_output_embeddings().weight)
    # As `raysweep geometry` reads it, from the one file that has it.
    assert torch.equal(of_folder(tmp_path).float(), loaded.unembedding)
    assert loaded.product
    assert (loaded.begin is not None) is (layout == "llama")
    ids = torch.tensor([tokenizer("one two three four five", add_special_tokens=False)["input_ids"]])
    inputs, targets = ids[:, :-1], ids[:, 1:]
    with torch.no_grad():
        begun = inputs if loaded.begin is None else F.pad(inputs, (1, 0), value=loaded.begin)
        logits = theirs(begun).logits[:, begun.shape[1] - inputs.shape[1] :]
        wanted = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    torch.testing.assert_close(loaded.token_losses(inputs, targets), wanted, atol=1e-4, rtol=1e-4)


def test_the_shape_is_that_of_the_files(tmp_path: Path) -> None:
    layouts.olmo2(tmp_path / "own", 1, width=32, depth=2, heads=4)
    own, _ = load_model("m", tmp_path / "own", CPU)
    weights = load_all(tmp_path / "own")
    # Every tensor of the files but the input embedding.
    counted = sum(tensor.numel() for name, tensor in weights.items() if name != "model.embed_tokens.weight")
    assert own.shape == {"width": 32, "depth": 2, "heads": 4, "parameters": counted}
    layouts.llama(tmp_path / "tied", 1, width=32, depth=2, heads=4)
    tied, _ = load_model("m", tmp_path / "tied", CPU)
    # One that is W too counts.
    assert tied.shape["parameters"] == sum(tensor.numel() for tensor in load_all(tmp_path / "tied").values())


def load_all(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def test_a_model_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    layouts.gpt_neox(tmp_path, 1)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    del weights["gpt_neox.layers.0.mlp.dense_h_to_4h.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(
        UserError, match=r"lacks 1 of its weights, such as gpt_neox\.layers\.0\.mlp\.dense_h_to_4h\.weight"
    ):
        load_model("m", tmp_path, CPU)


def test_ai2_olmos_fields_under_the_name_of_another_model_are_refused(tmp_path: Path) -> None:
    """As OLMo-7B-Instruct has them: transformers would build its own OLMo of the usual size, at random."""
    layouts.hf_olmo(tmp_path, 1)
    config = json.loads((tmp_path / "config.json").read_text())
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32}
    (tmp_path / "config.json").write_text(json.dumps(config | small | {"model_type": "olmo"}))
    with pytest.raises(UserError, match=r"holds no lm_head\.weight|lacks .* of its weights"):
        load_model("m", tmp_path, CPU)


def test_a_model_that_sees_what_follows_is_refused() -> None:
    settings = COMMON | {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    torch.manual_seed(0)
    both_ways = transformers.BertLMHeadModel(transformers.BertConfig(**settings, is_decoder=False)).eval()
    with torch.no_grad():
        for parameter in both_ways.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    with pytest.raises(UserError, match="sees the tokens that it is to predict"):
        LoadedModel("bert", both_ways)


def test_code_in_a_repository_is_never_run(tmp_path: Path) -> None:
    layouts.llama(tmp_path, 1)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model("m", tmp_path, CPU)
    assert not (tmp_path / "ran").exists()


def test_a_pickle_that_is_more_than_numbers_is_not_opened(tmp_path: Path) -> None:
    layouts.gpt_neox_pickled(tmp_path, 1)

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"gpt_neox.embed_in.weight": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError):
        load_model("m", tmp_path, CPU)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["gpt-neox", "llama, tied", "olmo2", "mistral", "hf_olmo"])
def test_layers_are_calibrated_on_what_reaches_them(name: str, tmp_path: Path) -> None:
    """With these inputs each layer gives what it gives in a whole pass; the order is that of the pass."""
    if name == "hf_olmo":
        layouts.hf_olmo(tmp_path, 1, step=100)
        model = load_model("m", tmp_path, CPU)[0].loaded
    else:
        model = made(name)
    loaded = LoadedModel(name, model)
    ids = torch.randint(96, (2, 9), generator=torch.Generator().manual_seed(0))
    seen: dict[torch.nn.Module, torch.Tensor] = {}
    order: list[torch.nn.Module] = []

    def keep(module: torch.nn.Module, given: Any, out: torch.Tensor) -> None:
        seen[module] = out
        order.append(module)

    for layer in loaded.linear_layers():
        layer.register_forward_hook(keep)
    with torch.no_grad():
        model(ids)
        whole, order_of_pass = dict(seen), list(order)
        order.clear()
        found = list(loaded.layers_with_inputs([ids]))
        # The whole model twice, for its order and for what blocks are given, and each block but once for each of its layers.
        assert len(order) <= 2 * len(found) + len(found) * (len(found) // 2 + 1)
        assert [layer for layer, _ in found] == order_of_pass
        for layer, (inputs,) in found:
            torch.testing.assert_close(
                F.linear(inputs, layer.weight, layer.bias), whole[layer].view(*inputs.shape[:-1], -1)
            )


def test_a_later_layer_sees_that_an_earlier_one_was_quantized() -> None:
    loaded = LoadedModel("m", made("olmo2"))
    ids = torch.randint(96, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        untouched = [inputs[0] for _, inputs in loaded.layers_with_inputs([ids])]
        changed = []
        for layer, inputs in loaded.layers_with_inputs([ids]):
            changed.append(inputs[0])
            quantized.round_layer(layer, 2)
    assert torch.equal(untouched[0], changed[0])
    # Query, key and value see the same.
    assert all(not torch.equal(one, other) for one, other in zip(untouched[3:], changed[3:], strict=True))


def test_blocks_of_another_kind_are_not_quantized_in_part() -> None:
    for name in ("opt", "gpt2, tied"):
        with pytest.raises(UserError, match="its blocks are of no kind that raysweep can quantize"):
            LoadedModel(name, made(name)).linear_layers()
    experts = made("mixtral")
    with torch.no_grad():
        experts.model.layers[0].block_sparse_moe.gate.weight.zero_()  # Every token goes to the first.
    with pytest.raises(UserError, match="linear layers of its blocks took no part"):
        LoadedModel("mixtral", experts).linear_layers()


def test_matrices_of_ai2_olmo_are_those_of_its_computation(tmp_path: Path) -> None:
    """Of one block: attention scores and SwiGLU by these matrices, against what the block's own layers give."""
    layouts.hf_olmo(tmp_path, 2, width=32, depth=1, heads=4)
    loaded, _ = load_model("m", tmp_path, CPU)
    there = named_weights("m", loaded.loaded)
    block = loaded.loaded.model.transformer.blocks[0]
    x = torch.randn(5, 32)
    query, key, value = block.att_proj(x).chunk(3, dim=-1)
    for name, wanted in (("query", query), ("key", key), ("value", value)):
        torch.testing.assert_close(x @ there[f"blocks.0.attention.{name}"].T, wanted)
    torch.testing.assert_close(x @ there["blocks.0.attention.output"], block.attn_out(x))
    up, gate = (x @ there[f"blocks.0.mlp.{name}"].T for name in ("up", "gate"))
    torch.testing.assert_close(
        (F.silu(gate) * up) @ there["blocks.0.mlp.down"], block.ff_out(block.act(block.ff_proj(x)))
    )
    head = there["blocks.0.heads.1.value"]
    assert torch.equal(head, there["blocks.0.attention.value"][8:16])
    assert math.isclose(float(there["unembedding"].sum()), float(loaded.unembedding.sum()))
