"""One evaluation of one trained cell: from its weights to rows."""

from __future__ import annotations

from typing import Any

import torch

from raysweep.corpora.tokenized import TokenizedCorpus
from raysweep.evaluation.task import Metric, Subject
from raysweep.model.language_model import LanguageModel
from raysweep.space.cell import Cell
from raysweep.space.evaluations import Evaluation
from raysweep.store import Store
from raysweep.store.store import settings_text


def run(
    cell: Cell, evaluation: Evaluation, weights: dict[str, torch.Tensor], corpus: TokenizedCorpus, store: Store,
    device: torch.device, gpu_share: float = 1.0, text: TokenizedCorpus | None = None,
) -> tuple[list[dict[str, Any]], dict[str, str]]:  # fmt: skip
    """The rows of one task for a cell with these final weights, under `schemas.EVALUATIONS`, and what computed them."""
    model = LanguageModel.of(cell, device, weights)
    directory = store.evaluation_directory(cell.id, evaluation.label, evaluation.identity)
    by = model.computed_by()
    return rows(cell.id, evaluation, Subject(cell, model, corpus, store, directory, gpu_share, text)), by


def rows(name: str, evaluation: Evaluation, subject: Subject) -> list[dict[str, Any]]:
    """The rows of one task for what tables call by that name."""
    settings = evaluation.identity
    metrics: list[Metric] = evaluation.evaluate(subject)
    return [
        {
            "cell": name,
            "task": evaluation.label,
            "settings": settings_text(settings),
            "metric": metric.name,
            "value": metric.value,
            "unit": metric.unit,
        }
        for metric in metrics
    ]
