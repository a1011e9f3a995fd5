"""One cell's training: the model, the step, the rows. It needs no Ray cluster.

    run = Run(cell, corpus)
    for row in run.rows(): ...

Ray Train workers drive the same `Run` through `raysweep.sweep.worker`. Everything that decides the numbers comes from the
cell and the corpus; the device, the workers and the micro-batch size change them by rounding only.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from raysweep.corpora.tokenized import TokenizedCorpus
from raysweep.errors import UserError
from raysweep.model import interventions
from raysweep.model.language_model import LanguageModel
from raysweep.model.metrics import Matrix
from raysweep.space.cell import Cell
from raysweep.space.measure import Measurement, wanted
from raysweep.training.checkpoint import Checkpoint, TrainState
from raysweep.training.feed import Feed
from raysweep.training.losses import even_micro_batch, fitting_micro_batch, mean_loss
from raysweep.training.measure import Measures
from raysweep.training.optimizer import Optimizer
from raysweep.training.schedule import learning_rate

# Over its whole length a run asks this many times whether a checkpoint is due, or at every step; in longer runs, such as the
# paper's longest, as often as LEAST_OFTEN says: whoever stops a sweep waits two minutes for a checkpoint.
CHECKS = 5000
LEAST_OFTEN = 100
"""Steps."""


class Run:
    """A cell in training: weights, optimizer and state.

    It trains on `shard` of the corpus, or of another `text` where one is given, and trains `model` where one is given, in
    place, or else the cell's own from its first weights. It measures a row after each of the step counts in `reports` (by
    default those of the cell), with what `measure` asks for. With several workers every worker makes its own Run with its
    `rank` and wraps the model by `distribute`; `gpu_share` is what of a GPU each may use. Raises `UserError` where the
    corpus is too small for one sequence of the cell.
    """

    def __init__(
        self,
        cell: Cell,
        corpus: TokenizedCorpus,
        *,
        shard: str = "pretraining/train",
        text: TokenizedCorpus | None = None,
        model: LanguageModel | None = None,
        reports: Sequence[int] | None = None,
        device: torch.device | str = "cpu",
        rank: int = 0,
        workers: int = 1,
        micro_batch_size: int | None = None,
        gpu_share: float = 1.0,
        compile: bool = False,
        distribute: Callable[[LanguageModel], nn.Module] = lambda language_model: language_model,
        measure: Sequence[Measurement] = (),
        checkpoint: Checkpoint | None = None,
    ) -> None:
        self.cell = cell
        self.device = torch.device(device)
        self.rank, self.workers = rank, workers
        self.micro_batch_size = micro_batch_size or fitting_micro_batch(cell, self.device, gpu_share)
        if self.device.type == "cuda" and micro_batch_size is None:
            self.micro_batch_size = even_micro_batch(cell.batch_size // workers, self.micro_batch_size)
        self.reports = cell.report_steps if reports is None else reports
        source = text or corpus
        self.train = source.sequences(shard, cell.sequence_length)
        self.validation = corpus.sequences("pretraining/validation", cell.sequence_length)
        self.order = self.train.order(source.fingerprint, cell.seed)
        self._feed = Feed(self._read, self.device)
        self._measures = Measures(cell, corpus, wanted(measure, cell), self.micro_batch_size)
        self.spectra: dict[str, torch.Tensor] = {}

        self.model = LanguageModel.of(cell, self.device) if model is None else model.trained_by(cell)
        self.parameters = dict(self.model.olmo.named_parameters())
        self.optimizer = Optimizer(cell, self.parameters)
        self.state = TrainState(cell.id, corpus.fingerprint)
        if checkpoint is not None:
            self._restore(checkpoint)
        self.state.starts += 1
        self._begun = time.monotonic() - self.state.seconds
        # Replicas start from rank 0's weights, so they are wrapped once those are in place.
        if compile:
            # With dynamic shapes graphs depend on what comes first: validation in a new run, training in one that resumes.
            self.model.olmo.compile(dynamic=False)
        self.replica = distribute(self.model)
        if self.state.computed_by[-1:] != [here := self.model.computed_by()]:
            self.state.computed_by.append(here)

    @property
    def failed_metrics(self) -> dict[str, str]:
        """The first failure of each of the user's own metrics, by its name."""
        return self._measures.failures

    @property
    def finished(self) -> bool:
        return self.state.ends(self.cell.steps)

    def rows(self, pause: Callable[[int], bool] = lambda step: False) -> Iterator[dict[str, Any] | None]:
        """Train to the end, yielding each row when it is due.

        `pause(step)` is called at CHECKS points of a whole run, and at least every LEAST_OFTEN steps: if it returns True,
        None is yielded, for a checkpoint between rows. After each yield `checkpoint()` gives the state there. All workers
        yield together, rank 0 the rows and the others None.
        """
        state, steps = self.state, self.cell.steps
        reports = set(self.reports)
        often = steps > CHECKS * LEAST_OFTEN
        checks = reports if often else reports | {math.ceil(k * steps / CHECKS) for k in range(CHECKS + 1)}
        if 0 in reports and not state.rows and state.step == 0:
            yield self._report(None)
        while not self.finished:
            losses = torch.tensor(state.loss_sum, dtype=torch.float64, device=self.device)
            gradient_norm = torch.zeros((), device=self.device)
            while True:
                loss, gradient_norm = self._step(state.step)
                losses += loss
                state.step += 1
                state.loss_steps += 1
                if state.step in checks or state.step == steps or (often and state.step % LEAST_OFTEN == 0):
                    break
            # One look at the device, and one exchange between workers, per check rather than per step.
            state.loss_sum = self._mean_over_workers(float(losses))
            norm = float(gradient_norm)
            state.diverged = not (math.isfinite(state.loss_sum) and math.isfinite(norm))
            if state.step in reports or state.diverged:
                yield self._report(norm)
            elif pause(state.step):
                yield None

    def _read(self, step: int) -> npt.NDArray[np.int64]:
        """This worker's sequences of a step."""
        share = self.cell.batch_size // self.workers
        first = step * self.cell.batch_size + self.rank * share
        return self.train.read(self.order.at(np.arange(first, first + share)))

    def _step(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """One optimizer step; its mean loss over this worker's sequences and the norm of the whole gradient."""
        tokens = self._feed(step)
        share = len(tokens)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        parts = tokens.split(self.micro_batch_size)
        for i, part in enumerate(parts):
            last = i == len(parts) - 1
            synchronise = nullcontext() if last or self.workers == 1 else self.replica.no_sync()  # type: ignore[operator]
            with synchronise:
                with self.model.autocast():
                    loss = self.replica(part) * (len(part) / share)
                loss.backward()
            total += loss.detach()
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.cell.gradient_clipping)
        if self.cell.effective_rank_target is not None:
            # Of the same W on every worker, after their gradients were averaged; after clipping, which would otherwise scale
            # the gradient of everything else down with it.
            interventions.add_rank_penalty(
                self.model.unembedding, self.cell.effective_rank_target, self.cell.effective_rank_penalty
            )
        self.optimizer.step(learning_rate(self.cell, step))
        self.optimizer.zero_grad()
        if self.cell.spectral_norm_cap is not None:
            interventions.cap_spectral_norm(self.model.unembedding, self.cell.spectral_norm_cap)
        return total, norm

    def _mean_over_workers(self, value: float) -> float:
        if self.workers == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(tensor)
        return float(tensor) / self.workers

    def _report(self, gradient_norm: float | None) -> dict[str, Any] | None:
        """The row of this position, appended to the trajectory; None except on rank 0."""
        state = self.state
        train_loss = state.loss_sum / state.loss_steps if state.loss_steps else None
        state.loss_sum, state.loss_steps = 0.0, 0
        if self.rank:
            return None
        unembedding = Matrix(self.model.measured_unembedding)
        measured, spectra = self._measures.at(state.step, self.model, unembedding)
        state.measures += measured
        self.spectra |= spectra
        row = {
            "cell": self.cell.id,
            "step": state.step,
            "tokens": state.step * self.cell.tokens_per_step,
            "train_loss": train_loss,
            "validation_loss": mean_loss(
                self.model, self.validation, self.cell.validation_sequences, self.micro_batch_size
            ),
            "learning_rate": learning_rate(self.cell, max(0, state.step - 1)),
            "gradient_norm": gradient_norm,
            **{f"{name}_W": value for name, value in unembedding.geometry.items()},
        }
        state.rows.append(row)
        return row

    def checkpoint(self) -> Checkpoint:
        """The state at this position; the tensors are the run's own, so write them before going on."""
        self.state.seconds = time.monotonic() - self._begun
        optimizer = {"random_state": torch.get_rng_state()} | self.optimizer.moments()
        weights = {name: parameter.detach() for name, parameter in self.parameters.items()}
        return Checkpoint(self.state, weights, optimizer, self.spectra)

    def _restore(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.state
        if state.cell != self.cell.id or state.fingerprint != self.state.fingerprint:
            raise UserError(
                f"a checkpoint of cell {state.cell} on corpus {state.fingerprint} cannot continue "
                f"cell {self.cell.id} on corpus {self.state.fingerprint}"
            )
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(checkpoint.model[name])
        torch.set_rng_state(checkpoint.optimizer["random_state"].cpu())
        self.optimizer.restore(checkpoint.optimizer)
        self.state, self.spectra = state, dict(checkpoint.spectra)
