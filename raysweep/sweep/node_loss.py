"""Work on nodes that may vanish: tried again where a node went away, however often that happens."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

from raysweep.cluster.capacity import nodes
from raysweep.sweep.failures import process_lost

# Within so many seconds Ray sees that a node is gone; what ran there fails at once.
NODE_LOSS_TIMEOUT_S = 30.0

_T = TypeVar("_T")


def retry_on_node_loss(work: Callable[[], _T], several_workers: bool = False) -> _T:
    """The result of the work, which is retried if one of its processes is lost while a node of the cluster goes away.

    Preempted nodes are not a cell's fault, and there is no limit to their number. Ray would count them as failures.
    With several workers those that are left fail in ways of their own.
    """
    while True:
        before = nodes()
        try:
            return work()
        except Exception as error:
            lost = process_lost(error)
            if not (several_workers or lost) or not _node_gone(before, NODE_LOSS_TIMEOUT_S if lost else 0.0):
                raise
            logging.getLogger(__name__).warning("a node went away: trying again", exc_info=True)


def _node_gone(before: dict[str, Any], timeout: float) -> bool:
    """Whether a node of those before is gone, or is seen to be within so many seconds."""
    deadline = time.monotonic() + timeout
    while before.keys() <= nodes().keys():
        if time.monotonic() >= deadline:
            return False
        time.sleep(1.0)
    return True
