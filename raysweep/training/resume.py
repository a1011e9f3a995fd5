"""Training to the end with checkpoints in the store, from wherever an earlier process got to."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any

import torch

from raysweep.store import Store
from raysweep.training.checkpoint import Checkpoint, append, copied
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
    run went on from. A thread writes each while training goes on; the last is written when this returns. `on_row` is called
    at each, with the row where there is one. With several workers rank 0 writes, and its clock decides for all. Raises
    `StoreError` where the store cannot be written, at the latest when the next checkpoint is due.
    """
    saved = time.monotonic()

    def due(step: int) -> bool:
        if step == run.cell.steps:
            return True
        now = torch.tensor(time.monotonic() - saved > interval, device=run.device, dtype=torch.uint8)
        if run.workers > 1:
            torch.distributed.broadcast(now, src=0)
        return bool(now)

    with closing(_Writer(store, directory, resumed_from, keep)) as writer:
        for row in run.rows(pause=due):
            if run.rank == 0:
                writer.write(run.checkpoint())
            on_row(row)
            saved = time.monotonic()


class _Writer:
    """Writes a run's checkpoints in a thread, one at a time: to serialise, hash and upload them takes seconds."""

    def __init__(self, store: Store, directory: str, resumed_from: str | None, keep: int | None) -> None:
        self._store, self._directory, self._keep = store, directory, keep
        self._intact = [] if resumed_from is None else [resumed_from]
        self._thread = ThreadPoolExecutor(1, "raysweep-checkpoint")
        self._writing: Future[list[str]] | None = None

    def write(self, checkpoint: Checkpoint) -> None:
        """Copy a checkpoint and have it written; waits for the one before, and raises what that raised."""
        self._wait()
        self._writing = self._thread.submit(
            append, copied(checkpoint), self._store, self._directory, self._intact, self._keep
        )

    def _wait(self) -> None:
        if self._writing is not None:
            writing, self._writing = self._writing, None
            self._intact = writing.result()

    def close(self) -> None:
        """Wait for the last one."""
        try:
            self._wait()
        finally:
            self._thread.shutdown()
