"""What a search space measures of its models while they train: matrices by name, and metrics of each.

    measure:
      - {of: "blocks.*.attention.query", metrics: [effective_rank, stable_rank]}
      - {of: "hidden.*", metrics: [effective_rank, isoscore], sequences: 512, when: [0.1, 1.0]}

It changes nothing of a cell, and so not its id. What there is of a model of `depth` blocks; each is a matrix with as many
columns as the model is wide:

    embedding, unembedding                          (a row for each token)
    blocks.<0 ...>.attention.query|key|value        (what a unit reads)
    blocks.<0 ...>.attention.output                 (transposed: what a unit writes)
    blocks.<0 ...>.mlp.up|gate, .down               (.down transposed)
    blocks.<0 ...>.heads.<0 ...>.query|key|value|output|ov|qk
    hidden.<0 ... depth>, hidden.final              (states after the embedding, after each block, and after the last norm)
    gradients.<any of the weights>                  (of the loss of the next step's batch, before clipping)

`ov` of a head is W_V^T W_O^T, what it writes for what it reads; `qk` is W_Q^T W_K, how it attends, without the rotation by
position (Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits").
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from raysweep.errors import UserError, allowed, did_you_mean
from raysweep.space.fields import Count, Positive, Strict, unique
from raysweep.space.fields import Fraction as Share
from raysweep.space.metrics import METRICS, OF_ONE, OF_TWO
from raysweep.space.plugins import METRICS as METRIC_PLUGINS
from raysweep.space.plugins import is_plugin, load_function, version
from raysweep.space.size import MLP_RATIO, Size

if TYPE_CHECKING:
    from raysweep.space.cell import Cell

IN_BLOCK = (
    "attention.query", "attention.key", "attention.value", "attention.output", "mlp.up", "mlp.gate", "mlp.down",
)  # fmt: skip
IN_HEAD = ("query", "key", "value", "output", "ov", "qk")
# Of hidden states that are held together; each metric needs some five times what one layer takes of it.
MOST_BYTES = 4e9
HIDDEN, GRADIENTS = "hidden.", "gradients."
# Of `against`: the same matrix at the end of training.
END = "end"
UNEMBEDDING = "unembedding"
OF_TOKENS = ("embedding", UNEMBEDDING)


def matrix_names(size: Size) -> list[str]:
    """Everything that can be measured of a model of this size, by name."""
    weights = list(OF_TOKENS)
    for block in range(size.depth):
        weights += [f"blocks.{block}.{part}" for part in IN_BLOCK]
        weights += [f"blocks.{block}.heads.{head}.{part}" for head in range(size.heads) for part in IN_HEAD]
    hidden = [f"{HIDDEN}{layer}" for layer in (*range(size.depth + 1), "final")]
    # The gradient of a product of two matrices is not one.
    return [*weights, *hidden, *(f"{GRADIENTS}{name}" for name in weights if not name.endswith((".ov", ".qk")))]


def rows(name: str, size: Size, mlp_ratio: int) -> str | int:
    """How many rows a matrix has; a word for what the text or the vocabulary decides."""
    name = name.removeprefix(GRADIENTS)
    if name in OF_TOKENS:
        return "vocabulary"
    if name.startswith(HIDDEN):
        return "sequences"
    if ".heads." in name:
        return size.width if name.endswith((".ov", ".qk")) else size.width // size.heads
    return mlp_ratio * size.width // 2 if ".mlp." in name else size.width


def _patterns(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _built_in(metric: str) -> bool:
    return metric in OF_ONE or metric in OF_TWO


def check_metric(name: str) -> None:
    """Raise `ValueError` where a name is of no metric, or of a function that cannot be used."""
    if _built_in(name):
        return
    if not is_plugin(name, METRIC_PLUGINS):
        raise ValueError(f"no metric {name}; {allowed(name, OF_ONE | OF_TWO)}; one of your own is package.module:name")
    load_function(name, METRIC_PLUGINS)
    version(name, METRIC_PLUGINS)


def own_metrics(measurements: Iterable[Measurement]) -> list[str]:
    """The functions of the user's own among the metrics, each once."""
    return sorted({name for one in measurements for name in one.metrics if not _built_in(name)})


def _known(metrics: tuple[str, ...]) -> tuple[str, ...]:
    for name in metrics:
        check_metric(name)
    return metrics


