"""benchmarks: zero-shot accuracy on published questions, and the bits per byte of their right answers.

Accuracy of small models stays near chance for long; the bits per byte of the right answers move from the first steps on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field

from raysweep.errors import allowed
from raysweep.evaluation import answers
from raysweep.evaluation.task import Metric
from raysweep.space.benchmarks import BENCHMARKS
from raysweep.space.fields import unique
from raysweep.space.text import Text

# torch is imported where it is used: a search space reads the settings.
if TYPE_CHECKING:
    from collections.abc import Sequence

    from raysweep.corpora.tokenized import TokenizedCorpus
    from raysweep.evaluation.task import Subject
    from raysweep.space.cell import Cell


def _known(name: str) -> str:
    if name not in BENCHMARKS:
        raise ValueError(f"unknown benchmark; {allowed(name, BENCHMARKS)}")
    return name


class Settings(answers.Asking):
    task: Literal["benchmarks"] = "benchmarks"
    of: Annotated[tuple[Annotated[str, AfterValidator(_known)], ...], Field(min_length=1), AfterValidator(unique)] = (
        tuple(BENCHMARKS)
    )
    """Which of `raysweep.space.benchmarks.BENCHMARKS`; all by default."""

    @property
    def text(self) -> Text:
        return Text(name=self.label, role="questions", questions=self.of)

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.of, self.task)

    def protocol(self, cells: Sequence[Cell]) -> str:
        return f"{', '.join(self.of)}, {self._number()} questions of each, zero-shot"

    def sets(self, text: TokenizedCorpus) -> list[str]:
        return list(self.of)


def evaluate(subject: Subject, settings: Settings) -> list[Metric]:
    """What `raysweep.evaluation.answers.measured` has, as `<benchmark>_accuracy` and so on; the mean as `benchmarks_...`."""
    of_sets = {name: answers.measured(subject, name, settings.questions) for name in settings.of}
    metrics = [metric for name, values in of_sets.items() for metric in answers.metrics(values, name)]
    return metrics + answers.metrics(answers.mean(list(of_sets.values())), settings.task)
