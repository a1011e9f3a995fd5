"""What a person sees of events, and what Ctrl-C does, without a cluster."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny import make_cell

from raysweep.cli.main import main
from raysweep.cli.panel import SweepView
from raysweep.cli.signals import StopOnSignal
from raysweep.sweep.events import (
    CellFailed,
    CellFinished,
    CellReported,
    CellStarted,
    ClusterConnected,
    NodesChanged,
    SweepSurveyed,
    Waiting,
    Warned,
)
from raysweep.sweep.survey import CellState, Survey

FIRST, SECOND = make_cell(seed=1), make_cell(seed=2)
SURVEY = Survey([CellState(cell, "new", {"in_distribution": "new"}) for cell in (FIRST, SECOND)])


def test_a_sweep_as_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """Where there is no terminal."""
    row = {"validation_loss": 5.4321, "effective_rank_W": 0.6789}
    with SweepView() as view:
        for event in (
            SweepSurveyed("tiny", "/data/[store]", SURVEY),
            ClusterConnected("http://127.0.0.1:8265"),
            NodesChanged(1, 2, 16, 1),
            Waiting("no node has a GPU"),
            Waiting(""),
            CellStarted(FIRST.id, at=10.0),
            CellReported(FIRST.id, 0, 32, 0, 0.0, row, at=20.0),
            Warned("half [bold]a[/] character"),
            CellFinished(FIRST.id, at=85.0),
            CellFailed(SECOND.id, ("ValueError: [no] luck",)),
        ):
            view(event)
    assert capsys.readouterr().out.splitlines() == [
        "tiny: 2 cells, 2 to start, 2 evaluations to do",
        "store /data/[store]",
        "dashboard http://127.0.0.1:8265",
        "nodes joined: the cluster has 2 nodes with 16 CPU and 1 GPU",
        "waiting no node has a GPU",
        "there is room again",
        "warning half [bold]a[/] character",
        f"[1/2] done {FIRST.id}  val. loss 5.432  effective rank 0.679 in 1m05s",
        f"[2/2] failed {SECOND.id}: ValueError: [no] luck",
    ]


@pytest.fixture(autouse=True)
def ctrl_c_is_heard() -> Iterator[None]:
    """What a script starts in the background has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press(number: int = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)


def test_before_training_ctrl_c_ends_it_at_once() -> None:
    with StopOnSignal() as signals:
        with pytest.raises(KeyboardInterrupt):
            press()
        assert not signals.stop.is_set()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_in_training_the_first_asks_and_the_second_ends(number: int) -> None:
    before = signal.getsignal(number)
    with StopOnSignal() as signals:
        signals(ClusterConnected(""))
        press(number)
        assert signals.stop.is_set()
        with pytest.raises(KeyboardInterrupt):
            press(number)
    assert signal.getsignal(number) is before


def test_the_status_of_a_store_where_nothing_has_begun_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As that of a mistyped one."""
    space = Path(__file__).parents[2] / "search_spaces" / "demo.yaml"
    with pytest.raises(SystemExit) as ended:
        main(["status", str(space), "--store", str(tmp_path / "mistyped")])
    assert ended.value.code == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("no sweep has begun in this store")
    assert not (tmp_path / "mistyped").exists()


def test_a_resumed_sweep_counts_what_was_done_before(capsys: pytest.CaptureFixture[str]) -> None:
    before = CellState(make_cell(seed=3), "done", {"in_distribution": "done"})
    with SweepView() as view:
        view(SweepSurveyed("tiny", "/store", Survey([before, *SURVEY.states])))
        view(CellStarted(FIRST.id, at=10.0))
        view(CellFinished(FIRST.id, at=85.0))
        (done,) = [line for line in capsys.readouterr().out.splitlines() if FIRST.id in line]
        assert done.startswith("[2/3] done")
        assert "2 done" in view._summary()
        assert "33% of 12.3k tokens" in view._summary()
