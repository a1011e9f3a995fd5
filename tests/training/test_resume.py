"""Checkpoints are written while training goes on, and hold what the run was when they were made."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_cell

from raysweep.corpora.tokenized import TokenizedCorpus
from raysweep.errors import StoreError
from raysweep.store import Store
from raysweep.store.checkpoints import names
from raysweep.training import checkpoint
from raysweep.training.resume import train_to_end
from raysweep.training.run import Run

DIRECTORY = "train/x"


class SlowStore(Store):
    """Waits before each write until it may, or for so many seconds."""

    def __init__(self, location: str, wait: float) -> None:
        super().__init__(location)
        self.wait = wait
        self.may = threading.Event()

    def write(self, path: str, content: bytes, wait: bool = True) -> None:
        self.may.wait(self.wait)
        super().write(path, content, wait)


def test_training_goes_on_while_a_checkpoint_is_written(corpus: TokenizedCorpus, tmp_path: Path) -> None:
    cell, store = make_cell(), SlowStore(str(tmp_path), wait=20)
    seen: list[list[str]] = []

    def on_row(row: dict[str, Any] | None) -> None:
        if not seen:
            seen.append(names(store, DIRECTORY))
            store.may.set()

    train_to_end(Run(cell, corpus), store, DIRECTORY, None, None, 300.0, on_row)
    assert seen == [[]]
    found = checkpoint.latest(store, DIRECTORY)
    assert found is not None
    assert found[1].state.step == cell.steps


def test_a_checkpoint_is_of_its_own_step_however_late_it_is_written(corpus: TokenizedCorpus, tmp_path: Path) -> None:
    cell = make_cell(reports=4)
    wanted: dict[int, tuple[str, str, int]] = {}
    run = Run(cell, corpus)
    for _ in run.rows():
        made = run.checkpoint()
        wanted[run.state.step] = checkpoint.digest(made.model), checkpoint.digest(made.optimizer), len(run.state.rows)
    store = SlowStore(str(tmp_path), wait=0.05)
    train_to_end(Run(cell, corpus), store, DIRECTORY, None, None, 300.0)
    found = [checkpoint.read(store, f"{DIRECTORY}/{name}") for name in names(store, DIRECTORY)]
    assert {
        one.state.step: (checkpoint.digest(one.model), checkpoint.digest(one.optimizer), len(one.state.rows))
        for one in found
    } == wanted


def test_a_store_that_fails_ends_the_run(corpus: TokenizedCorpus, tmp_path: Path) -> None:
    """At the next checkpoint: until then nothing has been said to be safe."""

    class Full(Store):
        def write(self, path: str, content: bytes, wait: bool = True) -> None:
            raise StoreError("no space left")

    run = Run(make_cell(), corpus)
    rows: list[Any] = []
    with pytest.raises(StoreError, match="no space left"):
        train_to_end(run, Full(str(tmp_path)), DIRECTORY, None, None, 300.0, rows.append)
    assert len(rows) == 1
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("raysweep-checkpoint")]


def test_the_last_checkpoint_that_fails_ends_the_run_too(corpus: TokenizedCorpus, tmp_path: Path) -> None:
    class FullAtTheEnd(Store):
        def write(self, path: str, content: bytes, wait: bool = True) -> None:
            if f"step{make_cell().steps:012d}" in path:
                time.sleep(0.1)
                raise StoreError("no space left")
            super().write(path, content, wait)

    with pytest.raises(StoreError, match="no space left"):
        train_to_end(Run(make_cell(), corpus), FullAtTheEnd(str(tmp_path)), DIRECTORY, None, None, 300.0)


def test_what_training_does_while_it_writes_is_bit_equal(corpus: TokenizedCorpus, tmp_path: Path) -> None:
    plain = Run(make_cell(), corpus)
    for _ in plain.rows():
        pass
    written = Run(make_cell(), corpus)
    train_to_end(written, SlowStore(str(tmp_path), wait=0.005), DIRECTORY, None, 2, 0.0)
    assert written.state.rows == plain.state.rows
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters.values(), written.parameters.values(), strict=True))


def test_a_process_that_is_about_to_end_keeps_what_it_has_once(corpus: TokenizedCorpus, tmp_path: Path) -> None:
    """Between two rows, written when it is said to be, and training goes on to the same end as without."""
    cell, store = make_cell(reports=2), SlowStore(str(tmp_path), wait=0.02)
    rows: list[int] = []
    kept: list[tuple[int, list[str]]] = []
    run = Run(cell, corpus)
    train_to_end(
        run, store, DIRECTORY, None, None, 300.0, lambda row: rows.append(run.state.step),
        ending=lambda: run.state.step >= 5, on_kept=lambda: kept.append((run.state.step, names(store, DIRECTORY))),
    )  # fmt: skip
    assert 5 not in rows
    ((step, there),) = kept
    assert step == 5
    assert there[0].startswith("checkpoint_step000000000005_")
    calm = Run(cell, corpus)
    train_to_end(calm, Store(str(tmp_path / "calm")), DIRECTORY, None, None, 300.0)
    assert checkpoint.digest(run.checkpoint().model) == checkpoint.digest(calm.checkpoint().model)
    assert run.state.rows == calm.state.rows
