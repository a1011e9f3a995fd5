"""What the events of a sweep add up to, without a cluster."""

import dataclasses

import pytest
from tiny import make_cell

from raysweep.space.cell import Cell
from raysweep.sweep import cost
from raysweep.sweep.events import (
    CellFailed,
    CellFinished,
    CellReported,
    CellStarted,
    ClusterConnected,
    Heartbeat,
    StoreLost,
    SweepSurveyed,
    Waiting,
)
from raysweep.sweep.state import EventBus, RunState
from raysweep.sweep.survey import CellState, Survey

# Three cells of 4,096 tokens each: one complete, one trained but not evaluated, one new.
DONE, TRAINED, NEW = (make_cell(seed=seed) for seed in (1, 2, 3))
SURVEY = Survey(
    [
        CellState(DONE, "done", {"in_distribution": "done"}),
        CellState(TRAINED, "done", {"in_distribution": "new"}),
        CellState(NEW, "new", {"in_distribution": "new"}),
    ]
)


def begun() -> RunState:
    state = RunState()
    state.apply(SweepSurveyed("tiny", "/store", SURVEY, at=0.0))
    state.apply(ClusterConnected("http://127.0.0.1:8265", at=1.0))
    return state


def report(cell: str, step: int, at: float, rate: float = 10.0) -> CellReported:
    return CellReported(cell, step, 32, 128 * step, rate, {"validation_loss": 5.0, "learning_rate": 0.1}, at=at)


def test_what_was_done_before_is_counted_and_not_done_again() -> None:
    state = begun()
    assert state.complete_before == 1
    assert set(state.planned) == {TRAINED.id, NEW.id}
    assert state.untrained == {NEW.id}
    assert (state.tokens_before, state.tokens_left_before, state.tokens_planned) == (8192, 4096, 12288)
    assert state.counts() == {"done": 1, "running": 0, "starting": 0, "failed": 0, "waiting": 2}
    assert state.interrupted


def test_its_pace_may_be_asked_for_while_it_takes_in_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the thread of the store's lock."""
    state = RunState()
    left = []

    def asked_meanwhile(cell: Cell, gpu: bool) -> float:
        left.append(state.pace(now=0.0))
        return cost.relative_seconds(cell, gpu)

    monkeypatch.setattr("raysweep.sweep.state.relative_seconds", asked_meanwhile)
    state.apply(SweepSurveyed("tiny", "/store", SURVEY, at=0.0))
    assert len(left) == 2


def test_a_sweep_that_ends_waits_for_the_cells_in_training_and_for_no_others() -> None:
    state = begun()
    for cell in (TRAINED, NEW):
        state.apply(CellStarted(cell.id, at=2.0))
    assert state.training == set()
    state.apply(report(NEW.id, 8, at=10.0))
    assert (state.training, state.kept) == ({NEW.id}, set())
    state.apply(dataclasses.replace(report(NEW.id, 9, at=11.0), kept=True))
    state.apply(report(NEW.id, 16, at=12.0))
    assert (state.training, state.kept) == ({NEW.id}, {NEW.id})
    # Its node is lost: it starts again. Or it is trained, and evaluated now.
    state.apply(CellStarted(NEW.id, at=13.0))
    assert state.training == set()
    state.apply(report(NEW.id, 24, at=14.0))
    state.apply(report(NEW.id, 32, at=15.0))
    assert state.training == set()


def test_a_cell_is_starting_until_it_reports_and_one_that_is_trained_runs_at_once() -> None:
    state = begun()
    for cell in (TRAINED, NEW):
        state.apply(CellStarted(cell.id, at=2.0))
    assert state.counts() == {"done": 1, "running": 1, "starting": 1, "failed": 0, "waiting": 0}
    state.apply(report(NEW.id, 0, at=10.0))
    assert state.counts() == {"done": 1, "running": 2, "starting": 0, "failed": 0, "waiting": 0}
    # Time in the queue is not time of the cell.
    assert state.running[NEW.id]["since"] == 10.0
    assert state.running[NEW.id]["validation_loss"] == 5.0
    assert "learning_rate" not in state.running[NEW.id]


