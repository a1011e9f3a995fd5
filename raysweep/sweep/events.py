"""What happens in a sweep, as values: each is told once, to whoever subscribed, and never changes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raysweep.corpora.progress import CorpusProgress
from raysweep.sweep.survey import Survey


@dataclass(frozen=True, kw_only=True)
class _Event:
    at: float = field(default_factory=time.time, compare=False, repr=False)
    """When it happened, in seconds since 1970."""


@dataclass(frozen=True)
class SweepSurveyed(_Event):
    """What was done before the sweep began, and so what is going to happen. The first event of a sweep."""

    space: str
    store: str
    survey: Survey


@dataclass(frozen=True)
class ClusterConnected(_Event):
    """The cluster is there, and cells are about to start."""

    dashboard: str
    """Its address, empty where there is none."""


@dataclass(frozen=True)
class NodesChanged(_Event):
    """Nodes joined the cluster, or left it."""

    before: int
    now: int
    cpus: float
    gpus: float
    """Of all nodes together, now."""


@dataclass(frozen=True)
class Waiting(_Event):
    """No cell can start, for this reason; an empty reason ends the wait."""

    reason: str


@dataclass(frozen=True)
class CellStarted(_Event):
    """A cell's trial started. One more than can train is started, and waits for a slot."""

    cell: str


@dataclass(frozen=True)
class CellReported(_Event):
    """A cell in training is at this step."""

    cell: str
    step: int
    steps: int
    tokens: int
    tokens_per_second: float
    row: Mapping[str, Any]
    """What was measured there: loss and geometry under the names of the tables; empty between two rows."""


@dataclass(frozen=True)
class CellFinished(_Event):
    """A cell is trained and evaluated."""

    cell: str


@dataclass(frozen=True)
class CellFailed(_Event):
    """A cell's training or some of its evaluations failed; the errors are in the store, too."""

    cell: str
    errors: tuple[str, ...]
    process_lost: bool = False
    """Whether the trial's process was lost, so that it could not record its error itself."""


@dataclass(frozen=True)
class Warned(_Event):
    """Something that a person should know, said by a worker."""

    message: str


@dataclass(frozen=True)
class StoreLost(_Event):
    """The store is out of reach, or another driver has taken it over: the sweep ends."""

    reason: str


@dataclass(frozen=True)
class ClusterLost(_Event):
    """A process of the local Ray cluster died: the sweep ends."""

    reason: str


@dataclass(frozen=True)
class Heartbeat(_Event):
    """Nothing new: every few seconds, for what shows a rate or a time left."""


Event = (
    SweepSurveyed
    | CorpusProgress
    | ClusterConnected
    | NodesChanged
    | Waiting
    | CellStarted
    | CellReported
    | CellFinished
    | CellFailed
    | Warned
    | StoreLost
    | ClusterLost
    | Heartbeat
)
