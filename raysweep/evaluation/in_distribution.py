"""in_distribution: the loss on held-out documents of the pretraining corpus."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from raysweep.evaluation.task import Metric
from raysweep.space.evaluations import Evaluation
from raysweep.space.fields import Count

# torch is imported where it is used: a search space reads the settings.
if TYPE_CHECKING:
    from raysweep.evaluation.task import Subject

SHARD = "pretraining/test"


class Settings(Evaluation):
    task: Literal["in_distribution"] = "in_distribution"
    sequences: Count = 512
    """Sequences of the corpus's test split, at the cell's length (`Sequences.sample`); all where there are fewer."""

    @property
    def shards(self) -> tuple[str, ...]:
        return (SHARD,)


def loss(subject: Subject, sequences: int) -> float:
    """Mean next-token cross-entropy over the first `sequences`, in nats per token."""
    from raysweep.training.losses import mean_loss

    shard = subject.corpus.sequences(SHARD, subject.cell.sequence_length)
    return mean_loss(subject.language_model, shard, sequences, subject.micro_batch_size)


def evaluate(subject: Subject, settings: Settings) -> list[Metric]:
    """`in_distribution_loss`."""
    return [Metric("in_distribution_loss", loss(subject, settings.sequences), "nats per token")]
