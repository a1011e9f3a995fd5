"""loss: the loss on documents of one's own, by domain, and how much of them the training text has too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from raysweep.errors import UserError
from raysweep.evaluation.by_domain import Averaging, averaged, losses, present
from raysweep.evaluation.task import Metric
from raysweep.evaluation.with_text import Unweighted, WithText, known
from raysweep.space.fields import Count
from raysweep.space.text import Text

# torch is imported where it is used: a search space reads the settings.
if TYPE_CHECKING:
    from collections.abc import Sequence

    from raysweep.corpora.tokenized import TokenizedCorpus
    from raysweep.evaluation.task import Subject
    from raysweep.space.cell import Cell

PREFIX = "evaluation/"


class Settings(WithText, Averaging):
    reserved = ("train", "validation", "in_distribution", "out_of_distribution")
    task: Literal["loss"] = "loss"
    on: Unweighted
    """Sources, as a corpus has them. `domain` of a source says which field has the domain; by default it is one domain."""
    sequences: Count = 512
    """Sequences of each domain, at the cell's length (`Sequences.sample`); all where there are fewer."""

    @property
    def text(self) -> Text:
        return Text(name=self.label, role="evaluation", on=self.on)

    def protocol(self, cells: Sequence[Cell]) -> str:
        excluded = f", without {', '.join(self.exclude)}" if self.exclude else ""
        return (
            f"on {self._on()}: at most {self.sequences:,} sequences of each domain, mean over {self.average}{excluded}"
        )

    def check_text(self, text: TokenizedCorpus, sequence_length: int) -> None:
        if not present(text, PREFIX, sequence_length):
            raise UserError(
                f"{self.label}: {self._on()} has no domain of more than {sequence_length} tokens: give it more text, or "
                "drop that evaluation"
            )
        self.check_domains(text, PREFIX, sequence_length)

    def text_shortfalls(self, text: TokenizedCorpus, sequence_length: int) -> list[str]:
        shares = {shard.removeprefix(PREFIX): share for shard, share in (text.manifest["seen"] or {}).items()}
        short = self.domain_shortfalls(text, PREFIX, sequence_length, self.sequences)
        return [*short, *known(self.label, shares)]


def evaluate(subject: Subject, settings: Settings) -> list[Metric]:
    """`<name>_loss` and `<name>_bits_per_byte`, and how much of the text the training text has too, as `<name>_overlap`.

    All three also for every domain and collection, as `<name>_loss_<domain>`. The overlap is the share of tokens that stand
    in a run of 13 that is in the training split of the corpus; of each domain the first 20 million tokens are looked for.
    """
    assert subject.text is not None
    by_domain = losses(subject, subject.text, PREFIX, settings.sequences)
    shares = subject.text.manifest["seen"]
    # Of a model that others have trained nobody knows.
    seen = {domain: shares[f"{PREFIX}{domain}"] for domain in by_domain} if shares is not None else {}
    overlaps = averaged({domain: (share, share) for domain, share in seen.items()}, settings) if seen else {}
    metrics = []
    for name, (loss, bits) in averaged(by_domain, settings).items():
        suffix = f"_{name}" if name else ""
        metrics += [
            Metric(f"{settings.name}_loss{suffix}", loss, "nats per token"),
            Metric(f"{settings.name}_bits_per_byte{suffix}", bits, "bits per byte"),
        ]
        if name in overlaps:
            metrics.append(Metric(f"{settings.name}_overlap{suffix}", overlaps[name][0], "share of tokens"))
    return metrics
