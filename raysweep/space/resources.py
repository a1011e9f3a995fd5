"""What a sweep asks of the cluster for each cell and each evaluation."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from raysweep.space.fields import Count, Flag, Gpus, Strict


class TrainResources(Strict):
    """What one cell's training asks of the cluster."""

    workers: Count = 1
    """Data-parallel Ray Train workers of a cell."""
    cpus: Count = 1
    """Cores of each worker; also its torch threads."""
    gpus: Gpus = 0
    """GPU of each worker; a fraction only with one worker."""
    micro_batch_size: Count | None = None
    """Sequences per forward pass of a worker; by default one that fits. Changes the numbers by rounding only."""
    keep_checkpoints: Count | Literal["all"] = 2
    """How many of a cell's latest checkpoints stay in the store; `all` keeps one for each row."""
    compile: Flag | None = None
    """Whether the blocks go through `torch.compile`: by default on GPUs, where it takes a minute at the start."""
    deterministic: Flag = False
    """Whether GPUs only use operations that give the same bits each time, so that a resumed run is bit-equal; slower.
    CPUs always do."""

    @model_validator(mode="after")
    def _whole_gpus(self) -> TrainResources:
        if self.workers > 1 and self.gpus % 1:
            raise ValueError(f"{self.workers} workers cannot share a GPU: gpus must be whole, not {self.gpus:g}")
        return self


class EvaluateResources(Strict):
    """What one evaluation task asks of the cluster."""

    cpus: Count = 1
    """Cores of each evaluation; also its torch threads."""
    gpus: Gpus = 0
    """GPU of each evaluation, or a fraction of one."""


class Resources(Strict):
    """What the search space's `resources` says."""

    train: TrainResources = TrainResources()
    """Of each cell's training."""
    evaluate: EvaluateResources = EvaluateResources()
    """Of each evaluation."""
