"""Settings at which numbers break down: a result that is marked as what it is, or a refusal when the sweep is planned."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tiny import TINY, make_cell

from raysweep.corpora.sequences import Sequences
from raysweep.corpora.tokenized import TokenizedCorpus
from raysweep.training.run import Run


class Text:
    """So many tokens of a vocabulary, in turn."""

    fingerprint = "text"

    def __init__(self, vocabulary: int, tokens: int) -> None:
        self.ids = np.arange(tokens) % vocabulary

    def sequences(self, shard: str, length: int) -> Sequences:
        return Sequences(self.ids, length)


def finished(run: Run) -> list[dict[str, Any]]:
    """Its rows; whatever they hold, the run must have come to an end that says what it is."""
    rows = [row for row in run.rows() if row is not None]
    assert run.finished
    last = rows[-1]
    finite = all(math.isfinite(last[name]) for name in ("train_loss", "validation_loss", "gradient_norm"))
    assert finite or run.state.diverged
    assert run.state.diverged or last["step"] == run.cell.steps
    return rows


def test_a_learning_rate_of_ten(corpus: TokenizedCorpus) -> None:
    """It ends worse than knowing nothing, or as diverged."""
    rows = finished(run := Run(make_cell(learning_rate=10.0), corpus))
    assert run.state.diverged or rows[-1]["validation_loss"] > math.log(512)


def test_weights_so_large_that_the_gradient_overflows(corpus: TokenizedCorpus) -> None:
    run = Run(make_cell(), corpus)
    with torch.no_grad():
        for parameter in run.parameters.values():
            parameter *= 1e18
    rows = finished(run)
    assert run.state.diverged
    assert len(rows) >= 1


@pytest.mark.parametrize(
    "changes", [{"size": {"width": 4, "depth": 1, "heads": 1}}, {"batch_size": 1}, {"sequence_length": 2}]
)
def test_as_small_as_it_goes(corpus: TokenizedCorpus, changes: dict[str, Any]) -> None:
    rows = finished(run := Run(make_cell(tokens=256, **changes), corpus))
    assert not run.state.diverged
    assert rows[-1]["validation_loss"] == pytest.approx(math.log(512), abs=0.5)


def test_a_vocabulary_of_two() -> None:
    """0 1 0 1 ...: the next token follows from the last, and is learnt. The corpora that ship have no such tokenizer."""
    cell = make_cell(learning_rate=0.03)
    shape = {"size": {"width": 8, "depth": 1, "heads": 1}, "corpus": TINY | {"vocabulary": 300}}
    cell = type(cell).model_validate(cell.model_dump() | shape)
    rows = finished(Run(cell, Text(2, 1000)))  # type: ignore[arg-type]
    assert rows[-1]["validation_loss"] < rows[0]["validation_loss"] - 1
    with pytest.raises(ValidationError, match="vocabulary"):
        make_cell(corpus=TINY | {"vocabulary": 2})


def test_a_batch_larger_than_the_corpus() -> None:
    """Ten sequences, batches of 64: six epochs and more in every step, each sequence as often as the others but for one."""
    run = Run(make_cell(batch_size=64, tokens=64 * 32 * 4), Text(50, 10 * 32 + 1))  # type: ignore[arg-type]
    seen = np.bincount(run.order.at(np.arange(4 * 64)), minlength=10)
    assert seen.sum() == 256
    assert seen.max() - seen.min() <= 1
    assert finished(run)[-1]["step"] == 4


@pytest.mark.parametrize(
    "changes",
    [
        {"sequence_length": 1},
        {"batch_size": 0},
        {"tokens": 0},
        {"learning_rate": math.inf},
        {"epsilon": 0},
        {"beta2": 1},
    ],
)
def test_what_cannot_train_is_refused_when_it_is_planned(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        make_cell(**changes)
