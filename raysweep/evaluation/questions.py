"""questions: accuracy on questions of one's own, such as pairs of sentences of which one is right (BLiMP)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field

from raysweep.corpora.questions import sets
from raysweep.evaluation import answers
from raysweep.evaluation.task import Metric
from raysweep.evaluation.with_text import WithText, without_weights
from raysweep.space.benchmarks import BENCHMARKS
from raysweep.space.corpus import Sources
from raysweep.space.fields import Count
from raysweep.space.text import Text

# torch is imported where it is used: a search space reads the settings.
if TYPE_CHECKING:
    from collections.abc import Sequence

    from raysweep.corpora.tokenized import TokenizedCorpus
    from raysweep.evaluation.task import Subject
    from raysweep.space.cell import Cell


class Settings(WithText):
    reserved = (*BENCHMARKS, "benchmarks")
    task: Literal["questions"] = "questions"
    on: Annotated[Sources, Field(min_length=1), AfterValidator(without_weights)]
    """Sources whose rows are questions (`raysweep.corpora.questions` says how); `domain` names the field of their set."""
    questions: Count | None = None
    """Questions of each set, from all over it; all by default."""

    @property
    def text(self) -> Text:
        return Text(name=self.label, role="questions", on=self.on)

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.name,)

    def protocol(self, cells: Sequence[Cell]) -> str:
        number = "all" if self.questions is None else f"{self.questions:,}"
        return f"{self._on()}, {number} questions of each set, zero-shot; the mean counts each set once"

    def check_text(self, text: TokenizedCorpus, sequence_length: int) -> None:
        answers.check(self.label, text, sets(text), sequence_length)

    def text_shortfalls(self, text: TokenizedCorpus, sequence_length: int) -> list[str]:
        return answers.shortfalls(self.label, text, sets(text), sequence_length, self.questions)


def evaluate(subject: Subject, settings: Settings) -> list[Metric]:
    """What `raysweep.evaluation.answers.measured` has, as `<name>_accuracy` and so on: the mean over sets.

    Where there are several sets, each as `<name>_accuracy_<set>`.
    """
    assert subject.text is not None
    of_sets = {name: answers.measured(subject, name, settings.questions) for name in sets(subject.text)}
    metrics = answers.metrics(answers.mean(list(of_sets.values())), settings.name)
    for name, values in of_sets.items() if len(of_sets) > 1 else ():
        metrics += answers.metrics(values, settings.name, f"_{name}")
    return metrics
