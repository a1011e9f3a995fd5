"""out_of_distribution: the loss on domains that training never saw, domain by domain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from raysweep.evaluation.by_domain import PREFIX, Averaging, averaged, domains, losses, present
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
        domains(corpus, sequence_length)
        super().check_corpus(corpus, sequence_length)

    def shortfalls(self, corpus: TokenizedCorpus, sequence_length: int) -> list[str]:
        shards = [shard for shard in corpus.shards if shard.startswith(PREFIX)]
        read = present(corpus, sequence_length)
        short = [shard.removeprefix(PREFIX) for shard in shards if shard not in read]
        few = [shard for shard in read if len(corpus.sequences(shard, sequence_length)) < self.sequences]
        said = []
        if short:
            said.append(
                f"out_of_distribution leaves out {len(short)} of {len(shards)} domains, which have no sequence of "
                f"{sequence_length:,} tokens ({', '.join(short[:3])}{', ...' if len(short) > 3 else ''}): its mean is of "
                "the others, and not to be compared with that of cells of another length"
            )
        if few:
            said.append(
                f"out_of_distribution asks for {self.sequences:,} sequences of a domain, and {len(few)} of {len(read)} "
                f"domains have fewer of {sequence_length:,} tokens"
            )
        return said


def evaluate(subject: Subject, settings: Settings) -> list[Metric]:
    """`out_of_distribution_loss` and `out_of_distribution_bits_per_byte`, and both for every domain and collection."""
    metrics = []
    for name, (loss, bits) in averaged(losses(subject, settings.sequences), settings).items():
        suffix = f"_{name}" if name else ""
        metrics.append(Metric(f"out_of_distribution_loss{suffix}", loss, "nats per token"))
        metrics.append(Metric(f"out_of_distribution_bits_per_byte{suffix}", bits, "bits per byte"))
    return metrics
