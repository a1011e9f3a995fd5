"""The evaluation tasks, one module each, and what is the same for all: `run` gives a finished cell's rows of one task.

A task is a module with `Settings` (what a search space may set, under the task's name as `task`) and
`evaluate(language_model, cell, corpus, settings) -> list[Metric]`. To add one, write the module and enter it in `TASKS`
and in `Evaluation`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator

from raysweep.evaluate import in_distribution

if TYPE_CHECKING:
    import torch

    from raysweep.corpora.loader import TokenizedCorpus
    from raysweep.space import Cell

TASKS: dict[str, ModuleType] = {"in_distribution": in_distribution}


def _known(value: object) -> object:
    """A bare name stands for the task with its default settings."""
    settings = {"task": value} if isinstance(value, str) else value
    task = settings.get("task") if isinstance(settings, dict) else settings
    if isinstance(task, str) and task not in TASKS:
        raise ValueError(f"{task!r} is no evaluation task; allowed: {', '.join(TASKS)}")
    return settings


# With a second task this becomes the union of all Settings, told apart by `task`.
Evaluation = Annotated[in_distribution.Settings, BeforeValidator(_known)]


@dataclass(frozen=True)
class Metric:
    """One number of one cell."""

    name: str
    value: float
    unit: str


def run(
    cell: Cell, evaluation: Evaluation, weights: dict[str, torch.Tensor], corpus: TokenizedCorpus, device: torch.device
) -> list[dict[str, Any]]:
    """The rows of one task for a cell with these final weights, under `raysweep.store.EVALUATIONS`."""
    from raysweep import model
    from raysweep.train import LanguageModel

    olmo = model.build(cell.shape, cell.sequence_length, cell.seed, device)
    olmo.load_state_dict(weights)
    olmo.eval()
    settings = json.dumps(evaluation.model_dump(), sort_keys=True)
    metrics = TASKS[evaluation.task].evaluate(LanguageModel(olmo), cell, corpus, evaluation)
    return [
        {
            "cell": cell.id,
            "task": evaluation.task,
            "settings": settings,
            "metric": metric.name,
            "value": metric.value,
            "unit": metric.unit,
        }
        for metric in metrics
    ]
