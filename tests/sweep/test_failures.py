"""What counts as a failure, and what is said of it, without a cluster."""

from pathlib import Path

import pytest
from ray import exceptions
from ray.exceptions import RayTaskError, WorkerCrashedError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from tiny import make_cell

from raysweep.errors import StoreError, UserError
from raysweep.store import Store
from raysweep.store.index import read_all
from raysweep.store.schemas import FAILURES
from raysweep.sweep import failures
from raysweep.sweep.failures import describe, innermost_cause, process_lost, run_and_record

CELL = make_cell()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(failures, "SHUTDOWN", 0.0)
    return Store(str(tmp_path / "store"))


def of_task(cause: Exception) -> RayTaskError:
    return RayTaskError("evaluate_cell", "Traceback (most recent call last): ...", cause)


def chained() -> Exception:
    try:
        try:
            raise MemoryError("no memory for attention")
        except MemoryError as error:
            raise RuntimeError("outer") from error
    except RuntimeError as error:
        return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("plain"), ValueError),
        (chained(), MemoryError),
        (of_task(KeyError("x")), KeyError),
        (WorkerGroupError("2 workers failed", {1: of_task(UserError("no text"))}), UserError),
        (ControllerError(WorkerCrashedError()), WorkerCrashedError),
    ],
    ids=["itself", "its cause", "of a task", "of a worker", "of the controller"],
)
def test_the_innermost_cause_is_the_reason(error: Exception, kind: type[Exception]) -> None:
    assert isinstance(innermost_cause(error), kind)


# Seen in sweeps whose nodes, workers, controllers and raylets were killed, and their kin.
LOSSES = (
    exceptions.ActorDiedError(), exceptions.ActorUnavailableError("gone", None), exceptions.LocalRayletDiedError(),
    exceptions.NodeDiedError("gone"), exceptions.ObjectLostError("00", None, ""), exceptions.OutOfMemoryError("gone"),
    exceptions.OwnerDiedError("00", None, ""), exceptions.RayActorError(), exceptions.RaySystemError("gone"),
    exceptions.WorkerCrashedError(),
)  # fmt: skip


@pytest.mark.parametrize("gone", LOSSES, ids=lambda gone: type(gone).__name__)
def test_every_way_in_which_ray_says_that_a_process_is_gone_is_a_loss(gone: Exception) -> None:
    assert process_lost(gone)
    assert process_lost(ControllerError(gone))
    assert process_lost(WorkerGroupError("failed", {0: ValueError("in the code"), 1: gone}))
    assert process_lost(WorkerGroupError("failed", {0: WorkerHealthCheckFailedError("no answer", failure=gone)}))


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (WorkerCrashedError(), True),
        (ControllerError(WorkerCrashedError()), True),
        (WorkerGroupError("failed", {0: WorkerCrashedError()}), True),
        (of_task(ValueError("in the code")), False),
        (WorkerGroupError("failed", {0: ValueError("in the code")}), False),
        (ValueError("in the code"), False),
    ],
)
def test_a_process_that_is_lost_is_told_from_code_that_fails(error: Exception, lost: bool) -> None:
    assert process_lost(error) is lost


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("the corpus is gone"), "the corpus is gone"),
        (ValueError("first line\n\n  last line\n"), "ValueError: last line"),
        (RuntimeError("RuntimeError: said twice"), "RuntimeError: said twice"),
        (KeyError(), "KeyError: "),
    ],
)
def test_an_error_is_one_line(error: Exception, line: str) -> None:
    assert describe(error) == line


def test_a_failure_is_recorded_and_success_takes_it_back(store: Store) -> None:
    def fails() -> None:
        raise of_task(ValueError("no such layer"))

    assert run_and_record(store, CELL, "quantized", fails) == "ValueError: no such layer"
    rows = read_all(store, "failures/quantized", FAILURES)
    assert [row["error"] for row in rows[CELL.id]] == ["ValueError: no such layer"]
    assert run_and_record(store, CELL, "quantized", lambda: None) is None
    assert read_all(store, "failures/quantized", FAILURES) == {}


def test_where_the_store_is_at_fault_no_cell_is_blamed(store: Store) -> None:
    def fails() -> None:
        raise of_task(StoreError("the disk is full"))

    with pytest.raises(StoreError, match="the disk is full"):
        run_and_record(store, CELL, "train", fails)
    assert read_all(store, "failures/train", FAILURES) == {}
