"""Batches that a thread reads ahead: the same as without it, from wherever a run goes on."""

import threading

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tiny import make_cell

from raysweep.corpora.tokenized import TokenizedCorpus
from raysweep.training.feed import Feed
from raysweep.training.run import Run

CPU = torch.device("cpu")


class Text:
    """Reads what says which step it is of, and keeps who read it."""

    def __init__(self) -> None:
        self.read_of: list[tuple[int, str]] = []

    def __call__(self, step: int) -> npt.NDArray[np.int64]:
        self.read_of.append((step, threading.current_thread().name))
        if step == 7:
            raise OSError("the disk is gone")
        return np.full((2, 3), step, dtype=np.int64)


def test_each_step_gets_its_own_batch_and_each_is_read_once_by_the_thread() -> None:
    text = Text()
    feed = Feed(text, CPU, ahead=True)
    for step in range(4):
        batch = feed(step)
        assert batch.dtype == torch.int64
        assert batch.tolist() == [[step] * 3] * 2
    feed._thread.shutdown()  # type: ignore[union-attr]
    assert [step for step, _ in text.read_of] == [0, 1, 2, 3, 4]
    assert all(name.startswith("raysweep-feed") for _, name in text.read_of)


def test_a_step_that_was_not_expected_is_read_then() -> None:
    feed = Feed(Text(), CPU, ahead=True)
    assert [int(feed(step)[0, 0]) for step in (0, 100, 3, 3, 4)] == [0, 100, 3, 3, 4]


def test_an_error_belongs_to_the_step_that_could_not_be_read() -> None:
    feed = Feed(Text(), CPU, ahead=True)
    assert int(feed(6)[0, 0]) == 6  # The next one fails already.
    with pytest.raises(OSError, match="the disk is gone"):
        feed(7)


def test_on_a_cpu_no_thread_reads() -> None:
    text = Text()
    Feed(text, CPU)(0)
    assert text.read_of == [(0, threading.current_thread().name)]


def test_a_run_that_reads_ahead_trains_the_same_to_the_last_bit(corpus: TokenizedCorpus) -> None:
    cell = make_cell(tokens=4096)
    plain = [row for row in Run(cell, corpus).rows() if row]
    run = Run(cell, corpus)
    run._feed = Feed(run._read, CPU, ahead=True)
    assert [row for row in run.rows() if row] == plain
