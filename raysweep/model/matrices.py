"""The matrices of a model by the names of `raysweep.space.measure`, each with as many columns as the model is wide."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from raysweep.space.size import Size

EMBEDDING, UNEMBEDDING = "transformer.wte.weight", "transformer.ff_out.weight"
BOTTLENECK = "transformer.ff_out.bottleneck"
"""With a `head_bottleneck` of rank r: the B, (r, d), of W = A B, whose A, (V, r), then has the name of W."""

_WHOLE = {"embedding": EMBEDDING, "unembedding": UNEMBEDDING}


def weight(name: str, parameters: Mapping[str, torch.Tensor], size: Size) -> torch.Tensor:
    """The weight matrix of that name, (rows, width), out of parameters (or their gradients) under OLMo's names."""
    if name in _WHOLE:
        # Of a tied model the embedding is both.
        return parameters[_WHOLE[name] if _WHOLE[name] in parameters else EMBEDDING]
    _, block, *part = name.split(".")
    prefix = f"transformer.blocks.{block}"
    if part[0] == "mlp":
        if part[1] == "down":
            return parameters[f"{prefix}.ff_out.weight"].T
        up, gate = parameters[f"{prefix}.ff_proj.weight"].chunk(2)
        return up if part[1] == "up" else gate
    query, key, value = parameters[f"{prefix}.att_proj.weight"].chunk(3)
    of_attention = {"query": query, "key": key, "value": value, "output": parameters[f"{prefix}.attn_out.weight"].T}
    if part[0] == "attention":
        return of_attention[part[1]]
    head, kind = int(part[1]), part[2]
    rows = slice(head * (size.width // size.heads), (head + 1) * (size.width // size.heads))
    if kind == "ov":
        return product(value[rows], of_attention["output"][rows])
    if kind == "qk":
        return product(query[rows], key[rows])
    return of_attention[kind][rows]


def product(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """first^T second of two parts of a head, (width, width), in float64: float32 would round the zeros of its spectrum."""
    return first.double().T @ second.double()