def check_sequences(asked: int, held: int, length: int, corpus: str) -> None:
    """Raise `UserError` where hidden states are asked of more held-out sequences than a corpus has."""
    if held < asked:
        raise UserError(
            f"measure asks for hidden states of {asked:,} sequences of {length:,} tokens, and the in-distribution test text "
            f"of the corpus {corpus} has {held:,}: set sequences to no more"
        )


class Measurement(Strict):
    """Some matrices, and what is measured of each."""

    of: Annotated[tuple[str, ...], BeforeValidator(_patterns), Field(min_length=1)]
    """Names of matrices, or patterns: `blocks.*.mlp.up`."""
    metrics: Annotated[tuple[str, ...], AfterValidator(unique), AfterValidator(_known)] = tuple(METRICS)
    """By name (`raysweep.space.metrics`), or functions of your own (`raysweep.space.plugins`); `[]` keeps the singular
    values alone."""
    time_limit: Positive = 60.0
    """Seconds that a function of your own may take for one matrix."""
    when: Annotated[tuple[Share, ...], Field(min_length=1), AfterValidator(unique)] | None = None
    """Shares of training: at the first report from there on. By default at every report."""
    sequences: Count = 512
    """Of hidden states: sequences of the in-distribution test split, which must have as many."""
    positions: Literal["last", "all"] = "last"
    """Of hidden states: a row for the last token of each sequence, or for every token."""
    tokens: Literal["frequent", "rare", "unseen"] | None = None
    """Of the embedding and the unembedding: only the rows of the most frequent tenth of the tokens that occur in a sample of
    the training text (20 million tokens), of the others that occur there, or of those that do not."""
    against: str | None = None
    """The other matrix of `cka` and `pwcca`; `end` is the same one at the end of training, which `raysweep measure` measures
    from checkpoints."""

    @model_validator(mode="after")
    def _two_matrices(self) -> Measurement:
        two = [name for name in self.metrics if name in OF_TWO]
        if two and self.against is None:
            raise ValueError(f"{two[0]} is of two matrices: add against: hidden.final, or another name")
        if self.against is not None and not two:
            raise ValueError(f"against is for {' and '.join(OF_TWO)}: add one to metrics, or leave it out")
        if self.against is not None and self.tokens is not None:
            raise ValueError("against and tokens do not go together: leave one out")
        return self

    def names(self, size: Size, mlp_ratio: int = MLP_RATIO) -> list[str]:
        """The matrices of a model of this size and MLP that `of` means. Raises `ValueError` where a pattern means none."""
        there = matrix_names(size)
        chosen = self.select(there, f"of a model of {size.depth} blocks and {size.heads} heads")
        if self.against not in (None, END, *there):
            raise ValueError(f"against: no matrix {self.against}{did_you_mean(self.against, there)}")
        for name in chosen:
            if self.tokens is not None and name.removeprefix(GRADIENTS) not in OF_TOKENS:
                raise ValueError(f"tokens: {self.tokens} is of the embedding and the unembedding, not of {name}")
            if self.positions != "last" and not name.startswith(HIDDEN):
                raise ValueError(f"positions: {self.positions} is of hidden states, not of {name}")
            if self.against not in (None, END) and rows(name, size, mlp_ratio) != rows(
                str(self.against), size, mlp_ratio
            ):
                raise ValueError(f"against: {self.against} has not as many rows as {name}: choose one that has")
        if "sequences" in self.model_fields_set and not any(name.startswith(HIDDEN) for name in chosen):
            raise ValueError(f"sequences: {self.sequences} is of hidden states, not of {chosen[0]}")
        if "time_limit" in self.model_fields_set and all(map(_built_in, self.metrics)):
            raise ValueError("time_limit: it is for functions of your own, of which there is none in metrics")
        return chosen

    def select(self, there: list[str], of_what: str) -> list[str]:
        """The names out of those that are there. Raises `ValueError` where a pattern means none."""
        chosen: dict[str, None] = {}
        for pattern in self.of:
            matching = [name for name in there if fnmatchcase(name, pattern)]
            if not matching:
                raise ValueError(f"of: {pattern} is no matrix {of_what}{did_you_mean(pattern, there)}")
            # `*` is not to mean every head and gradient too: a pattern that does not name them leaves them out.
            wanted = [
                name
                for name in matching
                if (".heads." not in name or "heads" in pattern)
                and (not name.startswith(GRADIENTS) or pattern.startswith("gradients"))
            ]
            chosen |= dict.fromkeys(wanted or matching)
        return list(chosen)

    def steps(self, cell: Cell) -> list[int]:
        """The reports at which it is measured, by their steps."""
        if self.when is None:
            return cell.report_steps
        # As they are written: 0.55 of 100 steps is 55.
        shares = [Fraction(str(share)) * cell.steps for share in self.when]
        return sorted({next(s for s in cell.report_steps if s >= share) for share in shares})


