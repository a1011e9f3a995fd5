"""What is measured of a model at a step of its training: the matrices and metrics that a search space asks for.

It is a function of the weights, the corpus and the step: from a checkpoint `raysweep measure` gives the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch

from raysweep.corpora.sequences import Sequences
from raysweep.corpora.token_counts import token_counts
from raysweep.corpora.tokenized import TokenizedCorpus
from raysweep.model import matrices, metrics
from raysweep.model.language_model import LanguageModel
from raysweep.model.metrics import Matrix
from raysweep.space.cell import Cell
from raysweep.space.measure import END, GRADIENTS, HIDDEN, UNEMBEDDING, Wanted, check_sequences
from raysweep.space.metrics import OF_ONE
from raysweep.store.measures import FAILED
from raysweep.training.checkpoint import spectrum_key
from raysweep.training.own_metrics import UNDEFINED, own_metric

TEST, TRAIN = "pretraining/test", "pretraining/train"


class Measures:
    """Measures a cell's model at its steps."""

    def __init__(
        self, cell: Cell, corpus: TokenizedCorpus | None, wanted: list[Wanted], micro_batch_size: int,
        end: LanguageModel | None = None,
    ) -> None:  # fmt: skip
        """`end` is the model at the end of training; without it nothing is held against it but at the end."""
        self.cell, self._corpus = cell, corpus
        self.wanted, self.micro_batch_size = wanted, micro_batch_size
        self._end = end
        self.failures: dict[str, str] = {}
        """The first failure of each of the user's own metrics."""

    @property
    def corpus(self) -> TokenizedCorpus:
        """The text, which is there where something `needs_text`."""
        assert self._corpus is not None
        return self._corpus

    def at(
        self, step: int, language_model: LanguageModel, unembedding: Matrix
    ) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
        """What is due after `step` steps: rows of `schemas.MEASURES` without the cell, singular values by `spectrum_key`.

        `unembedding` is the model's, of which something may have been computed.
        """
        due = [one for one in self.wanted if step in one.spectrum]
        moment = _Moment(self, step, language_model, unembedding)
        rows, spectra = [], {}
        for one in due:
            matrix = moment.matrix(one)
            spectra[spectrum_key(step, one.label, one.settings)] = matrix.spectrum.cpu()
            for (name, other), steps in one.metrics.items():
                if step in steps and self._is_known(other, step):
                    value, reason = self._value(name, matrix, moment, one, other)
                    if reason.startswith(FAILED):
                        self.failures.setdefault(name, f"{name} of {one.label}, step {step}: {reason}")
                    rows.append(
                        {
                            "step": step,
                            "matrix": one.label,
                            "metric": one.name_of(name, other),
                            "value": value,
                            "unit": OF_ONE.get(name, ""),
                            "settings": one.settings_of(name),
                            "reason": reason,
                        }
                    )
            moment.drop(one)
        return rows, spectra

    def _is_known(self, other: str, step: int) -> bool:
        """Whether there is what a matrix is held against."""
        return other != END or self._end is not None or step == self.cell.steps

    @cached_property
    def _at_the_end(self) -> _Moment:
        assert self._end is not None
        return _Moment(self, self.cell.steps, self._end, Matrix(self._end.measured_unembedding))

    def _value(self, name: str, matrix: Matrix, moment: _Moment, one: Wanted, other: str) -> tuple[float, str]:
        """A metric's value, and the reason where there is none."""
        if not len(matrix.values):
            return math.nan, f"no token is {one.tokens}"
        if name in metrics.OF_ONE:
            value = metrics.OF_ONE[name](matrix)
        elif name in metrics.OF_TWO:
            if other == END:
                second = self._at_the_end.matrix(one) if self._end is not None else matrix
            else:
                second = moment.matrix(Wanted(other, one.sequences, one.positions))
            value = metrics.OF_TWO[name](matrix, second)
        else:
            return own_metric(name, matrix.values, one.time_limits[name])
        return value, UNDEFINED if math.isnan(value) else ""

    @cached_property
    def _rows_of_tokens(self) -> dict[str, torch.Tensor]:
        """The token ids of each choice of `Measurement.tokens`."""
        counts = torch.from_numpy(token_counts(self.corpus, TRAIN))
        seen = counts.argsort(descending=True, stable=True)[: int((counts > 0).sum())]
        tenth = -(-len(seen) // 10)
        parts = {"frequent": seen[:tenth], "rare": seen[tenth:], "unseen": (counts == 0).nonzero().squeeze(1)}
        return {name: ids.sort().values for name, ids in parts.items()}

    def rows_of_tokens(self, choice: str, device: torch.device) -> torch.Tensor:
        """The ids of `frequent`, `rare` or `unseen` tokens, ascending."""
        return self._rows_of_tokens[choice].to(device)


class _Moment:
    """A model at one step, with what several measurements of it share."""

    def __init__(self, measures: Measures, step: int, language_model: LanguageModel, unembedding: Matrix) -> None:
        self._measures, self._step, self._language_model = measures, step, language_model
        self._states_by_settings: dict[tuple[int, str], dict[str, torch.Tensor]] = {}
        self._others = {other for one in measures.wanted for _, other in one.metrics if other} | {UNEMBEDDING}
        self._made: dict[tuple[str, int, str, str], Matrix] = {(UNEMBEDDING, 0, "", ""): unembedding}

    def matrix(self, one: Wanted) -> Matrix:
        key = (one.matrix, one.sequences, one.positions, one.tokens)
        if key not in self._made:
            self._made[key] = Matrix(self._values(one))
        return self._made[key]

    def drop(self, one: Wanted) -> None:
        """Forget a matrix with what was computed of it, unless others are held against it."""
        if one.matrix not in self._others:
            self._made.pop((one.matrix, one.sequences, one.positions, one.tokens), None)

    def _values(self, one: Wanted) -> torch.Tensor:
        size = self._measures.cell.size
        if one.matrix.startswith(HIDDEN):
            return self._states(one.sequences, one.positions)[one.matrix.removeprefix(HIDDEN)]
        name = one.matrix.removeprefix(GRADIENTS)
        parameters = self._gradients if one.matrix.startswith(GRADIENTS) else self._parameters
        values = matrices.weight(name, parameters, size).detach()
        return values[self._measures.rows_of_tokens(one.tokens, values.device)] if one.tokens else values

    @cached_property
    def _parameters(self) -> Mapping[str, torch.Tensor]:
        return self._language_model.matrices()

    def _states(self, sequences: int, positions: str) -> dict[str, torch.Tensor]:
        """The states (rows, d) of each layer by its name, float32, on the CPU."""
        key = (sequences, positions)
        if key not in self._states_by_settings:
            measures = self._measures
            shard = measures.corpus.sequences(TEST, measures.cell.sequence_length)
            check_sequences(sequences, len(shard), measures.cell.sequence_length, measures.corpus.folder.name)
            kept: list[list[torch.Tensor]] = []
            device = self._language_model.device
            with torch.no_grad(), self._language_model.autocast():
                for tokens in _batches(shard, sequences, measures.micro_batch_size, device):
                    states = self._language_model.states(tokens)
                    kept.append([(s if positions == "all" else s[:, -1:]).flatten(0, 1).float().cpu() for s in states])
            layers = [*map(str, range(measures.cell.size.depth + 1)), "final"]
            parts = dict(zip(layers, zip(*kept, strict=True), strict=True))
            self._states_by_settings[key] = {layer: torch.cat(part) for layer, part in parts.items()}
        return self._states_by_settings[key]

    @cached_property
    def _gradients(self) -> Mapping[str, torch.Tensor]:
        """The gradient of the mean loss of the batch that the next step trains on, under the names of the parameters."""
        measures, device = self._measures, self._language_model.device
        cell = measures.cell
        shard = measures.corpus.sequences(TRAIN, cell.sequence_length)
        positions = self._step * cell.batch_size + np.arange(cell.batch_size)
        indices = shard.order(measures.corpus.fingerprint, cell.seed).at(positions)
        parameters = dict(self._parameters)
        if (unembedding := parameters.get(matrices.UNEMBEDDING)) is not None:
            # Where it is a product, by itself.
            parameters[matrices.UNEMBEDDING] = unembedding.detach().float().requires_grad_()
        total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
        for start in range(0, len(indices), measures.micro_batch_size):
            part = torch.from_numpy(shard.read(indices[start : start + measures.micro_batch_size])).to(device)
            with self._language_model.autocast():
                loss = self._language_model(part, parameters.get(matrices.UNEMBEDDING)) * (len(part) / len(indices))
            # Not `backward`, which a group of workers would answer together.
            for name, gradient in zip(total, torch.autograd.grad(loss, list(parameters.values())), strict=True):
                total[name] += gradient
        return total


def _batches(shard: Sequences, sequences: int, size: int, device: torch.device) -> Iterator[torch.Tensor]:
    """The inputs of a sample of sequences, some at a time."""
    indices = shard.sample(sequences)
    for start in range(0, len(indices), size):
        yield torch.from_numpy(shard.read(indices[start : start + size])[:, :-1]).to(device)
