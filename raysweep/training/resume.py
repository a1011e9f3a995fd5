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
    ending: Callable[[], bool] = lambda: False,
    on_kept: Callable[[], None] = lambda: None,
) -> None:
    """Train with a checkpoint after every row, at the end, and where `interval` seconds have passed since the last one.

    Where `ending` says that the process is about to be ended there is one more, and `on_kept` is called when it is written.

    Checkpoints go to `directory` of the store, and `keep` of them stay (None: those of rows, and the last two).
    `resumed_from` names the one that the run went on from. A thread writes each while training goes on; the last is
    written when this returns. `on_row` is called at each, with the row where there is one. With several workers rank 0
    writes, and its clock and its `ending` decide for all. Raises `StoreError` where the store cannot be written, at the
    latest when the next checkpoint is due.
    """
    saved, asked, kept = time.monotonic(), False, False

    def due(step: int) -> bool:
        nonlocal asked
        if step == run.cell.steps:
            return True
        asked = not kept and run.rank == 0 and ending()
        now = torch.tensor([asked or time.monotonic() - saved > interval, asked], device=run.device, dtype=torch.uint8)
        if run.workers > 1:
            torch.distributed.broadcast(now, src=0)
        asked = bool(now[1])
        return bool(now[0])

    with closing(_Writer(store, directory, resumed_from, keep)) as writer:
        for row in run.rows(pause=due):
            if run.rank == 0:
                writer.write(run.checkpoint())
            if asked:
                writer.wait()
                asked, kept = False, True
                on_kept()
            else:
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
        self.wait()
        self._writing = self._thread.submit(
            append, copied(checkpoint), self._store, self._directory, self._intact, self._keep
        )

    def wait(self) -> None:
        """Wait until what is being written is there, and raise what that raised."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            self._intact = writing.result()

    def close(self) -> None:
        """Wait for the last one."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
