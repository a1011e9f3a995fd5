"""The size of a model, its number of parameters, and the learning rate that follows from that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import model_validator

from raysweep.errors import allowed
from raysweep.space.fields import Count, Strict

# Name -> hidden size, all with 6 blocks and 4 heads (Table 1 of arXiv 2602.20433).
SIZES = {"4M": 64, "8M": 128, "16M": 256, "28M": 384, "40M": 512, "75M": 768}
DEPTH = 6
HEADS = 4
MLP_RATIO = 4


def peak_learning_rate(parameters: int) -> float:
    """The OLMo ladder's peak learning rate, 0.0047 (N / 108e6)^(-1/3); it gives Table 1 of arXiv 2602.20433."""
    return float(0.0047 * (parameters / 108e6) ** (-1 / 3))


@dataclass(frozen=True)
class Shape:
    """What determines the number of parameters of a model.

    `width` is the hidden size d, `depth` the number of blocks, `heads` the attention heads, `vocabulary` the number V of
    rows of the embedding and of the unembedding. A `block` is `sequential` or `parallel`, which has the same parameters.
    `tied`, `qk_norm`, `mlp_ratio` and `bottleneck` are the `weight_tying`, `qk_norm`, `mlp_ratio` and `head_bottleneck` of
    a cell.
    """

    width: int
    depth: int
    heads: int
    vocabulary: int
    block: str = "sequential"
    tied: bool = False
    qk_norm: bool = False
    mlp_ratio: int = MLP_RATIO
    bottleneck: int | None = None

    @property
    def parameters(self) -> int:
        """N in the OLMo convention: every parameter except the input embedding.

        Equal to `OLMo.num_params(include_embedding=False)`. A block holds 4 d^2 in its attention and, at an `mlp_ratio` of
        4, 6 d^2 in its MLP (`ff_proj` maps d to 4d, SwiGLU halves that, `ff_out` maps 2d back); there are 2 depth + 1 norms
        of d weights, and two more in each block with `qk_norm`. A matrix that is embedding and unembedding counts as the
        latter: so N is that of the computation, and tied models have the learning rates and FLOP of others. Of W = A B both
        factors count.
        """
        d = self.width
        norms = (2 + 2 * self.qk_norm) * self.depth + 1
        head = self.vocabulary * d
        if self.bottleneck is not None:
            head = self.bottleneck * (self.vocabulary + d)
        return self.depth * (4 * d * d + 3 * self.mlp_ratio * d * d // 2) + head + norms * d


class Size(Strict):
    """A model's width and depth; the vocabulary comes from the corpus."""

    width: Count
    """Hidden size d."""
    depth: Count = DEPTH
    """Number of blocks."""
    heads: Count = HEADS
    """Attention heads of each block."""

    @model_validator(mode="after")
    def _divisible(self) -> Size:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by {self.heads} heads")
        if (self.width // self.heads) % 2:
            raise ValueError(f"width {self.width} over {self.heads} heads is odd; rotary embeddings need an even size")
        return self

    @property
    def label(self) -> str:
        """`4M` for a named size, else `d32`, with depth and heads where they are not the study's."""
        if (self.depth, self.heads) == (DEPTH, HEADS):
            for name, width in SIZES.items():
                if width == self.width:
                    return name
        depth = "" if self.depth == DEPTH else f"x{self.depth}"
        heads = "" if self.heads == HEADS else f"h{self.heads}"
        return f"d{self.width}{depth}{heads}"


def named_size(value: Any) -> Any:
    """The size of a name; anything else as it is."""
    if isinstance(value, str):
        if value not in SIZES:
            raise ValueError(f"neither a size nor {{width: 32, depth: 6, heads: 4}}; {allowed(value, SIZES)}")
        return Size(width=SIZES[value])
    return value
