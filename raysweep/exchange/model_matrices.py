"""The weight matrices of a model that transformers has loaded, by the names of `raysweep.space.measure`.

Known are blocks of Llama and what is built like it (Mistral, OLMo, Qwen, SmolLM), of GPT-NeoX (Pythia), of GPT-2, and of
ai2-olmo's own format (DataDecide). Each
matrix has as many columns as the model is wide, as those of raysweep's own models have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from raysweep.errors import UserError
from raysweep.exchange.unembedding import loaded_unembedding
from raysweep.model.matrices import product
from raysweep.model.metrics import OF_ONE, Matrix
from raysweep.space.measure import Measurement

Parts = dict[str, torch.Tensor]


def measured(model: str, loaded: Any, states: Parts, measurements: Iterable[Measurement]) -> list[dict[str, Any]]:
    """`matrix`, `metric` and `value` of what is asked for, of the weights and of these hidden `states`.

    Raises `UserError` where a name is of no matrix of the model.
    """
    there = named_weights(model, loaded) | states
    rows = []
    for measurement in measurements:
        try:
            names = measurement.select(list(there), f"of {model}")
            unusable = [name for name in measurement.metrics if name not in OF_ONE]
            if unusable or measurement.tokens is not None:
                raise ValueError(f"{', '.join(unusable) or 'tokens'}: only metrics of one whole matrix, by name")
        except ValueError as error:
            raise UserError(f"--of: {error}") from None
        for name in names:
            matrix = Matrix(there[name])
            rows += [{"matrix": name, "metric": m, "value": OF_ONE[m](matrix)} for m in measurement.metrics]
    return rows


def named_weights(model: str, loaded: Any) -> Parts:
    """Every weight matrix that has a name."""
    unembedding = loaded_unembedding(model, loaded)
    embedding = loaded.get_input_embeddings().weight
    weights = {"embedding": embedding.detach(), "unembedding": unembedding.detach()}
    of_model, parts_of = _blocks(loaded)
    config = loaded.config
    heads = int(getattr(config, "num_attention_heads", 0) or getattr(config, "n_heads", 0) or 1)
    of_keys = int(getattr(config, "num_key_value_heads", None) or getattr(config, "n_kv_heads", None) or heads)
    for i, block in enumerate(of_model):
        parts = {name: tensor.detach() for name, tensor in parts_of(block, heads).items()}
        weights |= {f"blocks.{i}.{name}": tensor for name, tensor in parts.items()}
        for head in range(heads):
            own = _of_head(parts, head, heads, of_keys)
            weights |= {f"blocks.{i}.heads.{head}.{name}": tensor for name, tensor in own.items()}
    return weights


def _of_head(parts: Parts, head: int, heads: int, of_keys: int) -> Parts:
    """One head's parts; where heads share keys and values, those that it reads."""
    shared = head * of_keys // heads
    query = parts["attention.query"].chunk(heads)[head]
    key, value = (parts[f"attention.{name}"].chunk(of_keys)[shared] for name in ("key", "value"))
    output = parts["attention.output"].chunk(heads)[head]
    own = {"query": query, "key": key, "value": value, "output": output}
    return own | {"ov": product(value, output), "qk": product(query, key)}


def _blocks(loaded: Any) -> tuple[Any, Callable[[Any, int], Parts]]:
    """The blocks of a model, and what takes one apart; none of one that is not known."""
    for path, attention, take in (
        ("model.layers", "self_attn.q_proj", _like_llama),
        ("gpt_neox.layers", "attention.query_key_value", _like_neox),
        ("transformer.h", "attn.c_attn", _like_gpt2),
        ("model.transformer.blocks", "att_proj", _like_ai2_olmo),
    ):
        found = _at(loaded, path)
        if found is not None and len(found) and _at(found[0], attention) is not None:
            return found, take
    return (), _like_llama


def blocks(loaded: Any) -> Any:
    """The blocks of a model; none of one that is not known."""
    return _blocks(loaded)[0]


def _at(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name, None)
    return module


def _like_llama(block: Any, heads: int) -> Parts:
    attention, mlp = block.self_attn, block.mlp
    parts = {
        "attention.query": attention.q_proj.weight, "attention.key": attention.k_proj.weight,
        "attention.value": attention.v_proj.weight, "attention.output": attention.o_proj.weight.T,
    }  # fmt: skip
    for name in ("up", "gate", "down"):
        if (layer := getattr(mlp, f"{name}_proj", None)) is not None:
            parts[f"mlp.{name}"] = layer.weight.T if name == "down" else layer.weight
    return parts


def _like_neox(block: Any, heads: int) -> Parts:
    fused = block.attention.query_key_value.weight
    # Head by head, each with its query, key and value.
    query, key, value = fused.view(heads, 3, -1, fused.shape[1]).unbind(1)
    return {
        "attention.query": query.flatten(0, 1), "attention.key": key.flatten(0, 1), "attention.value": value.flatten(0, 1),
        "attention.output": block.attention.dense.weight.T, "mlp.up": block.mlp.dense_h_to_4h.weight,
        "mlp.down": block.mlp.dense_4h_to_h.weight.T,
    }  # fmt: skip


def _like_gpt2(block: Any, heads: int) -> Parts:
    # Its layers keep their weights the other way round.
    query, key, value = block.attn.c_attn.weight.T.chunk(3)
    return {
        "attention.query": query, "attention.key": key, "attention.value": value,
        "attention.output": block.attn.c_proj.weight, "mlp.up": block.mlp.c_fc.weight.T, "mlp.down": block.mlp.c_proj.weight,
    }  # fmt: skip


def _like_ai2_olmo(block: Any, heads: int) -> Parts:
    # Query, key and value lie one after another, and with SwiGLU what is passed on and its gate.
    width = block.config.d_model
    of_keys = (block.att_proj.weight.shape[0] - width) // 2
    query, key, value = block.att_proj.weight.split([width, of_keys, of_keys])
    parts = {
        "attention.query": query, "attention.key": key, "attention.value": value,
        "attention.output": block.attn_out.weight.T, "mlp.down": block.ff_out.weight.T,
    }  # fmt: skip
    if block.ff_out.weight.shape[1] == block.ff_proj.weight.shape[0]:
        return parts | {"mlp.up": block.ff_proj.weight}
    up, gate = block.ff_proj.weight.chunk(2)
    return parts | {"mlp.up": up, "mlp.gate": gate}


def is_ai2_olmo(loaded: Any) -> bool:
    """Whether a model is of ai2-olmo's own format."""
    return type(loaded).__module__.startswith("hf_olmo")
