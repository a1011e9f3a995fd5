"""What every evaluation task is given, and what it returns.

A task of raysweep is a module with `Settings` (a `raysweep.space.evaluations.Evaluation`: what a search space may set) and
`evaluate(subject, settings) -> list[Metric]`. To add one, write the module and enter it in
`raysweep.space.evaluations.TASKS`. Its settings are read whenever a search space is, so that torch is imported inside the
functions that need it. A task of a user's own is a function: `raysweep.evaluation.own`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from raysweep.corpora.tokenized import TokenizedCorpus
    from raysweep.model.language_model import LanguageModel
    from raysweep.space.cell import Cell
    from raysweep.store import Store


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
    text: TokenizedCorpus | None = None
    """What the task reads beside the corpus, where its settings have an `on`, or questions."""
    parameters: int | None = None
    """N of a published model, for which the cell stands in; None: that of the cell."""

    @property
    def micro_batch_size(self) -> int:
        """Sequences of the cell's length per forward pass."""
        from raysweep.training.losses import fitting_micro_batch

        return fitting_micro_batch(self.cell, self.device, self.gpu_share)

    @property
    def device(self) -> torch.device:
        return self.language_model.device


def example_subject(text: TokenizedCorpus | None = None) -> Subject:
    """An untrained cell of width 8 on two percent of the installed text, for the tests of a task.

    The first call on a machine builds that text, in half a minute.

    Examples
    --------
    >>> subject = example_subject()                                    # doctest: +SKIP
    >>> subject.language_model.unembedding.shape                       # doctest: +SKIP
    torch.Size([512, 8])
    """
    from raysweep.corpora.build import open_corpus
    from raysweep.model.language_model import LanguageModel
    from raysweep.space.cell import Cell
    from raysweep.store import Store

    corpus = {"name": "installed", "tokenizer": "bpe", "vocabulary": 512, "fraction": 0.02, "decontaminate": None}
    cell = Cell.model_validate(
        {"size": {"width": 8}, "corpus": corpus, "tokens": 4096, "batch_size": 4, "sequence_length": 32}
    )
    return Subject(cell, LanguageModel.of(cell), open_corpus(cell.corpus), Store("unused"), "unused", text=text)
