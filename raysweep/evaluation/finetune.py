"""finetune_python and finetune_math: train on from the final weights, and see what is learnt and what is forgotten.

From the final weights with a fresh AdamW (whatever trained them), at one peak rate and one weight decay for all cells of
a size (a tenth of the rule's rate for that size, and 0.1), with 10% linear warm-up, cosine to zero, and 32 sequences a
step. At a tenth of each cell's own rate, as it first was, what is forgotten is mostly that rate. Then the loss on the
subject's held-out part, before and after, and again the in-distribution loss: its rise is the forgetting. A fine-tuning
that is killed resumes from its own checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import SerializerFunctionWrapHandler, model_serializer, model_validator

from raysweep.evaluation import in_distribution
from raysweep.evaluation.task import Metric
from raysweep.space.cell import Cell
from raysweep.space.evaluations import Evaluation
from raysweep.space.fields import Count, Number, Positive
from raysweep.space.size import peak_learning_rate

# torch is imported where it is used: a search space reads the settings.
if TYPE_CHECKING:
    from raysweep.corpora.tokenized import TokenizedCorpus
    from raysweep.evaluation.task import Subject

# Seconds between checkpoints.
CHECKPOINT_INTERVAL = 60.0


class FineTuning(Evaluation):
    """How a cell is trained on, and what is measured before and after."""

    tokens: Count = 4_194_304
    """Training budget; rounded down to whole steps."""
    batch_size: Count = 32
    """Sequences per step, at the cell's length."""
    learning_rate_fraction: Positive = 0.1
    """Peak learning rate, as a fraction of the rate that `relative_to` says."""
    relative_to: Literal["size", "cell"] = "size"
    """`size`: the rule's rate for the cell's size (`raysweep.space.size.peak_learning_rate`). `cell`: the cell's own peak
    rate, with its own optimizer and weight decay, as results of before this could be chosen have it."""
    weight_decay: Number = 0.1
    """AdamW's, on every parameter."""
    sequences: Count = 512
    """Sequences of each held-out part (`Sequences.sample`); all where there are fewer."""

    @model_validator(mode="after")
    def _one_weight_decay(self) -> FineTuning:
        if self.relative_to == "cell" and "weight_decay" in self.model_fields_set:
            raise ValueError("relative_to: cell takes the cell's own weight_decay: leave it out")
        return self

    @model_serializer(mode="wrap")
    def _as_first_written(self, serialized: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Results are found by their settings: those of `cell` have what they had when there was nothing else."""
        settings: dict[str, Any] = serialized(self)
        new = ("relative_to", "weight_decay") if self.relative_to == "cell" else ()
        return {name: value for name, value in settings.items() if name not in new}

    @property
    def subject_name(self) -> str:
        """What it is trained on, as columns have it."""
        raise NotImplementedError

    @property
    def subject_shards(self) -> str:
        """The text that it is trained on has the shards `<this>/train` and `<this>/test`."""
        raise NotImplementedError

    @property
    def fixed_rate(self) -> float | None:
        """The peak learning rate of every cell, where it is set outright."""
        return None

    def peak_rate(self, cell: Cell, parameters: int) -> float:
        """The peak learning rate of the fine-tuning of a cell, or of a model of so many parameters."""
        if self.fixed_rate is not None:
            return self.fixed_rate
        rule = cell.peak_learning_rate if self.relative_to == "cell" else peak_learning_rate(parameters)
        return rule * self.learning_rate_fraction

    def training_steps(self, cells: Sequence[Cell]) -> int:
        return min(finetuning(cell, self).steps for cell in cells)

    def protocol(self, cells: Sequence[Cell]) -> str:
        steps = {finetuning(cell, self).steps for cell in cells}
        span = " to ".join(f"{count:,}" for count in sorted({min(steps), max(steps)}))
        if self.fixed_rate is not None:
            rate = f"a peak rate of {self.fixed_rate:g}, weight decay {self.weight_decay:g}"
        elif self.relative_to == "size":
            rate = f"{self.learning_rate_fraction:g} of the rule's for the size, weight decay {self.weight_decay:g}"
        else:
            rate = (
                f"{self.learning_rate_fraction:g} of each cell's own, and each cell's own weight decay: what differs after "
                "it is in part the rate"
            )
        return (
            f"{span} steps of {self.batch_size} sequences, at {rate}; losses over at most {self.sequences:,} sequences"
        )

    def epochs_said(self, text: TokenizedCorpus, sequence_length: int) -> list[str]:
        """That it reads the text it is trained on several times, where it does."""
        epochs = text.sequences(f"{self.subject_shards}/train", sequence_length).epochs(self.tokens // sequence_length)
        if epochs <= 1:
            return []
        return [f"{self.label} reads its text {epochs:.1f} times: more text would end that, or fewer tokens"]

    def check_cells(self, cells: Iterable[Cell]) -> None:
        longest = max(cell.sequence_length for cell in cells)
        if self.batch_size * longest <= self.tokens < 2 * self.batch_size * longest:
            raise ValueError(
                f"tokens {self.tokens} is one step of batch_size {self.batch_size} x sequence_length {longest}, the last, "
                f"at which the rate is zero: give {2 * self.batch_size * longest} at least"
            )
        if self.tokens < self.batch_size * longest:
            raise ValueError(
                f"tokens {self.tokens} is less than one step of batch_size {self.batch_size} x sequence_length {longest} = "
                f"{self.batch_size * longest}"
            )


class Settings(FineTuning):
    task: Literal["finetune_python", "finetune_math"]

    @property
    def subject_name(self) -> str:
        return self.task.removeprefix("finetune_")

    @property
    def subject_shards(self) -> str:
        return self.task

    @property
    def corpus_role(self) -> str:
        return self.task

    @property
    def shards(self) -> tuple[str, ...]:
        return f"{self.task}/train", f"{self.task}/test", in_distribution.SHARD

    @property
    def sampled_shards(self) -> tuple[str, ...]:
        return self.shards[1:]

    def shortfalls(self, corpus: TokenizedCorpus, sequence_length: int) -> list[str]:
        return [*super().shortfalls(corpus, sequence_length), *self.epochs_said(corpus, sequence_length)]


def finetuning(cell: Cell, settings: FineTuning, parameters: int | None = None) -> Cell:
    """The fine-tuning as a cell of its own; `parameters` are those of a published model, for which the cell stands in."""
    changes = {
        "tokens": settings.tokens,
        "batch_size": settings.batch_size,
        "learning_rate": settings.peak_rate(cell, parameters or cell.shape.parameters),
        "weight_decay": cell.weight_decay if settings.relative_to == "cell" else settings.weight_decay,
        "learning_rate_factor": 1.0,
        "final_learning_rate_fraction": 0.0,
        "schedule": "cosine",
        "decay_fraction": None,
        "warmup_fraction": 0.1,
        **({} if settings.relative_to == "cell" else {"optimizer": "adamw", "weight_decay_on": "all"}),
        "z_loss": 0.0,
        # What held the rank of the base model where it is.
        "effective_rank_target": None,
        "effective_rank_penalty": 0.0,
        "spectral_norm_cap": None,
    }
    return Cell.model_validate(cell.model_dump() | changes)


def evaluate(subject: Subject, settings: Settings) -> list[Metric]:
    """`finetune_<subject>_loss`, `forgetting_<subject>_loss`, the change of each, and the geometry of W after."""
    return measured(subject, settings, subject.corpus)


def measured(subject: Subject, settings: FineTuning, text: TokenizedCorpus) -> list[Metric]:
    """The same, on a text."""
    from raysweep.model.geometry import measure
    from raysweep.training.losses import mean_loss

    name = settings.subject_name
    held_out = text.sequences(f"{settings.subject_shards}/test", subject.cell.sequence_length)

    def loss() -> float:
        return mean_loss(subject.language_model, held_out, settings.sequences, subject.micro_batch_size)

    before, remembered = loss(), in_distribution.loss(subject, settings.sequences)
    _train(subject, settings, text)
    after, forgotten = loss(), in_distribution.loss(subject, settings.sequences)
    geometry = measure(subject.language_model.measured_unembedding)
    unit = "nats per token"
    return [
        Metric(f"finetune_{name}_loss_before", before, unit),
        Metric(f"finetune_{name}_loss", after, unit),
        Metric(f"finetune_{name}_loss_change", after - before, unit),
        Metric(f"forgetting_{name}_loss", forgotten, unit),
        Metric(f"forgetting_{name}_loss_change", forgotten - remembered, unit),
        *(Metric(f"finetune_{name}_{metric}_W", value, "") for metric, value in geometry.items()),
    ]


def _train(subject: Subject, settings: FineTuning, text: TokenizedCorpus) -> None:
    """Fine-tune the subject's model to the end, from the furthest checkpoint; the final one stays in the store."""
    from raysweep.training import checkpoint
    from raysweep.training.resume import train_to_end
    from raysweep.training.run import Run

    store, directory = subject.store, subject.directory
    # By their names each once: a published model may have one matrix under two.
    base = checkpoint.digest(dict(subject.language_model.olmo.named_parameters()))
    resumed = checkpoint.latest(store, directory)
    if resumed is not None and resumed[1].state.base not in ("", base):
        # The cell was trained again since, and where rounding differs to other weights.
        store.delete_directory(directory)
        resumed = None
    run = Run(
        finetuning(subject.cell, settings, subject.parameters),
        subject.corpus,
        text=text,
        shard=f"{settings.subject_shards}/train",
        model=subject.language_model,
        reports=(),
        device=subject.device,
        gpu_share=subject.gpu_share,
        checkpoint=resumed[1] if resumed else None,
    )
    run.state.base = base
    if not run.finished:
        train_to_end(run, store, directory, resumed[0] if resumed else None, keep=1, interval=CHECKPOINT_INTERVAL)
