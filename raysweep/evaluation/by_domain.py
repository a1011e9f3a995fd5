"""Losses by domain, and their means: what out_of_distribution, quantized and loss share.

A domain is a shard of a corpus, or of an evaluation's own text, under a prefix.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import SerializerFunctionWrapHandler, model_serializer

from raysweep.errors import UserError, allowed
from raysweep.space.evaluations import Evaluation

# torch is imported where it is used: a search space reads the settings.
if TYPE_CHECKING:
    from raysweep.corpora.tokenized import TokenizedCorpus
    from raysweep.evaluation.task import Subject

PREFIX = "out_of_distribution/"
"""Of the domains of a corpus."""


class Averaging(Evaluation):
    """Which domains count in a mean over them, and as what."""

    usual: ClassVar[dict[str, Any]] = {"average": "domains", "exclude": ()}
    """Settings that came later, and what was done before: results of those have none of the name."""

    average: Literal["domains", "collections"] = "domains"
    """What counts once: each domain, or each collection of domains, which is what their names have before a dot."""
    exclude: tuple[str, ...] = ()
    """Domains or collections that do not count, such as what is of the training distribution; they have their columns."""

    def counts(self, domain: str) -> bool:
        """Whether a domain counts."""
        return not {domain, collection(domain)} & set(self.exclude)

    @model_serializer(mode="wrap")
    def _as_first_written(self, serialized: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Results are found by their settings: those of the usual way have what they had when there was no other."""
        settings: dict[str, Any] = serialized(self)
        return {k: v for k, v in settings.items() if k not in self.usual or getattr(self, k) != self.usual[k]}

    def check_corpus(self, corpus: TokenizedCorpus, sequence_length: int) -> None:
        self.check_domains(corpus, PREFIX, sequence_length)

    def check_domains(self, corpus: TokenizedCorpus, prefix: str, sequence_length: int) -> None:
        """Raise `UserError` where the domains are not what the settings take them for."""
        names = [shard.removeprefix(prefix) for shard in present(corpus, prefix, sequence_length)]
        for name in self.exclude:
            if name not in (known := [*names, *map(collection, names)]):
                raise UserError(
                    f"{self.label} excludes {name}, of which {corpus.folder.name} has no sequence; "
                    f"{allowed(name, dict.fromkeys(known))}"
                )
        both = [name for name in names if name in {collection(other) for other in names if other != name}]
        if both and self.average == "collections":
            raise UserError(
                f"{self.label}: {both[0]} is a domain and a collection in {corpus.folder.name}: rename the domain"
            )
        if names and not any(map(self.counts, names)):
            raise UserError(f"{self.label} excludes every domain of {corpus.folder.name}: nothing is left to average")

    def domain_shortfalls(
        self, corpus: TokenizedCorpus, prefix: str, sequence_length: int, sequences: int
    ) -> list[str]:
        """What the domains have less of than `sequences` each, for people to know."""
        shards = [shard for shard in corpus.shards if shard.startswith(prefix)]
        read = present(corpus, prefix, sequence_length)
        short = [shard.removeprefix(prefix) for shard in shards if shard not in read]
        few = [shard for shard in read if len(corpus.sequences(shard, sequence_length)) < sequences]
        said = []
        if short:
            said.append(
                f"{self.label} leaves out {len(short)} of {len(shards)} domains, which have no sequence of "
                f"{sequence_length:,} tokens ({', '.join(short[:3])}{', ...' if len(short) > 3 else ''}): its mean is of "
                "the others, and not to be compared with that of cells of another length"
            )
        if few:
            said.append(
                f"{self.label} reads fewer than {sequences:,} sequences of {len(few)} of {len(read)} domains: they have no "
                f"more of {sequence_length:,} tokens"
            )
        return said


def present(corpus: TokenizedCorpus, prefix: str, length: int) -> list[str]:
    """The domains' shards that hold a sequence; of a published collection some may not."""
    shards = corpus.manifest["shards"].items()
    return [name for name, shard in sorted(shards) if name.startswith(prefix) and shard["tokens"] > length]


def losses(subject: Subject, corpus: TokenizedCorpus, prefix: str, sequences: int) -> dict[str, tuple[float, float]]:
    """Domain -> (mean cross-entropy in nats per token, bits per byte)."""
    from raysweep.training.losses import mean_loss

    by_domain = {}
    for shard in present(corpus, prefix, subject.cell.sequence_length):
        read = corpus.sequences(shard, subject.cell.sequence_length)
        loss = mean_loss(subject.language_model, read, sequences, subject.micro_batch_size)
        # What the loss was taken over.
        targets = read.read(read.sample(sequences))[:, 1:]
        content = int(corpus.token_bytes[targets].sum())
        by_domain[shard.removeprefix(prefix)] = loss, loss * targets.size / (math.log(2) * content)
    return by_domain


def mean(pairs: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """Loss and bits per byte averaged, each pair counting once."""
    losses, bits = zip(*pairs, strict=True)
    return sum(losses) / len(losses), sum(bits) / len(bits)


def collection(domain: str) -> str:
    """The collection of a domain: `dolma_100_programing_languages` of `dolma_100_programing_languages.02_c`."""
    return domain.partition(".")[0]


def averaged(by_domain: dict[str, tuple[float, float]], settings: Averaging) -> dict[str, tuple[float, float]]:
    """The mean over all that counts, named with nothing, and that of every collection, where those count, and domain."""
    groups: dict[str, list[str]] = {}
    for domain in by_domain:
        groups.setdefault(collection(domain) if settings.average == "collections" else domain, []).append(domain)
    means, counted = {}, []
    for group, members in groups.items():
        counting = [domain for domain in members if settings.counts(domain)]
        means[group] = mean(by_domain[domain] for domain in counting or members)
        if counting:
            counted.append(means[group])
    return {"": mean(counted)} | means | by_domain
