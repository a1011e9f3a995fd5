"""One evaluation of one trained cell: from its weights to rows."""

from __future__ import annotations

from typing import Any

import torch

from raysweep.corpora.tokenized import TokenizedCorpus
from raysweep.evaluation.task import Metric, Subject
from raysweep.model import olmo
from raysweep.model.language_model import LanguageModel
from raysweep.space.cell import Cell
from raysweep.space.evaluations import Evaluation, task_module
from raysweep.store import Store
from raysweep.store.store import settings_text


def run(
    cell: Cell, evaluation: Evaluation, weights: dict[str, torch.Tensor], corpus: TokenizedCorpus, store: Store,
    device: torch.device, gpu_share: float = 1.0,
) -> list[dict[str, Any]]:  # fmt: skip
    """The rows of one task for a cell with these final weights, under `raysweep.store.schemas.EVALUATIONS`."""
    model = olmo.build(cell.shape, cell.sequence_length, cell.seed, device)
    model.load_state_dict(weights)
    settings = evaluation.model_dump()
    directory = store.evaluation_directory(cell.id, evaluation.task, settings)
    subject = Subject(cell, LanguageModel(model), corpus, store, directory, gpu_share)
    metrics: list[Metric] = task_module(evaluation.task).evaluate(subject, evaluation)
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
