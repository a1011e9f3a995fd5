"""out_of_distribution: the loss on domains that training never saw, domain by domain."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from raysweep.errors import UserError
from raysweep.evaluation.task import Metric
from raysweep.space.evaluations import Evaluation
from raysweep.space.fields import Count

# torch is imported where it is used: a search space reads the settings.
if TYPE_CHECKING:
    from raysweep.corpora.tokenized import TokenizedCorpus
    from raysweep.evaluation.task import Subject

PREFIX = "out_of_distribution/"


class Settings(Evaluation):
    task: Literal["out_of_distribution"] = "out_of_distribution"
    sequences: Count = 512
    """Sequences of each domain, at the cell's length (`Sequences.sample`); all where there are fewer."""

    @property
    def corpus_role(self) -> str:
        return "out_of_distribution"

    def check_corpus(self, corpus: TokenizedCorpus, sequence_length: int) -> None:
        domains(corpus, sequence_length)

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


def present(corpus: TokenizedCorpus, length: int) -> list[str]:
    """The shards out of distribution that hold a sequence; of a published collection some may not."""
    shards = corpus.manifest["shards"].items()
    return [name for name, shard in sorted(shards) if name.startswith(PREFIX) and shard["tokens"] > length]


def domains(corpus: TokenizedCorpus, length: int) -> list[str]:
    """The same; raises `UserError` where there is none."""
    if not (shards := present(corpus, length)):
        raise UserError(
            f"the corpus {corpus.folder.name} has no out-of-distribution domain of more than {length} tokens: drop "
            "that evaluation"
        )
    return shards


def losses(subject: Subject, sequences: int) -> dict[str, tuple[float, float]]:
    """Domain -> (mean cross-entropy in nats per token, bits per byte)."""
    from raysweep.training.losses import mean_loss

    by_domain = {}
    for shard in domains(subject.corpus, subject.cell.sequence_length):
        read = subject.corpus.sequences(shard, subject.cell.sequence_length)
        loss = mean_loss(subject.language_model, read, sequences, subject.micro_batch_size)
        # What the loss was taken over.
        targets = read.read(read.sample(sequences))[:, 1:]
        content = int(subject.corpus.token_bytes[targets].sum())
        by_domain[shard.removeprefix(PREFIX)] = loss, loss * targets.size / (math.log(2) * content)
    return by_domain


def mean(by_domain: dict[str, tuple[float, float]]) -> tuple[float, float]:
    """Loss and bits per byte averaged over domains, each counting once."""
    losses, bits = zip(*by_domain.values(), strict=True)
    return sum(losses) / len(losses), sum(bits) / len(bits)


def evaluate(subject: Subject, settings: Settings) -> list[Metric]:
    """`out_of_distribution_loss` and `out_of_distribution_bits_per_byte`, and both for every domain."""
    by_domain = losses(subject, settings.sequences)
    named = {"": mean(by_domain)} | {f"_{domain}": pair for domain, pair in by_domain.items()}
    metrics = []
    for suffix, (loss, bits) in named.items():
        metrics.append(Metric(f"out_of_distribution_loss{suffix}", loss, "nats per token"))
        metrics.append(Metric(f"out_of_distribution_bits_per_byte{suffix}", bits, "bits per byte"))
    return metrics
