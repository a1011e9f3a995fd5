"""The `olmo.model.OLMo` of a shape.

The configuration is that of the study (facts: 6 layers, 4 heads, SwiGLU with MLP ratio 4, RMSNorm, RoPE, no biases, no
dropout, untied embeddings), but for what a cell sets otherwise.
"""

from __future__ import annotations

from typing import Any

import torch
from olmo.config import ActivationType, BlockType, InitFnType, LayerNormType, ModelConfig
from olmo.model import OLMo, OLMoSequentialBlock
from torch import nn

from raysweep.space.size import Shape


class _ParallelBlock(OLMoSequentialBlock):
    """x + attention(norm(x)) + mlp(norm(x)), as GPT-J and Pythia have it."""

    parallel = True

    def forward(self, x: torch.Tensor, *settings: Any, **more: Any) -> Any:
        q, k, v = self.att_proj(self.attn_norm(x)).split(self.fused_dims, dim=-1)
        attended, cache = self.attention(q, k, v, *settings, **more)
        return x + attended + self.ff_out(self.act(self.ff_proj(self.ff_norm(x)))), cache


class _Unembedding(nn.Module):
    """W, of shape (V, d), kept under OLMo's own parameter name but not applied in the forward pass; or its two factors."""

    def __init__(self, weight: nn.Parameter, bottleneck: nn.Parameter | None = None) -> None:
        super().__init__()
        self.weight = weight
        if bottleneck is not None:
            self.bottleneck = bottleneck

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden


class _TiedUnembedding(nn.Module):
    """W where it is the embedding: under that name alone, so that no checkpoint has it twice."""

    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        # Not as a module of its own.
        object.__setattr__(self, "_embedding", embedding)

    @property
    def weight(self) -> nn.Parameter:
        return self._embedding.weight  # type: ignore[union-attr, return-value]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden


def build(shape: Shape, sequence_length: int, seed: int, device: str | torch.device = "cpu") -> OLMo:
    """A freshly initialised OLMo.

    Weights are drawn on the CPU from a generator seeded with `seed` (normal, std 0.02, truncated at 3 std), so that a
    seed gives the same weights on every device. torch's global generator is left seeded: call this before any other draw.

    The unembedding `model.transformer.ff_out` returns the hidden states it is given: `forward(ids).logits` are the final
    states after the last norm, shape (batch, sequence, width), ready for `raysweep.model.loss`, which reads its `.weight`.
    """
    config = ModelConfig(
        d_model=shape.width,
        n_heads=shape.heads,
        n_layers=shape.depth,
        mlp_ratio=shape.mlp_ratio,
        block_type=BlockType.sequential,
        activation_type=ActivationType.swiglu,
        layer_norm_type=LayerNormType.rms,
        layer_norm_with_affine=True,
        layer_norm_eps=1e-5,
        attention_layer_norm=shape.qk_norm,
        attention_layer_norm_with_affine=True,
        rope=True,
        alibi=False,
        include_bias=False,
        bias_for_layer_norm=False,
        attention_dropout=0.0,
        residual_dropout=0.0,
        embedding_dropout=0.0,
        weight_tying=shape.tied,
        vocab_size=shape.vocabulary,
        embedding_size=shape.vocabulary,
        max_sequence_length=sequence_length,
        init_fn=InitFnType.normal,
        init_std=0.02,
        init_cutoff_factor=3.0,
        init_device="cpu",
    )
    torch.manual_seed(seed)
    model = OLMo(config)
    if shape.block == "parallel":
        for block in model.transformer.blocks:  # type: ignore[union-attr]
            block.__class__ = _ParallelBlock  # The same parameters, initialised alike, in another forward pass.
    if shape.tied:
        config.weight_tying = False  # From here on W is applied where the loss is, as in all models.
        unembedding: nn.Module = _TiedUnembedding(model.transformer.wte)  # type: ignore[union-attr, arg-type]
    else:
        weight: nn.Parameter = model.transformer.ff_out.weight  # type: ignore[union-attr, assignment]
        bottleneck = None
        if shape.bottleneck is not None:
            # Drawn last, so that all else begins as without it; logits begin as large as those of a whole W.
            bottleneck = nn.Parameter(torch.randn(shape.bottleneck, shape.width) / shape.bottleneck**0.5)
            weight = nn.Parameter(weight.detach()[:, : shape.bottleneck].clone())
        unembedding = _Unembedding(weight, bottleneck)
    model.transformer["ff_out"] = unembedding  # type: ignore[operator]
    return model.to(device)
