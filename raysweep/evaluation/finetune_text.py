"""finetune: what finetune_python and finetune_math do, on documents of one's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from raysweep.evaluation import finetune, in_distribution
from raysweep.evaluation.task import Metric
from raysweep.evaluation.with_text import WithText, known
from raysweep.space.corpus import Sources
from raysweep.space.fields import Positive
from raysweep.space.text import Text

# torch is imported where it is used: a search space reads the settings.
if TYPE_CHECKING:
    from collections.abc import Sequence

    from raysweep.corpora.tokenized import TokenizedCorpus
    from raysweep.evaluation.task import Subject
    from raysweep.space.cell import Cell

SHARDS = "finetune"


class Settings(WithText, finetune.FineTuning):
    reserved = ("python", "math")
    task: Literal["finetune"] = "finetune"
    on: Annotated[Sources, Field(min_length=1)]
    """Sources, as a corpus has them; a tenth of the documents, chosen by their hash, is held out."""
    learning_rate: Positive | None = None
    """Peak learning rate, the same for every cell; by default `learning_rate_fraction` of what `relative_to` says."""

    @model_validator(mode="after")
    def _one_rate(self) -> Settings:
        given = {"learning_rate_fraction", "relative_to"} & self.model_fields_set
        if self.learning_rate is not None and given:
            raise ValueError(f"learning_rate sets the rate outright: leave {' and '.join(sorted(given))} out")
        return self

    @property
    def text(self) -> Text:
        return Text(name=self.label, role="finetune", on=self.on)

    @property
    def columns(self) -> tuple[str, ...]:
        return (f"finetune_{self.name}",)

    @property
    def subject_name(self) -> str:
        return self.name

    @property
    def subject_shards(self) -> str:
        return SHARDS

    @property
    def fixed_rate(self) -> float | None:
        return self.learning_rate

    @property
    def shards(self) -> tuple[str, ...]:
        return (in_distribution.SHARD,)

    def protocol(self, cells: Sequence[Cell]) -> str:
        return f"on {self._on()}: {super().protocol(cells)}"

    def check_text(self, text: TokenizedCorpus, sequence_length: int) -> None:
        for part in ("train", "test"):
            text.sequences(f"{SHARDS}/{part}", sequence_length)

    def text_shortfalls(self, text: TokenizedCorpus, sequence_length: int) -> list[str]:
        seen = text.manifest["seen"]
        said = known(self.label, {} if seen is None else {"held out": seen[f"{SHARDS}/test"]})
        said += self.epochs_said(text, sequence_length)
        held = len(text.sequences(f"{SHARDS}/test", sequence_length))
        if held < self.sequences:
            said.append(
                f"{self.label} reads {held:,} held-out sequences and not {self.sequences:,}: there are no more of "
                f"{sequence_length:,} tokens"
            )
        return said


def evaluate(subject: Subject, settings: Settings) -> list[Metric]:
    """What `finetune.evaluate` has, under `finetune_<name>_...`, and how much of the held-out text pretraining had.

    `finetune_<name>_overlap` is the share of held-out tokens that stand in a run of 13 that is in the training split of the
    corpus; of the first 20 million tokens.
    """
    assert subject.text is not None
    metrics = finetune.measured(subject, settings, subject.text)
    seen = subject.text.manifest["seen"]
    if seen is None:  # Of a model that others have trained nobody knows.
        return metrics
    return [*metrics, Metric(f"finetune_{settings.name}_overlap", seen[f"{SHARDS}/test"], "share of tokens")]
