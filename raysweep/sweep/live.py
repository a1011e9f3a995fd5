"""The rows over training of the cells that are not finished: `live.parquet`, for whoever watches the sweep.

A cell's trajectory is a table of its own once the cell is trained; until then its rows are here, written again every few
seconds. Nothing depends on the file: what resumes a cell is its checkpoint.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from raysweep.errors import UserError
from raysweep.store import Store
from raysweep.store.schemas import TRAJECTORIES
from raysweep.store.store import LIVE
from raysweep.sweep.events import CellFinished, CellReported, Event
from raysweep.sweep.state import EventBus

# At most so often, in seconds; and at most a twentieth of the time is spent on it.
WRITE_EVERY = 5.0
_SHARE = 0.05


@contextmanager
def live_rows(store: Store, bus: EventBus) -> Iterator[None]:
    """Keep `live.parquet` current while in the context; what an earlier run left of unfinished cells stays in it."""
    kept = _Rows(store)
    bus.subscribe(kept)
    over = threading.Event()

    def keep() -> None:
        pause = WRITE_EVERY
        while not over.wait(pause):
            began = time.monotonic()
            kept.write()
            pause = max(WRITE_EVERY, (time.monotonic() - began) / _SHARE)

    thread = threading.Thread(target=keep, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        kept.write()


class _Rows:
    """The rows of every cell that has reported and has not finished."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._rows: dict[str, list[dict[str, Any]]] = {}
        self._guard = threading.Lock()
        self._changed = False
        with suppress(UserError):  # Of another raysweep, or out of reach: it is written anew.
            trained = {name.removesuffix(".parquet") for name, _, _ in store.files("trajectories")}
            for row in store.read_rows(LIVE, TRAJECTORIES) or []:
                if row["cell"] not in trained:
                    self._rows.setdefault(row["cell"], []).append(row)

    def __call__(self, event: Event) -> None:
        match event:
            case CellReported() if event.row:
                row = {"cell": event.cell, "step": event.step, "tokens": event.tokens, **event.row}
                with self._guard:
                    # A cell that resumed at an earlier step comes by its rows again.
                    before = [old for old in self._rows.get(event.cell, []) if old["step"] < event.step]
                    self._rows[event.cell] = [*before, row]
                    self._changed = True
            case CellFinished():
                with self._guard:
                    self._changed = self._rows.pop(event.cell, None) is not None or self._changed

    def write(self) -> None:
        """Write the file if anything has changed since it was written."""
        with self._guard:
            if not self._changed:
                return
            rows = [row for of_cell in self._rows.values() for row in of_cell]
            self._changed = False
        try:
            self._store.write_table(LIVE, rows, TRAJECTORIES, wait=False)
        except UserError:  # Out of reach for a moment; what matters is told where results are written.
            with self._guard:
                self._changed = True
