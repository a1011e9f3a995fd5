"""A sweep that is to end in an orderly way tells its workers, which write a checkpoint each before it ends them.

The word goes through the cluster's own table of keys (the GCS), which every process of the sweep is connected to: asking
there takes a worker less than a millisecond.
"""

from __future__ import annotations

import os

import ray
from ray.experimental import internal_kv

from raysweep.cluster.environment import PATIENCE, STOP_WAIT

_KEY = b"raysweep-ending"


def patience() -> float:
    """Seconds for which the sweep waits for the checkpoints."""
    return float(os.environ.get(STOP_WAIT) or PATIENCE)


def ask() -> None:
    """Tell the workers of this sweep, which is a job of Ray's."""
    internal_kv._internal_kv_put(_KEY, b"1", namespace=_namespace())


def forget() -> None:
    """A sweep begins; an earlier one of the same process, which is the same job, may have been told to end."""
    internal_kv._internal_kv_del(_KEY, namespace=_namespace())


def is_asked_for() -> bool:
    """Whether the sweep of this worker is about to end."""
    return internal_kv._internal_kv_get(_KEY, namespace=_namespace()) is not None


def _namespace() -> bytes:
    return f"raysweep-{ray.get_runtime_context().get_job_id()}".encode()
