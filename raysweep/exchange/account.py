"""What a sweep took: wall-clock, work, tokens, and how much of the wall-clock was work."""

from __future__ import annotations

import math
from dataclasses import dataclass

from raysweep.exchange.published import PublishedResults
from raysweep.store.store import TRAIN


@dataclass(frozen=True)
class Account:
    """What a sweep took."""

    sessions: int
    """How often `raysweep run` was called while there was something to do."""
    killed: int
    """Sessions that did not end by themselves; one that is still there counts too."""
    resumed: int
    """Cells whose training was begun more than once."""
    wall_clock: float
    """Seconds in sessions."""
    work: float
    """Core-seconds that trainings and evaluations asked for while they ran."""
    tokens: int
    """Trained on."""
    overhead: float
    """Wall-clock time divided by (work that ended in it / cores): 1 if every core only trained and evaluated. NaN if
    machines other than the driver's worked, or if sessions are unknown."""


def account(published: PublishedResults) -> Account:
    """What the sweep took, from its timings and sessions."""
    resources = published.space.resources
    cores = {TRAIN: resources.train.workers * resources.train.cpus}
    timings, ran = published.timings.to_pylist(), published.sessions.to_pylist()
    work = sum(row["seconds"] * cores.get(row["stage"], resources.evaluate.cpus) for row in timings)
    # In a store that several search spaces share, a cell may have been finished for another one.
    here = [
        row
        for row in timings
        if row["finished"] and any(session["started"] <= row["finished"] <= session["seen"] for session in ran)
    ]
    work_here = sum(row["seconds"] * cores.get(row["stage"], resources.evaluate.cpus) for row in here)
    available = sum((row["seen"] - row["started"]).total_seconds() * row["cores"] for row in ran)
    alone = {row["host"] for row in here} == {row["host"] for row in ran}
    return Account(
        sessions=len(ran),
        killed=sum(not row["ended"] for row in ran),
        resumed=sum(row["starts"] > 1 for row in timings if row["stage"] == TRAIN),
        wall_clock=sum((row["seen"] - row["started"]).total_seconds() for row in ran),
        work=work,
        tokens=sum(published.results["tokens_trained"].to_pylist()),
        overhead=available / work_here if work_here and alone else math.nan,
    )
