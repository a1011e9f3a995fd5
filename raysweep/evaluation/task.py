"""The evaluation tasks, one module each, and what is the same for all: `run` gives a finished cell's rows of one task.

A task is a module with `Settings` (what a search space may set, under the task's name as `task`) and
`evaluate(subject, settings) -> list[Metric]`. To add one, write the module and enter it in `TASKS` and `Evaluation`.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field

from raysweep.evaluation import finetune, in_distribution, out_of_distribution, quantized, representation

if TYPE_CHECKING:
    import torch

    from raysweep.corpora.loader import TokenizedCorpus
    from raysweep.space.cell import Cell
    from raysweep.store import Store
    from raysweep.training.run import LanguageModel

TASKS: dict[str, ModuleType] = {
    "in_distribution": in_distribution,
    "out_of_distribution": out_of_distribution,
    "representation": representation,
    "quantized": quantized,
    "finetune_python": finetune,
    "finetune_math": finetune,
}


def _known(value: object) -> object:
    """A bare name stands for the task with its default settings."""
    settings = {"task": value} if isinstance(value, str) else value
    if isinstance(settings, dict):
        if "task" not in settings:
            raise ValueError(f"task is missing; allowed: {', '.join(TASKS)}")
        if settings["task"] not in list(TASKS):
            raise ValueError(f"{settings['task']!r} is no evaluation task; allowed: {', '.join(TASKS)}")
    return settings


Evaluation = Annotated[
    Annotated[
        in_distribution.Settings
        | out_of_distribution.Settings
        | representation.Settings
        | quantized.Settings
        | finetune.Settings,
        Field(discriminator="task"),
    ],
    BeforeValidator(_known),
]


@dataclass(frozen=True)
class Metric:
    """One number of one cell."""

    name: str
    value: float
    unit: str


@dataclass(frozen=True)
class Subject:
    """What a task evaluates: a trained cell. A task may change the model; every task gets one of its own."""

    cell: Cell
    language_model: LanguageModel
    corpus: TokenizedCorpus
    store: Store
    directory: str
    """Where in the store the task may keep checkpoints of its own."""
    gpu_share: float = 1.0
    """What of a GPU the task may use."""

    @property
    def micro_batch_size(self) -> int:
        """Sequences of the cell's length per forward pass."""
        from raysweep.training.run import fitting_micro_batch

        return fitting_micro_batch(self.cell, self.device, self.gpu_share)

    @property
    def device(self) -> torch.device:
        return self.language_model.unembedding.device


def run(
    cell: Cell, evaluation: Evaluation, weights: dict[str, torch.Tensor], corpus: TokenizedCorpus, store: Store,
    device: torch.device, gpu_share: float = 1.0,
) -> list[dict[str, Any]]:  # fmt: skip
    """The rows of one task for a cell with these final weights, under `raysweep.schemas.EVALUATIONS`."""
    from raysweep.model import olmo as model
    from raysweep.store.store import settings_text
    from raysweep.training.run import LanguageModel

    olmo = model.build(cell.shape, cell.sequence_length, cell.seed, device)
    olmo.load_state_dict(weights)
    settings = evaluation.model_dump()
    directory = store.evaluation_directory(cell.id, evaluation.task, settings)
    subject = Subject(cell, LanguageModel(olmo), corpus, store, directory, gpu_share)
    metrics = TASKS[evaluation.task].evaluate(subject, evaluation)
    return [
        {
            "cell": cell.id,
            "task": evaluation.task,
            "settings": settings_text(settings),
            "metric": metric.name,
            "value": metric.value,
            "unit": metric.unit,
        }
        for metric in metrics
    ]