def test_the_rate_is_what_workers_say_at_first_and_what_was_trained_later() -> None:
    state = begun()
    state.apply(CellStarted(NEW.id, at=2.0))
    state.apply(report(NEW.id, 8, at=10.0))  # It resumed at 1,024 tokens.
    early = state.pace(now=20.0)
    assert (early.tokens_per_second, early.share) == (10.0, 0.75)
    assert early.seconds_left == pytest.approx((4096 - 1024) / 10.0)
    state.apply(report(NEW.id, 24, at=100.0))
    # 16 steps of 128 tokens in the 90 s since the first report.
    settled = state.pace(now=100.0)
    assert settled.tokens_per_second == pytest.approx(16 * 128 / 90)
    assert settled.seconds_left == pytest.approx(1024 / (16 * 128 / 90))
    assert state.tokens_trained == 8192 + 3072


def test_time_left_counts_that_small_batches_take_longer() -> None:
    """Two cells of as many tokens; the one that is left has four times the steps."""
    large, small = make_cell(seed=1), make_cell(seed=2, batch_size=DONE.batch_size // 4)
    assert small.steps == 4 * large.steps
    state = RunState()
    state.apply(SweepSurveyed("tiny", "/store", Survey([CellState(one, "new") for one in (large, small)]), at=0.0))
    for step, at in ((0, 10.0), (large.steps, 110.0)):
        state.apply(CellReported(large.id, step, large.steps, step * large.tokens_per_step, 1.0, {}, at=at))
    longer = cost.relative_seconds(small, gpu=False) / cost.relative_seconds(large, gpu=False)
    assert longer > 2
    left = state.pace(now=110.0).seconds_left
    assert left == pytest.approx(100 * longer)


def test_a_cell_that_trains_again_counts_once() -> None:
    """Its weights were lost: it was trained before, and its tokens with it."""
    state = begun()
    before = state.tokens_trained
    state.apply(report(TRAINED.id, 16, at=10.0))
    state.apply(report(TRAINED.id, 32, at=100.0))
    assert state.tokens_trained == before
    assert state.pace(now=100.0).share == before / state.tokens_planned


def test_cells_end_once_and_what_failed_is_known() -> None:
    state = begun()
    state.apply(CellStarted(TRAINED.id))
    state.apply(CellFinished(TRAINED.id))
    state.apply(CellStarted(NEW.id))
    state.apply(CellFailed(NEW.id, ("no memory",), process_lost=True))
    assert (state.ended, state.interrupted) == (2, False)
    assert state.failed == {NEW.id: ("no memory",)}
    assert state.process_lost == [NEW.id]
    assert state.running == {}
    assert state.stop_reason == ""


def test_why_it_waits_and_why_it_stops() -> None:
    state = begun()
    state.apply(Waiting("no node has a GPU"))
    assert state.record()["waiting"] == "no node has a GPU"
    state.apply(Waiting(""))
    assert state.waiting == ""
    state.apply(StoreLost("the disk is full"))
    assert state.stop_reason == "the disk is full"


def test_what_status_is_told_does_not_change_afterwards() -> None:
    """The lock writes it in a thread of its own."""
    state = begun()
    state.apply(CellStarted(NEW.id))
    record = state.record()
    state.apply(report(NEW.id, 3, at=5.0))
    assert "step" not in record["running"][NEW.id]
    assert state.record()["running"][NEW.id]["step"] == 3


def test_a_state_of_ones_own_is_the_sweeps() -> None:
    """Whoever applies the events it is told has the state that the sweep itself decides by."""
    bus, own = EventBus(), RunState()
    bus.subscribe(own.apply)
    for event in (
        SweepSurveyed("tiny", "/store", SURVEY, at=0.0),
        CellStarted(NEW.id, at=1.0),
        report(NEW.id, 4, at=2.0),
        Heartbeat(at=3.0),
        CellFinished(NEW.id, at=4.0),
    ):
        bus(event)
    assert own == bus.state


def test_events_do_not_change() -> None:
    event = CellStarted("c")
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.cell = "d"  # type: ignore[misc]
    assert event == CellStarted("c", at=0.0)
