"""questions: accuracy on questions of one's own, such as pairs of sentences of which one is right (BLiMP)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from raysweep.corpora.questions import sets
from raysweep.evaluation import answers
from raysweep.evaluation.task import Metric
from raysweep.evaluation.with_text import Unweighted, WithText
from raysweep.space.benchmarks import BENCHMARKS
from raysweep.space.text import Text

# torch is imported where it is used: a search space reads the settings.
if TYPE_CHECKING:
    from collections.abc import Sequence

    from raysweep.evaluation.task import Subject
    from raysweep.space.cell import Cell


class Settings(WithText, answers.Asking):
    reserved = (*BENCHMARKS, "benchmarks")
    task: Literal["questions"] = "questions"
    on: Unweighted
    """Sources whose rows are questions (`raysweep.corpora.questions` says how); `domain` names the field of their set."""

    @property
    def text(self) -> Text:
        return Text(name=self.label, role="questions", on=self.on)

    def protocol(self, cells: Sequence[Cell]) -> str:
        return f"{self._on()}, {self._number()} questions of each set, zero-shot; the mean counts each set once"


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
