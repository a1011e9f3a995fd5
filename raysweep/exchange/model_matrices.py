"""The weight matrices of a model that transformers has loaded, by the names of `raysweep.space.measure`.

Known are blocks of Llama and what is built like it (Mistral, OLMo, Qwen, SmolLM), of GPT-NeoX (Pythia), of GPT-2, and of
ai2-olmo's own format (DataDecide). Each
matrix has as many columns as the model is wide, as those of raysweep's own models have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
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
    weights = named_weights(model, loaded)
    rows = []
    for measurement in measurements:
        try:
            names = measurement.select([*weights, *states], f"of {model}")
            unusable = [name for name in measurement.metrics if name not in OF_ONE]
            if unusable or measurement.tokens is not None:
                raise ValueError(f"{', '.join(unusable) or 'tokens'}: only metrics of one whole matrix, by name")
        except ValueError as error:
            raise UserError(f"--of: {error}") from None
        for name in names:
            matrix = Matrix(states[name] if name in states else weights[name])
            rows += [{"matrix": name, "metric": m, "value": OF_ONE[m](matrix)} for m in measurement.metrics]
    return rows


class NamedWeights(Mapping[str, torch.Tensor]):
    """Weight matrices by name, each made when it is asked for: those of all heads together are far larger than the model."""

    def __init__(self, made: dict[str, Callable[[], torch.Tensor]]) -> None:
        self._made = made

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._made[name]().detach()

    def __iter__(self) -> Iterator[str]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)


def named_weights(model: str, loaded: Any) -> NamedWeights:
    """Every weight matrix that has a name."""
    unembedding = loaded_unembedding(model, loaded)
    embedding = loaded.get_input_embeddings().weight
    weights = {"embedding": lambda: embedding, "unembedding": lambda: unembedding}
    of_model, parts_of = _blocks(loaded)
    config = loaded.config
    heads = int(getattr(config, "num_attention_heads", 0) or getattr(config, "n_heads", 0) or 1)
    of_keys = int(getattr(config, "num_key_value_heads", None) or getattr(config, "n_kv_heads", None) or heads)
    for i, block in enumerate(of_model):
        of_block = partial(parts_of, block, heads)
        weights |= {f"blocks.{i}.{name}": partial(_part, of_block, name) for name in of_block()}
        for head in range(heads):
            own = partial(_of_head, of_block, head, heads, of_keys)
            weights |= {f"blocks.{i}.heads.{head}.{name}": partial(own, name) for name in _OF_HEAD}
    return NamedWeights(weights)


def _part(of_block: Callable[[], Parts], name: str) -> torch.Tensor:
    return of_block()[name]


_OF_HEAD = ("query", "key", "value", "output", "ov", "qk")


def _of_head(of_block: Callable[[], Parts], head: int, heads: int, of_keys: int, name: str) -> torch.Tensor:
    """A matrix of one head; where heads share keys and values, of those that it reads."""
    parts, shared = of_block(), head * of_keys // heads

    def part(one: str) -> torch.Tensor:
        number, which = (of_keys, shared) if one in ("key", "value") else (heads, head)
        return parts[f"attention.{one}"].detach().chunk(number)[which]

    if name == "ov":
        return product(part("value"), part("output"))
    return product(part("query"), part("key")) if name == "qk" else part(name)


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
