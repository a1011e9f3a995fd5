"""A task of the user's own: a function of a trained cell, by its name.

    from raysweep.evaluation.task import Metric

    def agreement(subject, sequences=64):
        return [Metric("accuracy", 0.5, "share of sentences")]

`subject` is a `raysweep.evaluation.task.Subject`. The other arguments are the task's settings, which a search space gives
beside `task`. What is returned becomes columns that begin with the function's name, or with `name`:
`agreement_accuracy`. docs/own-study.md has a whole study.
"""

from __future__ import annotations

import inspect
import json
import math
import socket
from collections.abc import Iterator
from numbers import Real
from typing import TYPE_CHECKING, Any

from pydantic import model_validator

from raysweep.errors import UserError, allowed, first_line
from raysweep.evaluation.task import Metric
from raysweep.evaluation.with_text import Name
from raysweep.space.evaluations import TASKS as BUILT_IN
from raysweep.space.evaluations import Evaluation
from raysweep.space.fields import Positive
from raysweep.space.plugins import TASKS, TooLong, line_of, load_function, place, version, within
from raysweep.store.schemas import CELLS

# torch is imported where it is used: a search space reads the settings.
if TYPE_CHECKING:
    from collections.abc import Sequence

    from raysweep.evaluation.task import Subject
    from raysweep.space.cell import Cell

# Of whose losses there are columns.
TRAINING = ("train", "validation")

# The settings that every task of the user's own has.
_FOR_ALL = ("task", "name", "time_limit")


class Settings(Evaluation):
    task: str
    """`package.module:function`, or an entry point of `raysweep.tasks`."""
    name: Name
    """What its columns and tables are called; by default as the function is."""
    time_limit: Positive = 3600.0
    """Seconds after which it has failed for a cell."""
    arguments: dict[str, Any]
    """The settings of its own, those that were left out too."""
    version: str
    """Of the function's package: other code makes other rows."""

    @model_validator(mode="before")
    @classmethod
    def _of_function(cls, values: Any) -> Any:
        # What was checked before has both; a search space gives neither.
        if not isinstance(values, dict) or {"arguments", "version"} <= values.keys():
            return values
        task = values["task"]
        function = load_function(task, TASKS)
        given = {name: value for name, value in values.items() if name not in _FOR_ALL}
        name = values.get("name", task.rpartition(":")[2].rpartition(".")[2])
        if name in BUILT_IN or name in TRAINING:
            raise ValueError(f"{name}: raysweep has columns of that name: give this task another by name: ...")
        return {
            **{key: values[key] for key in ("task", "time_limit") if key in values},
            "name": name,
            "arguments": _arguments(task, function, given),
            "version": version(task, TASKS),
        }

    @property
    def label(self) -> str:
        return self.name

    @property
    def code_version(self) -> str:
        return self.version

    @property
    def identity(self) -> dict[str, Any]:
        return {key: value for key, value in super().identity.items() if key != "time_limit"}

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.name,)

    def protocol(self, cells: Sequence[Cell]) -> str:
        settings = "".join(f", {name} {value}" for name, value in self.arguments.items())
        return f"{self.task}, version {self.version}{settings}"

    def check_here(self) -> None:
        try:
            load_function(self.task, TASKS)
            here = version(self.task, TASKS)
        except ValueError as error:
            raise UserError(f"{socket.gethostname()}: {error}") from None
        if here != self.version:
            raise UserError(
                f"{self.task} is version {here} on {socket.gethostname()}, and {self.version} where the sweep was started: "
                "install one version everywhere"
            )

    def evaluate(self, subject: Subject) -> list[Metric]:
        """What the function returns, under the columns' names. Raises `UserError` where that is no list of numbers."""
        self.check_here()
        function = load_function(self.task, TASKS)
        try:
            returned = within(self.time_limit, lambda: _listed(self.task, function(subject, **self.arguments)))
        except UserError:
            raise
        except TooLong:
            raise UserError(f"{self.task} took longer than its time_limit, {self.time_limit:g} s") from None
        except BaseException as error:  # A user's `sys.exit()`, too.
            raise UserError(f"{self.task}: {place(error)}{type(error).__name__}: {first_line(error)}") from None
        metrics = [self._checked(metric) for metric in returned]
        names = [metric.name for metric in metrics]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UserError(f"{self.task} returned two numbers for the column {twice}")
        if taken := next((name for name in names if name in CELLS.names), None):
            raise UserError(f"{self.task} returned a number for {taken}, a column of training: give it another name")
        return metrics

    def _checked(self, metric: Any) -> Metric:
        if not isinstance(metric, Metric) or not isinstance(metric.name, str) or not isinstance(metric.unit, str):
            raise UserError(f"{self.task} returned {metric!r:.80}: Metric(name, value, unit) is asked for")
        value = metric.value.item() if hasattr(metric.value, "item") else metric.value
        if isinstance(value, bool) or not isinstance(value, Real):
            raise UserError(f"{self.task} returned {value!r:.80} as {metric.name}: a number is asked for")
        if not math.isfinite(value):
            raise UserError(f"{self.task} returned {value} as {metric.name}: leave out what is not defined")
        return Metric(f"{self.name}_{metric.name}", float(value), metric.unit)


def _listed(task: str, returned: Any) -> list[Any]:
    """What a task returned, or yields, as a list."""
    if not isinstance(returned, list | tuple | Iterator):
        raise UserError(f"{task} returned {type(returned).__name__}: a list of Metric(name, value, unit) is asked for")
    if not (metrics := list(returned)):
        raise UserError(f"{task} returned no number")
    return metrics


def _arguments(task: str, function: Any, given: dict[str, Any]) -> dict[str, Any]:
    """The settings of a function: those given, and the defaults of the others. Raises `ValueError`."""
    parameters = list(inspect.signature(function).parameters.values())[1:]
    settings = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    where = f"{inspect.getsourcefile(function) or task}:{line_of(function)}"
    for name in given:
        if name not in (names := [p.name for p in settings]):
            raise ValueError(f"{task} ({where}) has no setting {name}; {allowed(name, [*names, *_FOR_ALL])}")
    arguments = {p.name: given.get(p.name, p.default) for p in settings}
    for name, value in arguments.items():
        if value is inspect.Parameter.empty:
            raise ValueError(f"{task} ({where}) needs the setting {name}")
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            raise ValueError(f"{task} ({where}): the setting {name} is {value!r:.60}, which no file can hold") from None
    return arguments
