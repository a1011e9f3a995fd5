"""Training to the end with checkpoints in the store, from wherever an earlier process got to."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from raysweep.store import Store
from raysweep.training.checkpoint import append
from raysweep.training.run import Run


def train_to_end(
    run: Run,
    store: Store,
    directory: str,
    resumed_from: str | None,
    keep: int | None,
    interval: float,
    on_row: Callable[[dict[str, Any] | None], None] = lambda row: None,
) -> None:
    """Train with a checkpoint after every row, at the end, and where `interval` seconds have passed since the last one.

    Checkpoints go to `directory` of the store, and `keep` of them stay (None: all). `resumed_from` names the one that the
    run went on from. After each checkpoint `on_row` is called, with the row where there is one. With several workers rank 0
    writes, and its clock decides for all.
    """
    intact = [] if resumed_from is None else [resumed_from]
    saved = time.monotonic()

    def due(step: int) -> bool:
        if step == run.cell.steps:
            return True
        now = torch.tensor(time.monotonic() - saved > interval, device=run.device, dtype=torch.uint8)
        if run.workers > 1:
            torch.distributed.broadcast(now, src=0)
        return bool(now)

    for row in run.rows(pause=due):
        if run.rank == 0:
            intact = append(run.checkpoint(), store, directory, intact, keep)
        on_row(row)
        saved = time.monotonic()
