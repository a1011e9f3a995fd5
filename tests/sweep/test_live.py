"""What a running sweep leaves for whoever watches: the rows of the cells that are not finished."""

from pathlib import Path
from typing import Any

import pytest

from raysweep.store import Store
from raysweep.store.schemas import TRAJECTORIES
from raysweep.store.store import LIVE
from raysweep.sweep import live
from raysweep.sweep.events import CellFailed, CellFinished, CellReported
from raysweep.sweep.live import live_rows
from raysweep.sweep.state import EventBus


def report(cell: str, step: int, loss: float | None) -> CellReported:
    row = {} if loss is None else {"validation_loss": loss, "effective_rank_W": 2.0}
    return CellReported(cell, step, 32, 128 * step, 10.0, row)


def rows(store: Store) -> list[tuple[Any, ...]]:
    return [
        (r["cell"], r["step"], r["tokens"], r["validation_loss"]) for r in store.read_rows(LIVE, TRAJECTORIES) or []
    ]


def test_rows_grow_and_go_when_a_cell_is_finished(tmp_path: Path) -> None:
    store, bus = Store(str(tmp_path)), EventBus()
    with live_rows(store, bus):
        for event in (report("a", 0, 5.0), report("a", 4, None), report("a", 8, 4.0), report("b", 0, 5.5)):
            bus(event)
        bus(CellFailed("b", ("no room",)))
        bus(report("c", 0, 5.2))
        bus(CellFinished("c"))
    assert rows(store) == [("a", 0, 0, 5.0), ("a", 8, 1024, 4.0), ("b", 0, 0, 5.5)]


def test_a_cell_that_resumed_earlier_comes_by_its_rows_again(tmp_path: Path) -> None:
    store, bus = Store(str(tmp_path)), EventBus()
    with live_rows(store, bus):
        for step in (0, 8, 16):
            bus(report("a", step, 5.0))
            bus(report("b", step, 6.0))
    store.write_table(store.trajectory_file("b"), [{"cell": "b", "step": 32}], TRAJECTORIES)
    again = EventBus()
    with live_rows(store, again):
        again(report("a", 8, 4.5))
    assert rows(store) == [("a", 0, 0, 5.0), ("a", 8, 1024, 4.5)]


def test_a_store_that_is_away_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "WRITE_EVERY", 0.01)
    monkeypatch.setattr(live, "_SHARE", 1.0)
    (tmp_path / "store").write_text("not a folder")
    store, bus = Store(str(tmp_path / "store")), EventBus()
    with live_rows(store, bus):
        bus(report("a", 0, 5.0))
        (tmp_path / "store").unlink()
        bus(report("a", 8, 4.0))
    assert rows(store) == [("a", 0, 0, 5.0), ("a", 8, 1024, 4.0)]
