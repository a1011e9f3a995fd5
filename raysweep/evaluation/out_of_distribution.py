"""out_of_distribution: the loss on domains that training never saw, domain by domain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from raysweep.errors import UserError
from raysweep.evaluation.by_domain import PREFIX, Averaging, averaged, losses, present
from raysweep.evaluation.task import Metric
from raysweep.space.fields import Count

# torch is imported where it is used: a search space reads the settings.
if TYPE_CHECKING:
    from raysweep.corpora.tokenized import TokenizedCorpus
    from raysweep.evaluation.task import Subject


class Settings(Averaging):
    task: Literal["out_of_distribution"] = "out_of_distribution"
    sequences: Count = 512
    """Sequences of each domain, at the cell's length (`Sequences.sample`); all where there are fewer."""

    @property
    def corpus_role(self) -> str:
        return "out_of_distribution"

    def check_corpus(self, corpus: TokenizedCorpus, sequence_length: int) -> None:
        if not present(corpus, PREFIX, sequence_length):
            raise UserError(
                f"the corpus {corpus.folder.name} has no out-of-distribution domain of more than {sequence_length} tokens: "
                "drop that evaluation"
            )
        super().check_corpus(corpus, sequence_length)

    def shortfalls(self, corpus: TokenizedCorpus, sequence_length: int) -> list[str]:
        return self.domain_shortfalls(corpus, PREFIX, sequence_length, self.sequences)


def evaluate(subject: Subject, settings: Settings) -> list[Metric]:
    """`out_of_distribution_loss` and `out_of_distribution_bits_per_byte`, and both for every domain and collection."""
    by_domain = losses(subject, subject.corpus, PREFIX, settings.sequences)
    metrics = []
    for name, (loss, bits) in averaged(by_domain, settings).items():
        suffix = f"_{name}" if name else ""
        metrics.append(Metric(f"out_of_distribution_loss{suffix}", loss, "nats per token"))
        metrics.append(Metric(f"out_of_distribution_bits_per_byte{suffix}", bits, "bits per byte"))
    return metrics
