"""A cell: one configuration of the grid, with the id that says what changes its numbers.

An id is readable and safe in a path: `4M-32B-b128-wd0.1-lr1-f0.1-s6198-3f2a91c0`. The tail is a hash of every field that
changes the numbers, the corpus's specification included, and of nothing else: the same id means the same numbers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from raysweep.space.corpus import Corpus, without_places
from raysweep.space.fields import Column, Count, Flag, Fraction, Integer, Number, Positive, Strict
from raysweep.space.reports import as_floats_have_them, report_steps
from raysweep.space.size import MLP_RATIO, Shape, Size, named_size, peak_learning_rate
from raysweep.text import abbreviate


def _named_corpus(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class Cell(Strict):
    """One configuration of the grid. Every field here changes the numbers, and so the id."""

    size: Annotated[Size, BeforeValidator(named_size)]
    """A name (`4M` ... `75M`) or `{width, depth, heads}`."""
    corpus: Annotated[Corpus, BeforeValidator(_named_corpus)]
    """A name or `{name, tokenizer, vocabulary, fraction}`."""
    tokens: Count
    """Training budget; rounded down to whole steps."""
    batch_size: Annotated[Count, Column("sequences")]
    """Sequences per optimizer step."""
    sequence_length: Annotated[Count, Field(ge=2), Column("tokens")] = 2048
    """Tokens per sequence."""
    learning_rate: Positive | None = None
    """Peak learning rate before the factor; by default the rule of `raysweep.space.size.peak_learning_rate`."""
    learning_rate_factor: Positive = 1.0
    """Multiplies the peak learning rate."""
    final_learning_rate_fraction: Fraction = 0.1
    """Learning rate at the last step, as a fraction of the peak; at 1 the rate stays there."""
    schedule: Annotated[Literal["cosine", "linear", "wsd"], Column("cosine, linear or wsd", since=5)] = "cosine"
    """How the rate falls from the peak: along half a cosine, along a line, or along a line at the end only, after staying at
    the peak (warmup-stable-decay, arXiv 2404.06395)."""
    decay_fraction: Annotated[Annotated[Fraction, Field(gt=0)] | None, Column("share of the steps", since=5)] = None
    """Share of the steps over which the rate of `wsd` falls."""
    warmup_fraction: Fraction = 0.1
    """Share of the steps over which the rate rises linearly from zero."""
    optimizer: Annotated[Literal["adamw", "muon"], Column("adamw or muon", since=6)] = "adamw"
    """`muon`: Muon on every matrix of the blocks and AdamW on the rest, at one rate (`raysweep.training.optimizer`)."""
    weight_decay: Number = 0.1
    """That of the optimizer, times the rate, at every step."""
    weight_decay_on: Annotated[Literal["all", "matrices"], Column("all or matrices", since=6)] = "all"
    """Which parameters decay: every one, or all but the weights of norms."""
    z_loss: Annotated[Number, Column(since=6)] = 0.0
    """Adds this multiple of the mean of (log z)^2 to what is minimised, z being the sum of a token's exponentiated logits
    (PaLM, arXiv 2204.02311); losses are reported without it, gradient norms with it."""
    beta1: Annotated[Fraction, Field(lt=1)] = 0.9
    """AdamW's decay of the mean gradient."""
    beta2: Annotated[Fraction, Field(lt=1)] = 0.95
    """AdamW's decay of the mean squared gradient."""
    epsilon: Annotated[Positive, Field(ge=1e-30)] = 1e-8
    """What AdamW adds to the root of that."""
    gradient_clipping: Annotated[Positive, Column("L2 norm")] = 1.0
    """Largest L2 norm of the gradient."""
    block: Annotated[Literal["sequential", "parallel"], Column("sequential or parallel", since=3)] = "sequential"
    """Whether a block's MLP sees what its attention added, or both see the same x (as Pythia's): x + attention(norm x)
    + mlp(norm x)."""
    weight_tying: Annotated[Flag, Column(since=5)] = False
    """Whether one matrix is the embedding and the unembedding W."""
    qk_norm: Annotated[Flag, Column(since=5)] = False
    """Whether queries and keys pass through an RMSNorm of their own before attention (OLMo 2, arXiv 2501.00656)."""
    mlp_ratio: Annotated[Count, Field(le=64), Column("widths", since=5)] = MLP_RATIO
    """Outputs of an MLP's first layer, in widths; SwiGLU leaves half of them, which are the MLP's neurons."""
    head_bottleneck: Annotated[Count | None, Column("rank", since=6)] = None
    """The rank r of W = A B, with A (V, r) and B (r, d) trained in its place (the rank-constrained head of Godey et al.
    2024, arXiv 2404.07647)."""
    effective_rank_target: Annotated[
        Annotated[Fraction, Field(gt=0)] | None, Column("fraction of the width", since=3)
    ] = None
    """The effective rank of W that `effective_rank_penalty` pushes towards."""
    effective_rank_penalty: Annotated[Number, Column(since=3)] = 0.0
    """Adds this multiple of the squared distance between W's effective rank and its target to the loss."""
    spectral_norm_cap: Annotated[Positive | None, Column(since=3)] = None
    """W's singular values above this are lowered to it after every step."""
    reports: Annotated[Count, Field(le=10_000), Column("rows evenly over training", since=3)] = 20
    """Rows evenly over training, beside the first few at doubling steps."""
    precision: Annotated[Literal["float32", "bfloat16"] | None, Column("of matrix products", since=6)] = None
    """What matrix products are computed in, in training and in evaluations; weights, sums and geometry are in float32 or
    more. By default float32 on a CPU and bfloat16 on a GPU: then an id has other numbers on the other kind of device."""
    validation_sequences: Annotated[Count, Column("sequences")] = 128
    """Sequences of the validation split on which each report measures the loss."""
    seed: Annotated[Integer, Field(ge=0, lt=2**63)] = 6198
    """Seed of the initial weights and of the data order."""

    @model_validator(mode="after")
    def _at_least_one_step(self) -> Cell:
        if self.tokens < self.tokens_per_step:
            raise ValueError(
                f"tokens {self.tokens} is less than one step of batch_size {self.batch_size} x "
                f"sequence_length {self.sequence_length} = {self.tokens_per_step}"
            )
        return self

    @model_validator(mode="after")
    def _rate_in_range(self) -> Cell:
        if not 1e-37 < self.peak_learning_rate < 1e38:  # As float32 has it.
            raise ValueError(f"the peak learning rate would be {self.peak_learning_rate:g}: learning_rate x factor")
        return self

    @model_validator(mode="after")
    def _steps_to_decay(self) -> Cell:
        if self.steps > 1 and self.final_learning_rate_fraction != 1 and self.warmup_steps >= self.steps:
            raise ValueError(
                f"warmup_fraction {self.warmup_fraction:g} is all of the {self.steps:,} steps, so that the learning rate "
                f"would end at its peak and not at {self.final_learning_rate_fraction:g} of it"
            )
        return self

    @model_validator(mode="after")
    def _decay_with_wsd(self) -> Cell:
        if (self.schedule == "wsd") != (self.decay_fraction is not None):
            raise ValueError("schedule: wsd and decay_fraction need each other")
        if self.decay_fraction is not None and not 1 <= self.decay_steps <= self.steps - self.warmup_steps:
            raise ValueError(
                f"decay_fraction {self.decay_fraction:g} is {self.decay_steps:,} of {self.steps:,} steps, of which "
                f"warmup_fraction takes {self.warmup_steps:,}: one step is needed, and no more than the rest"
            )
        return self

    @model_validator(mode="after")
    def _penalty_with_target(self) -> Cell:
        if (self.effective_rank_target is None) != (self.effective_rank_penalty == 0):
            raise ValueError("effective_rank_target and effective_rank_penalty (above 0) need each other")
        return self

    @model_validator(mode="after")
    def _bottleneck_of_a_free_matrix(self) -> Cell:
        if self.head_bottleneck is None:
            return self
        if self.head_bottleneck >= self.size.width:
            raise ValueError(
                f"head_bottleneck {self.head_bottleneck} is a rank, which must be below the width {self.size.width}"
            )
        for name in ("weight_tying", "effective_rank_target", "spectral_norm_cap"):
            if getattr(self, name) != Cell.model_fields[name].default:
                raise ValueError(
                    f"head_bottleneck and {name} do not go together: W is then the product of two matrices"
                )
        return self

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.sequence_length

    @property
    def steps(self) -> int:
        return self.tokens // self.tokens_per_step

    @property
    def warmup_steps(self) -> int:
        """Steps over which the rate rises."""
        return round(self.warmup_fraction * self.steps)

    @property
    def decay_steps(self) -> int:
        """Steps over which the rate falls."""
        return (
            self.steps - self.warmup_steps if self.decay_fraction is None else round(self.decay_fraction * self.steps)
        )

    @property
    def report_steps(self) -> list[int]:
        """The step counts after which a row is reported."""
        return report_steps(self.steps, self.reports)

    @property
    def shape(self) -> Shape:
        size = self.size
        return Shape(
            size.width, size.depth, size.heads, self.corpus.vocabulary, self.block, self.weight_tying, self.qk_norm,
            self.mlp_ratio, self.head_bottleneck,
        )  # fmt: skip

    @property
    def peak_learning_rate(self) -> float:
        base = self.learning_rate if self.learning_rate is not None else peak_learning_rate(self.shape.parameters)
        return base * self.learning_rate_factor

    @property
    def flops(self) -> float:
        """6 N D, of the tokens in whole steps (Kaplan et al. 2020)."""
        return 6.0 * self.shape.parameters * self.steps * self.tokens_per_step

    @cached_property
    def id(self) -> str:
        """Of its settings; nothing else of a cell is kept once it is computed, since thousands are asked for theirs."""
        # Without what has its default value, so that a field to come leaves today's ids alone. For the same reason a
        # default here is never changed.
        fields = self.model_dump(exclude_defaults=True)
        fields["corpus"] = without_places(fields["corpus"])
        if not as_floats_have_them(self.steps, self.reports):
            fields["report_steps"] = "exact"  # The id without it means rows of which some are a step late.
        numbers = json.dumps(fields, sort_keys=True, separators=(",", ":"))
        tail = hashlib.sha256(numbers.encode()).hexdigest()[:8]
        tokens = abbreviate(self.tokens, 4, "KMB", "d")
        peak = "" if self.learning_rate is None else f"-peak{self.learning_rate:g}"
        further = "" if self.block == "sequential" else f"-{self.block}"
        further += "" if self.schedule == "cosine" else f"-{self.schedule}"
        further += "" if self.decay_fraction is None else f"{self.decay_fraction:g}"
        further += "-tied" * self.weight_tying + "-qknorm" * self.qk_norm
        further += "" if self.mlp_ratio == MLP_RATIO else f"-mlp{self.mlp_ratio}"
        further += "" if self.head_bottleneck is None else f"-head{self.head_bottleneck}"
        further += "" if self.optimizer == "adamw" else f"-{self.optimizer}"
        further += "" if self.weight_decay_on == "all" else f"-wd_on_{self.weight_decay_on}"
        further += "" if self.z_loss == 0 else f"-z{self.z_loss:g}"
        further += "" if self.precision is None else f"-{self.precision}"
        further += "" if self.effective_rank_target is None else f"-rank{self.effective_rank_target:g}"
        further += "" if self.spectral_norm_cap is None else f"-cap{self.spectral_norm_cap:g}"
        return (
            f"{self.size.label}-{tokens}-b{self.batch_size}-wd{self.weight_decay:g}{peak}"
            f"-lr{self.learning_rate_factor:g}-f{self.final_learning_rate_fraction:g}{further}-s{self.seed}-{tail}"
        )

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Cell:
        """A copy with changes, and so with an id of its own."""
        copy = super().model_copy(update=update, deep=deep)
        copy.__dict__.pop("id", None)
        return copy

    def describe(self) -> dict[str, Any]:
        """The cell as one flat row: id, every setting, and what follows from them."""
        settings = self.model_dump(exclude={"size", "corpus", "learning_rate", "tokens"})
        return {
            "id": self.id,
            "size": self.size.label,
            "width": self.size.width,
            "depth": self.size.depth,
            "heads": self.size.heads,
            "corpus": self.corpus.name,
            "tokenizer": self.corpus.tokenizer,
            "vocabulary": self.corpus.vocabulary,
            "parameters": self.shape.parameters,
            "tokens": self.tokens,
            "steps": self.steps,
            "learning_rate": self.peak_learning_rate,
            "flops": self.flops,
            **settings,
        }
