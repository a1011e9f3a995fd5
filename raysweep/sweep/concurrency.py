"""How many cells train at once: as many as the cluster has slots for, as its nodes come and go."""

from __future__ import annotations

import time
from collections.abc import Callable

from ray.tune.search.basic_variant import BasicVariantGenerator

from raysweep.cluster.capacity import (
    DRIVER,
    TRIAL_MEMORY,
    autoscaler_limits,
    autoscaling_configuration,
    cells_on,
    max_concurrent_cells,
    nodes,
)
from raysweep.errors import UserError
from raysweep.space.space import Space
from raysweep.sweep.events import Event, NodesChanged, Waiting

# How often, in seconds, a sweep looks which nodes there are.
REFRESH_EVERY = 5.0


class ConcurrencyController:
    """Sets the number of trials that Tune runs at once.

    `shared` says that the cluster may change: its nodes come and go, and an autoscaler may bring some. Raises `UserError`
    where it can never hold a cell.
    """

    def __init__(self, space: Space, emit: Callable[[Event], None], shared: bool) -> None:
        self.generator = BasicVariantGenerator()
        self._space, self._emit, self._shared = space, emit, shared
        self._autoscaling = autoscaling_configuration() if shared else None
        self._refreshed: float | None = None
        self._alive: set[str] = set()
        self._waiting = ""
        self.nodes_lost = 0
        """How many nodes have gone since the sweep began."""
        self.refresh()
        safe = any(DRIVER in node for node in nodes().values())
        self.trial_resources = {DRIVER: 0.001} if safe else {}
        """What a trial asks for beside memory: a place on a node that is not taken away, where there is one."""

    def room(self) -> int:
        """How many cells can train at once on the nodes that there are now."""
        return cells_on(self._space, list(nodes().values()))

    def start_no_more(self) -> None:
        """Have no further cell started."""
        self.generator.set_finished()

    def refresh(self, now: bool = False) -> None:
        """See which nodes there are, and which the autoscaler would bring; every few seconds, unless it must be `now`."""
        first = self._refreshed is None
        if self._refreshed is not None and not now and time.monotonic() - self._refreshed < REFRESH_EVERY:
            return
        self._refreshed = time.monotonic()
        alive = nodes()
        self.nodes_lost += len(self._alive - set(alive))
        if self._alive and len(alive) != len(self._alive):
            cpus, gpus = (sum(node.get(name, 0) for node in alive.values()) for name in ("CPU", "GPU"))
            self._emit(NodesChanged(len(self._alive), len(alive), cpus, gpus))
        self._alive = set(alive)
        limits = autoscaler_limits(self._autoscaling)
        capacity = max_concurrent_cells(self._space, list(alive.values()), limits)
        why_none = capacity.why_none or _too_little_memory(list(alive.values()))
        if first and why_none and (capacity.grows is False or not self._shared):
            raise UserError(f"{why_none}: lower resources in the search space" if capacity.why_none else why_none)
        # One more than can train, so that a trial's own start overlaps the training of the one before it.
        self.generator.max_concurrent = capacity.cells + 1
        hope = (
            "the autoscaler starts some"
            if capacity.grows
            else "add nodes, or stop and lower resources in the search space"
        )
        waiting = f"{why_none}: {hope}" if why_none else ""
        if waiting != self._waiting:
            self._waiting = waiting
            self._emit(Waiting(waiting))


def _too_little_memory(nodes: list[dict[str, float]]) -> str:
    """Why no trial can start, where none of the nodes has the memory for one; else nothing."""
    if any(node.get("memory", 0) >= TRIAL_MEMORY for node in nodes):
        return ""
    needed = f"{TRIAL_MEMORY / 1e6:.0f} MB"
    return (
        f"no node offers Ray the {needed} of memory that a trial asks for: start them with more (`ray start --memory`)"
    )
