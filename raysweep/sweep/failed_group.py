"""What Ray Train leaves behind where the workers of a cell are lost while they start: resources that nobody gives back.

Workers that were given their resources, but could not be made to talk to each other or begin (NCCL is missing, a port is
closed, a node goes away in that moment), are dropped by Ray Train's controller with their placement group, which outlives
it. The next attempt, or the next cell, then waits for those resources for ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback

if TYPE_CHECKING:
    from ray.train.v2._internal.execution.worker_group import WorkerGroup


class RemoveFailedGroup(WorkerGroupCallback, ControllerCallback):
    """Ends the workers of a group that was started and never shut down, and gives their resources back.

    Ray Train makes one in each controller, by RAY_TRAIN_CALLBACKS (`raysweep.cluster.environment`), before the callbacks
    of its own that may fail.
    """

    def __init__(self) -> None:
        self._workers: Any = None

    @contextmanager
    def on_worker_group_start(self) -> Iterator[None]:
        self._end()  # One that failed after its start.
        try:
            yield
        except Exception:
            self._end()
            raise

    def after_worker_group_start(self, worker_group: WorkerGroup) -> None:
        self._workers = worker_group.get_worker_group_state()

    def after_worker_group_shutdown(self, worker_group_context: Any) -> None:
        self._workers = None

    def after_worker_group_abort(self, worker_group_context: Any) -> None:
        self._workers = None

    async def before_controller_shutdown(self) -> None:
        self._end()

    def _end(self) -> None:
        if self._workers is not None:
            workers, self._workers = self._workers, None
            workers.shutdown()
