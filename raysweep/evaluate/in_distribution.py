"""in_distribution: the loss on held-out documents of the pretraining corpus."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from raysweep.corpora.loader import TokenizedCorpus
    from raysweep.evaluate import Metric
    from raysweep.space import Cell
    from raysweep.train import LanguageModel


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    task: Literal["in_distribution"] = "in_distribution"
    sequences: Annotated[int, Field(strict=True, gt=0)] = 512
    """Sequences of the corpus's test split, at the cell's length, from its start; all of them where there are fewer."""


def evaluate(language_model: LanguageModel, cell: Cell, corpus: TokenizedCorpus, settings: Settings) -> list[Metric]:
    """`in_distribution_loss`: mean next-token cross-entropy."""
    from raysweep.evaluate import Metric
    from raysweep.train import fitting_micro_batch, mean_loss

    sequences = corpus.sequences("pretraining/test", cell.sequence_length)
    micro_batch_size = fitting_micro_batch(cell, language_model.unembedding.device)
    loss = mean_loss(language_model, sequences, settings.sequences, micro_batch_size)
    return [Metric("in_distribution_loss", loss, "nats per token")]
