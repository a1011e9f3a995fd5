"""Which evaluation tasks there are, and the base of their settings.

A task is a module that has `Settings`, a subclass of `Evaluation`, and `evaluate(subject, settings) -> list[Metric]`. It
is named here and imported when a search space asks for it, so that nothing here depends on what evaluates.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

from raysweep.errors import allowed
from raysweep.space.fields import Strict
from raysweep.space.plugins import TASKS as TASK_PLUGINS
from raysweep.space.plugins import is_plugin
from raysweep.space.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from raysweep.space.cell import Cell

# Task -> its module.
TASKS = {
    "in_distribution": "raysweep.evaluation.in_distribution",
    "out_of_distribution": "raysweep.evaluation.out_of_distribution",
    "representation": "raysweep.evaluation.representation",
    "quantized": "raysweep.evaluation.quantized",
    "finetune_python": "raysweep.evaluation.finetune",
    "finetune_math": "raysweep.evaluation.finetune",
    "loss": "raysweep.evaluation.loss",
    "finetune": "raysweep.evaluation.finetune_text",
    "benchmarks": "raysweep.evaluation.benchmarks",
    "questions": "raysweep.evaluation.questions",
}

# Of tasks that a user has written.
OWN = "raysweep.evaluation.own"


class Evaluation(Strict):
    """What a search space may set of one task."""

    task: str

    @property
    def label(self) -> str:
        """What tables, folders and messages call it: the task, unless a search space may have several of it."""
        return self.task

    @property
    def identity(self) -> dict[str, Any]:
        """The settings, as results are found by them."""
        return self.model_dump()

    @property
    def code_version(self) -> str:
        """The version of a user's own code that computes it; empty where it is raysweep's."""
        return ""

    @property
    def text(self) -> Text | None:
        """What it reads beside the corpus of a cell."""
        return None

    @property
    def columns(self) -> tuple[str, ...]:
        """What the names of its results begin with, where a search space chooses them."""
        return ()

    @property
    def corpus_role(self) -> str | None:
        """The role whose documents the task needs beside those of pretraining, such as `out_of_distribution`."""
        return None

    def fits(self, cell: Cell) -> bool:
        """Whether the corpus of a cell has what the task needs; cells of others go without it."""
        sources = cell.corpus.sources()
        return self.corpus_role is None or not sources or self.corpus_role in sources

    @property
    def shards(self) -> tuple[str, ...]:
        """The shards of the corpus that must hold a sequence for it."""
        return ()

    @property
    def sampled_shards(self) -> tuple[str, ...]:
        """Those of them of which it reads `sequences`."""
        return self.shards

    def training_steps(self, cells: Sequence[Cell]) -> int:
        """The fewest steps that it trains a cell further; 0 where it does not."""
        return 0

    def protocol(self, cells: Sequence[Cell]) -> str:
        """What was done, for people who read the results: the settings."""
        return ", ".join(f"{name} {_shown(value)}" for name, value in self.model_dump().items() if name != "task")

    def check_here(self) -> None:
        """Raise `UserError` where this process cannot do it."""

    def evaluate(self, subject: Any) -> list[Any]:
        """The numbers (`raysweep.evaluation.task.Metric`) of one trained cell (`raysweep.evaluation.task.Subject`)."""
        metrics: list[Any] = task_module(self.task).evaluate(subject, self)
        return metrics

    def check_corpus(self, corpus: Any, sequence_length: int) -> None:
        """Raise `UserError` where a built corpus (`TokenizedCorpus`) lacks anything else that the task reads."""

    def shortfalls(self, corpus: Any, sequence_length: int) -> list[str]:
        """What a built corpus (`TokenizedCorpus`) has less of than these settings ask for, for people to know."""
        asked = getattr(self, "sequences", 0)
        held = {shard: len(corpus.sequences(shard, sequence_length)) for shard in self.sampled_shards}
        return [
            f"{self.task} reads {count:,} sequences of {shard} and not {asked:,}: there are no more of {sequence_length:,} "
            "tokens"
            for shard, count in held.items()
            if count < asked
        ]

    def check_text(self, text: Any, sequence_length: int) -> None:
        """Raise `UserError` where its text (`TokenizedCorpus`) lacks anything that the task reads."""

    def text_shortfalls(self, text: Any, sequence_length: int) -> list[str]:
        """What its text (`TokenizedCorpus`) has less of than these settings ask for, for people to know."""
        return []

    def check_cells(self, cells: Iterable[Cell]) -> None:
        """Raise `ValueError`, beginning with the name of the setting, where the settings do not fit these cells."""


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def task_module(task: str) -> ModuleType:
    """The module of a task."""
    return importlib.import_module(TASKS[task])


def evaluation(value: Any) -> Any:
    """The settings that a search space gives a task, as an `Evaluation`; a bare name stands for the task's defaults.

    Raises `ValueError` where there is no such task, and pydantic's `ValidationError` where a setting is wrong.
    """
    if isinstance(value, Evaluation):
        return value
    return settings_class(value).model_validate({"task": value} if isinstance(value, str) else value)


def settings_class(value: Any) -> type[Evaluation]:
    """The `Settings` of the task that a name, or a mapping with `task` in it, asks for."""
    if isinstance(value, dict) and "task" not in value:
        raise ValueError(f"task is missing; allowed: {', '.join(TASKS)}")
    task = value["task"] if isinstance(value, dict) else value
    if isinstance(task, str) and task not in TASKS and is_plugin(task, TASK_PLUGINS):
        own: type[Evaluation] = importlib.import_module(OWN).Settings
        return own
    if not isinstance(task, str) or task not in TASKS:
        raise ValueError(
            f"{task!r} is neither an evaluation task nor a package.module:function of your own; {allowed(task, TASKS)}"
        )
    settings: type[Evaluation] = task_module(task).Settings
    return settings
