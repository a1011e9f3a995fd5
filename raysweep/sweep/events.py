"""The events of a sweep: immutable values, each delivered once to every subscriber."""

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
    """What was done before the sweep began, and so what is left to do. The first event of a sweep."""

    space: str
    store: str
    survey: Survey
    gpu: bool = False
    """Whether cells train on GPUs."""


@dataclass(frozen=True)
class ClusterConnected(_Event):
    """The cluster is connected, and cells are about to start."""

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
    """A cell's trial started. One trial more than can train is started; it waits for a slot."""

    cell: str


@dataclass(frozen=True)
class CellReported(_Event):
    """A cell in training has reached this step."""

    cell: str
    step: int
    steps: int
    tokens: int
    tokens_per_second: float
    row: Mapping[str, Any]
    """Loss and geometry measured at this step, under the tables' column names; empty between two rows."""
    kept: bool = False
    """Whether the checkpoint is written that a sweep that ends has asked for."""


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
    """A worker's warning that the user should see."""

    message: str


@dataclass(frozen=True)
class Ending(_Event):
    """The sweep was asked to end, and waits for the checkpoints of so many cells."""

    cells: int


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
    """Nothing new: sent every few seconds, so that displayed rates and times stay current."""


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
    | Ending
    | StoreLost
    | ClusterLost
    | Heartbeat
)
