"""What Ray Train leaves behind where a cell's workers, or its controller, are lost while workers start: their resources.

Workers that were given resources, but could not be made to talk to each other or begin (NCCL is missing, a port is closed, a
node goes away in that moment), are dropped by Ray Train's controller with their placement group. A controller that goes with
its node while it waits for workers leaves its placement group, too: Ray removes none before the job ends. The next attempt,
or the next cell, then waits for those resources for ever.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import ray
from ray._raylet import PlacementGroupID
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.util import placement_group, placement_group_table, remove_placement_group
from ray.util.placement_group import PlacementGroup

if TYPE_CHECKING:
    from ray.train.v2._internal.execution.context import TrainRunContext
    from ray.train.v2._internal.execution.worker_group import WorkerGroup


def remove_groups(cell: str) -> None:
    """Give back what earlier controllers of a cell left, of which there is none now."""
    for group, about in placement_group_table().items():
        if about["name"].startswith(_prefix(cell)) and about["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group))))


def _prefix(cell: str) -> str:
    # Another sweep on the cluster may train the same cell.
    return f"{cell}/{ray.get_runtime_context().get_job_id()}/"


def _named_group(cell: str, bundles: list[dict[str, float]], **settings: Any) -> PlacementGroup:
    group: PlacementGroup = placement_group(bundles, name=f"{_prefix(cell)}{uuid.uuid4().hex}", **settings)
    return group


class RemoveFailedGroup(WorkerGroupCallback, ControllerCallback):
    """Ends the workers of a group that was started and never shut down, and gives their resources back.

    Ray Train makes one for each controller, by RAY_TRAIN_CALLBACKS (`raysweep.cluster.environment`), before the callbacks
    of its own that may fail.
    """

    def __init__(self) -> None:
        self._workers: Any = None

    def after_controller_start(self, train_run_context: TrainRunContext) -> None:
        from ray.train.v2._internal.execution.worker_group import worker_group

        # By its name it is found when nobody is left who knows it; Ray Train gives it none, and says it to nobody before it
        # is there.
        named = partial(_named_group, str(train_run_context.get_run_config().name))
        worker_group.placement_group = named  # type: ignore[attr-defined]

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
