"""representation: the geometry of H, the final states of the last tokens of held-out sequences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from raysweep.evaluation.in_distribution import SHARD
from raysweep.evaluation.task import Metric
from raysweep.space.evaluations import Evaluation
from raysweep.space.fields import Count

# torch is imported where it is used: a search space reads the settings.
if TYPE_CHECKING:
    import torch

    from raysweep.evaluation.task import Subject


class Settings(Evaluation):
    task: Literal["representation"] = "representation"
    sequences: Annotated[Count, Field(gt=1)] = 1024
    """Rows of H: sequences of the in-distribution test split (`Sequences.sample`); all where there are fewer. The effective
    rank of n rows is low by about d / 8n by the sampling alone, so take several times the width d."""

    @property
    def shards(self) -> tuple[str, ...]:
        return (SHARD,)


def last_states(subject: Subject, sequences: int) -> torch.Tensor:
    """H, (sequences, d): the state of the last input token of each sequence, after the final norm."""
    import numpy as np
    import torch

    shard = subject.corpus.sequences(SHARD, subject.cell.sequence_length)
    indices = shard.sample(sequences)
    states = []
    with torch.no_grad(), subject.language_model.autocast():
        for part in np.array_split(indices, -(-len(indices) // subject.micro_batch_size)):
            tokens = torch.from_numpy(shard.read(part)[:, :-1]).to(subject.device)
            states.append(subject.language_model.hidden(tokens)[:, -1].float())
    return torch.cat(states)


def evaluate(subject: Subject, settings: Settings) -> list[Metric]:
    """`effective_rank_H` and `cosine_H`."""
    from raysweep.model.geometry import effective_rank, mean_cosine

    states = last_states(subject, settings.sequences)
    return [
        Metric("effective_rank_H", effective_rank(states), "fraction of the width"),
        Metric("cosine_H", mean_cosine(states), ""),
    ]
