"""A cell's weights as a transformers `LlamaForCausalLM`.

OLMo's blocks in this configuration are Llama's: the weights are copied one to one and the logits are the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raysweep.model.matrices import BOTTLENECK, EMBEDDING, UNEMBEDDING
from raysweep.space.cell import Cell

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM


def to_llama(cell: Cell, weights: dict[str, torch.Tensor], end_of_text: int) -> LlamaForCausalLM:
    """`weights` under OLMo's names as a `LlamaForCausalLM` with the same logits."""
    # transformers takes seconds to import.
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = cell.shape
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.mlp_ratio * shape.width // 2,
        num_hidden_layers=shape.depth,
        num_attention_heads=shape.heads,
        max_position_embeddings=cell.sequence_length,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        tie_word_embeddings=shape.tied,
        bos_token_id=None,
        eos_token_id=end_of_text,
        pad_token_id=None,
    )
    head = weights[EMBEDDING if shape.tied else UNEMBEDDING]
    renamed = {
        "model.embed_tokens.weight": weights[EMBEDDING],
        "model.norm.weight": weights["transformer.ln_f.weight"],
        "lm_head.weight": head if shape.bottleneck is None else head @ weights[BOTTLENECK],
    }
    for i in range(shape.depth):
        ours, theirs = f"transformer.blocks.{i}", f"model.layers.{i}"
        attention = weights[f"{ours}.att_proj.weight"].chunk(3)
        up, gate = weights[f"{ours}.ff_proj.weight"].chunk(2)
        renamed |= {
            **{f"{theirs}.self_attn.{n}_proj.weight": part for n, part in zip("qkv", attention, strict=True)},
            f"{theirs}.self_attn.o_proj.weight": weights[f"{ours}.attn_out.weight"],
            f"{theirs}.mlp.up_proj.weight": up,
            f"{theirs}.mlp.gate_proj.weight": gate,
            f"{theirs}.mlp.down_proj.weight": weights[f"{ours}.ff_out.weight"],
            f"{theirs}.input_layernorm.weight": weights[f"{ours}.attn_norm.weight"],
            f"{theirs}.post_attention_layernorm.weight": weights[f"{ours}.ff_norm.weight"],
        }
    model = LlamaForCausalLM(config)
    model.load_state_dict({name: tensor.contiguous() for name, tensor in renamed.items()})
    return model
