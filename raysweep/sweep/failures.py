"""What counts as a failure, what its reason is, and where it is recorded."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from raysweep.errors import StoreError, UserError
from raysweep.space.cell import Cell
from raysweep.store import Store
from raysweep.store.schemas import FAILURES
from raysweep.store.sessions import now

# Why a trial failed that could not say so itself.
PROCESS_LOST = "its process was lost again and again (killed, or for want of memory?)"

# Within so many seconds a cluster that is being stopped has stopped its trials too.
SHUTDOWN = 3.0


def run_and_record(store: Store, cell: Cell, stage: str, work: Callable[[], object]) -> str | None:
    """Do the work; its error, if any, goes to the store and back to the caller as one line.

    Raises `StoreError` where the store is at fault: then no cell is blamed.
    """
    try:
        work()
    except Exception as error:
        logging.getLogger(__name__).exception("%s of %s failed", stage, cell.id)
        cause = innermost_cause(error)
        if isinstance(cause, StoreError):
            raise cause from None
        line = describe(cause)
        # A cluster that is being stopped takes its actors one by one, this process soon after: that is no failure.
        time.sleep(SHUTDOWN)
        # Where the store is at fault after all this raises.
        store.probe()
        record_failure(store, cell.id, stage, line)
        return line
    store.delete(store.failure_file(cell.id, stage))
    return None


def record_failure(store: Store, cell: str, stage: str, error: str) -> None:
    """Put the last error of what is not done into the store; `stage` is `train` or an evaluation's task."""
    row = {"cell": cell, "stage": stage, "error": error, "failed": now()}
    store.write_table(store.failure_file(cell, stage), [row], FAILURES)


def innermost_cause(error: BaseException) -> BaseException:
    """Where the reason is; Ray's wrappers carry tracebacks in their messages."""
    workers = getattr(error, "worker_failures", None)
    # Of Ray Train's own controller it has the cause here, and nowhere else.
    error = next(iter(workers.values())) if workers else getattr(error, "controller_failure", error)
    while (
        inner := getattr(error, "cause", None) or getattr(error, "_base_exc", None) or error.__cause__
    ) is not None and inner is not error:
        error = inner
    return error


def describe(error: BaseException) -> str:
    """An error as one line: its kind and the last line of its message, or the message alone where it is for the user."""
    if type(error).__name__ == "OutOfMemoryError" and type(error).__module__.startswith("ray."):
        return (
            "its process was killed again and again because the node ran low on memory: have fewer at once by raising cpus "
            "in the search space's resources, or use nodes with more memory"
        )
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    message = lines[-1] if lines else ""
    name = type(error).__name__
    return message if isinstance(error, UserError) or message.startswith(name) else f"{name}: {message}"


def process_lost(error: BaseException) -> bool:
    """Whether it was a process that failed, and not what ran in it."""
    from ray.exceptions import RayError  # In a process that Ray runs in; others read failures, too.

    failures = (getattr(error, "worker_failures", None) or {0: error}).values()
    return any(
        isinstance(innermost_cause(getattr(failure, "health_check_failure", failure)), RayError) for failure in failures
    )
