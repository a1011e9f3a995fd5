"""One cell's training: the model, the step, the schedule, the rows. It needs no Ray cluster.

    run = Run(cell, corpus)
    for row in run.rows(): ...

Ray Train workers drive the same `Run` through `raysweep.trial`. Everything that decides the numbers comes from the cell
and the corpus; the device, the workers and the micro-batch size change them by rounding only.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn

from raysweep.corpora.loader import Sequences, TokenizedCorpus
from raysweep.errors import UserError
from raysweep.model import geometry, interventions, kernels
from raysweep.model import olmo as model
from raysweep.model.loss import token_losses, unembedding_cross_entropy
from raysweep.space.cell import Cell
from raysweep.training.checkpoint import Checkpoint, Position

# Over its whole length a run looks this many times whether a checkpoint is due, or at every step: the longest of the paper's
# every few minutes.
CHECKS = 5000


def report_shares(count: int) -> tuple[float, ...]:
    """Shares of the steps after which a row is reported: doubling at first, when everything moves, then `count` evenly."""
    return (0.0, *(2.0**k / 1024 for k in range(6)), *(k / count for k in range(1, count + 1)))


def report_steps(steps: int, shares: tuple[float, ...]) -> list[int]:
    """The step counts after which a row is reported, the first 0 (the initial weights), the last `steps`."""
    return sorted({math.ceil(share * steps) for share in shares})


def learning_rate(cell: Cell, step: int) -> float:
    """The rate of the step with index `step`: linear from zero to the peak, then half a cosine to the final fraction.

    The peak is reached at the last warm-up step and the final rate at the last step.
    """
    peak, steps = cell.peak_learning_rate, cell.steps
    warmup = round(cell.warmup_fraction * steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step + 1 - warmup) / (steps - warmup)
    final = cell.final_learning_rate_fraction
    return peak * (final + (1 - final) * (1 + math.cos(math.pi * done)) / 2)


class LanguageModel(nn.Module):
    """An OLMo with its loss, as one module: what DDP wraps, so that the gradient of W is averaged too."""

    def __init__(self, olmo: nn.Module) -> None:
        super().__init__()
        self.olmo = olmo

    def hidden(self, inputs: torch.Tensor) -> torch.Tensor:
        """Final states after the last norm, (batch, length, d), of token ids (batch, length)."""
        if self.olmo._compiled_call_impl is None and kernels.supports(self.olmo, inputs):
            return kernels.hidden(self.olmo, inputs)
        return self.olmo(inputs).logits  # type: ignore[no-any-return]

    @property
    def unembedding(self) -> torch.Tensor:
        """W, (V, d)."""
        return self.olmo.transformer.ff_out.weight  # type: ignore[union-attr, return-value]

    def forward(self, sequences: torch.Tensor) -> torch.Tensor:
        """Mean next-token loss in nats of sequences (batch, length + 1)."""
        return unembedding_cross_entropy(self.hidden(sequences[:, :-1]), self.unembedding, sequences[:, 1:])


def mean_loss(language_model: LanguageModel, sequences: Sequences, count: int, micro_batch_size: int) -> float:
    """Mean next-token loss in nats over a sample of `count` sequences (all of them where there are fewer)."""
    chosen = sequences.sample(count)
    device = language_model.unembedding.device
    total = torch.zeros((), dtype=torch.float64)
    with torch.no_grad(), precision(device):
        for start in range(0, len(chosen), micro_batch_size):
            tokens = torch.from_numpy(sequences.read(chosen[start : start + micro_batch_size])).to(device)
            losses = token_losses(language_model.hidden(tokens[:, :-1]), language_model.unembedding, tokens[:, 1:])
            total += losses.sum(dtype=torch.float64).cpu()
    return float(total / (len(chosen) * sequences.length))


def precision(device: torch.device) -> AbstractContextManager[Any]:
    """float32 on CPUs, bfloat16 autocast on GPUs."""
    return torch.autocast("cuda", dtype=torch.bfloat16) if device.type == "cuda" else nullcontext()


def fitting_micro_batch(cell: Cell, device: torch.device, gpu_share: float = 1.0) -> int:
    """Sequences per forward pass whose activations fit: 1 GiB on a CPU, 40% of this cell's share of a GPU."""
    # Counted in units of the width per token and block; generous, since eager kernels keep copies.
    per_token = cell.size.depth * cell.size.width * 30 * (4 if device.type == "cpu" else 2)
    if device.type == "cuda":
        budget = 0.4 * gpu_share * torch.cuda.get_device_properties(device).total_memory
        most_tokens = 2**17
    else:
        budget, most_tokens = 2.0**30, 2**13
    tokens = min(budget / per_token, most_tokens)
    return max(1, min(cell.batch_size, int(tokens // cell.sequence_length)))


class Run:
    """A cell in training: weights, optimizer and position.

    It trains on `shard` of the corpus, from `weights` where some are given, and measures a row after each share of its
    steps in `reports` (by default those of the cell). With several workers every worker makes its own Run with its `rank`
    and wraps the model by `distribute`; `gpu_share` is what of a GPU each may use. Raises `UserError` where the corpus is
    too small for one sequence of the cell.
    """

    def __init__(
        self,
        cell: Cell,
        corpus: TokenizedCorpus,
        *,
        shard: str = "pretraining/train",
        weights: dict[str, torch.Tensor] | None = None,
        reports: tuple[float, ...] | None = None,
        device: torch.device | str = "cpu",
        rank: int = 0,
        workers: int = 1,
        micro_batch_size: int | None = None,
        gpu_share: float = 1.0,
        compile: bool = False,
        distribute: Callable[[LanguageModel], nn.Module] = lambda language_model: language_model,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        self.cell = cell
        self.device = torch.device(device)
        self.rank, self.workers = rank, workers
        self.micro_batch_size = micro_batch_size or fitting_micro_batch(cell, self.device, gpu_share)
        self.reports = report_steps(cell.steps, report_shares(cell.reports) if reports is None else reports)
        self.train = corpus.sequences(shard, cell.sequence_length)
        self.validation = corpus.sequences("pretraining/validation", cell.sequence_length)
        self.order = self.train.order(corpus.fingerprint, cell.seed)

        olmo = model.build(cell.shape, cell.sequence_length, cell.seed, self.device)
        if weights is not None:
            olmo.load_state_dict(weights)
        self.parameters = dict(olmo.named_parameters())
        self.model = LanguageModel(olmo)
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=cell.peak_learning_rate,
            betas=(cell.beta1, cell.beta2),
            eps=cell.epsilon,
            weight_decay=cell.weight_decay,
            fused=True,
        )
        self.position = Position(cell.id, corpus.fingerprint)
        if checkpoint is not None:
            self._restore(checkpoint)
        self.position.starts += 1
        self._begun = time.monotonic() - self.position.seconds
        # Replicas start from rank 0's weights, so they are wrapped once those are in place.
        if compile:
            olmo.compile()
        self.replica = distribute(self.model)

    @property
    def finished(self) -> bool:
        return self.position.ends(self.cell.steps)

    def rows(self, pause: Callable[[int], bool] = lambda step: False) -> Iterator[dict[str, Any] | None]:
        """Train to the end, yielding each row when it is due.

        `pause(step)` is asked at CHECKS points of a whole run: where it says so None is yielded, for a checkpoint
        between rows. After each yield `checkpoint()` gives the state there. All workers yield alike, rank 0 the rows
        and the others None.
        """
        position, steps = self.position, self.cell.steps
        reports = set(self.reports)
        checks = reports | {math.ceil(k * steps / CHECKS) for k in range(CHECKS + 1)}
        if 0 in reports and not position.rows and position.step == 0:
            yield self._report(None)
        while not self.finished:
            losses = torch.tensor(position.loss_sum, dtype=torch.float64, device=self.device)
            gradient_norm = torch.zeros((), device=self.device)
            while True:
                loss, gradient_norm = self._step(position.step)
                losses += loss
                position.step += 1
                position.loss_steps += 1
                if position.step in checks:
                    break
            # One look at the device, and one exchange between workers, per check rather than per step.
            position.loss_sum = self._mean_over_workers(float(losses))
            norm = float(gradient_norm)
            position.diverged = not (math.isfinite(position.loss_sum) and math.isfinite(norm))
            if position.step in reports or position.diverged:
                yield self._report(norm)
            elif pause(position.step):
                yield None

    def _step(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """One optimizer step; its mean loss over this worker's sequences and the norm of the whole gradient."""
        share = self.cell.batch_size // self.workers
        first = step * self.cell.batch_size + self.rank * share
        indices = self.order.at(np.arange(first, first + share))
        tokens = torch.from_numpy(self.train.read(indices)).to(self.device, non_blocking=True)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        parts = tokens.split(self.micro_batch_size)
        for i, part in enumerate(parts):
            last = i == len(parts) - 1
            synchronise = nullcontext() if last or self.workers == 1 else self.replica.no_sync()  # type: ignore[operator]
            with synchronise:
                with precision(self.device):
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
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.cell, step)
        self.optimizer.step()
        if self.cell.spectral_norm_cap is not None:
            interventions.cap_spectral_norm(self.model.unembedding, self.cell.spectral_norm_cap)
        self.optimizer.zero_grad()
        return total, norm

    def _mean_over_workers(self, value: float) -> float:
        if self.workers == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(tensor)
        return float(tensor) / self.workers

    def _report(self, gradient_norm: float | None) -> dict[str, Any] | None:
        """The row of this position, appended to the trajectory; None except on rank 0."""
        position = self.position
        train_loss = position.loss_sum / position.loss_steps if position.loss_steps else None
        position.loss_sum, position.loss_steps = 0.0, 0
        if self.rank:
            return None
        measured = geometry.measure(self.model.unembedding)
        row = {
            "cell": self.cell.id,
            "step": position.step,
            "tokens": position.step * self.cell.tokens_per_step,
            "train_loss": train_loss,
            "validation_loss": mean_loss(
                self.model, self.validation, self.cell.validation_sequences, self.micro_batch_size
            ),
            "learning_rate": learning_rate(self.cell, max(0, position.step - 1)),
            "gradient_norm": gradient_norm,
            **{f"{name}_W": value for name, value in measured.items()},
        }
        position.rows.append(row)
        return row

    def checkpoint(self) -> Checkpoint:
        """The state at this position; the tensors are the run's own, so write them before going on."""
        self.position.seconds = time.monotonic() - self._begun
        optimizer: dict[str, torch.Tensor] = {"random_state": torch.get_rng_state()}
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state[parameter].items():
                optimizer[f"{name}:{key}"] = value
        return Checkpoint(self.position, {n: p.detach() for n, p in self.parameters.items()}, optimizer)

    def _restore(self, checkpoint: Checkpoint) -> None:
        position = checkpoint.position
        if position.cell != self.cell.id or position.fingerprint != self.position.fingerprint:
            raise UserError(
                f"a checkpoint of cell {position.cell} on corpus {position.fingerprint} cannot continue "
                f"cell {self.cell.id} on corpus {self.position.fingerprint}"
            )
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(checkpoint.model[name])
        torch.set_rng_state(checkpoint.optimizer["random_state"].cpu())
        for name, parameter in self.parameters.items():
            for key in ("step", "exp_avg", "exp_avg_sq"):
                value = checkpoint.optimizer.get(f"{name}:{key}")
                if value is not None:
                    self.optimizer.state[parameter][key] = value.to(self.device)
        self.position = position
