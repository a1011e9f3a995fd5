"""What Ray Train leaves behind where the workers of a cell cannot be set up: their resources, which nobody gives back.

A group of workers that were started, but could not be made to talk to each other (NCCL is missing, a port is closed, a node
went away in that moment), is dropped by Ray Train's controller with its placement group. The next attempt, or the next cell,
then waits for those resources for ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ray.train.v2._internal.execution.callback import WorkerGroupCallback

if TYPE_CHECKING:
    from ray.train.v2._internal.execution.worker_group import WorkerGroup


class RemoveFailedGroup(WorkerGroupCallback):
    """Ends the workers of a group whose start fails, and gives their resources back.

    Ray Train makes one in each controller, by RAY_TRAIN_CALLBACKS (`raysweep.cluster.environment`), before the callbacks
    of its own that may fail.
    """

    def __init__(self) -> None:
        self._started: WorkerGroup | None = None

    @contextmanager
    def on_worker_group_start(self) -> Iterator[None]:
        self._started = None
        try:
            yield
        except Exception:
            if self._started is not None:
                self._started.get_worker_group_state().shutdown()
            raise
        finally:
            self._started = None

    def after_worker_group_start(self, worker_group: WorkerGroup) -> None:
        self._started = worker_group