def column(metric: str, matrix: str) -> str:
    """What a metric of a matrix is called in tables with a row for each cell: `stable_rank_blocks_0_mlp_up`."""
    return re.sub(r"\W+", "_", f"{metric}_{matrix}").strip("_")


@dataclass
class Wanted:
    """One matrix of a cell, and what is measured of it at which steps."""

    matrix: str
    sequences: int = 0
    """Of hidden states, else 0."""
    positions: str = ""
    tokens: str = ""
    metrics: dict[tuple[str, str], set[int]] = field(default_factory=dict)
    """(Metric, the other matrix or nothing) -> the steps of its reports."""
    spectrum: set[int] = field(default_factory=set)
    """The steps at which the singular values are kept."""
    time_limits: dict[str, float] = field(default_factory=dict)
    """Seconds that each metric may take, if it is of the user's own."""

    @property
    def label(self) -> str:
        """The matrix in tables, with what of it: `unembedding[rare]`, `hidden.3[all]`."""
        part = self.tokens or (self.positions if self.positions == "all" else "")
        return f"{self.matrix}[{part}]" if part else self.matrix

    @property
    def settings(self) -> str:
        """What else changes the matrix."""
        return f"{self.sequences} sequences" if self.sequences else ""

    def settings_of(self, metric: str) -> str:
        """What else changes a number: what changes the matrix, and the version of a function of the user's own."""
        own = "" if _built_in(metric) else f"version {version(metric, METRIC_PLUGINS)}"
        return ", ".join(filter(None, (self.settings, own)))

    @property
    def needs_text(self) -> bool:
        """Whether it is more than a function of the weights."""
        return self.matrix.startswith((HIDDEN, GRADIENTS)) or bool(self.tokens)

    @staticmethod
    def name_of(metric: str, other: str) -> str:
        """A metric in tables: `cka(hidden.final)`."""
        return f"{metric}({other})" if other else metric


def wanted(measurements: Iterable[Measurement], cell: Cell) -> list[Wanted]:
    """What is measured of a cell, each matrix once, in the order of the search space.

    The singular values of the unembedding are kept at every report whatever is asked for. Raises `ValueError` where a
    measurement does not fit the cell, or two ask for one matrix under different settings.
    """
    found: dict[str, Wanted] = {}
    for measurement in (Measurement(of=(UNEMBEDDING,), metrics=()), *measurements):
        steps = set(measurement.steps(cell))
        for name in measurement.names(cell.size, cell.mlp_ratio):
            hidden = name.startswith(HIDDEN)
            sequences, positions = (measurement.sequences, measurement.positions) if hidden else (0, "")
            one = Wanted(name, sequences, positions, measurement.tokens or "")
            one = found.setdefault(one.label, one)
            if one.sequences != sequences:
                raise ValueError(
                    f"sequences: {one.label} is measured over {one.sequences} and over {sequences}: choose one"
                )
            one.spectrum |= steps
            one.time_limits |= dict.fromkeys(measurement.metrics, measurement.time_limit)
            for metric in measurement.metrics:
                other = (measurement.against or "") if metric in OF_TWO else ""
                one.metrics.setdefault((metric, other), set()).update(steps)
    _check_columns(found.values())
    _check_memory(found.values(), cell)
    return list(found.values())


def _check_columns(measures: Iterable[Wanted]) -> None:
    """Raise `ValueError` where two metrics would share a column of the results."""
    seen: dict[str, str] = {}
    for one in measures:
        for metric, other in one.metrics:
            name = one.name_of(metric, other)
            taken = seen.setdefault(column(name, one.label), name)
            if taken != name:
                raise ValueError(
                    f"metrics: {taken} and {name} would share the column {column(name, one.label)}: rename one"
                )


def _check_memory(measures: Iterable[Wanted], cell: Cell) -> None:
    """Raise `ValueError` where the states of all positions do not fit in memory."""
    everywhere = {one.sequences for one in measures if one.positions == "all"}
    numbers = sum(everywhere) * cell.sequence_length * cell.size.width * (cell.size.depth + 2)
    if 4 * numbers > MOST_BYTES:
        raise ValueError(
            f"sequences: the states of all positions of {sum(everywhere):,} sequences take {4 * numbers / 1e9:.3g} GB, "
            f"more than {MOST_BYTES / 1e9:.3g}: lower sequences"
        )
