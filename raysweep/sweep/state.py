"""The state of a running sweep: what its events add up to."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from raysweep.sweep.cost import relative_seconds
from raysweep.sweep.events import (
    CellFailed,
    CellFinished,
    CellReported,
    CellStarted,
    ClusterConnected,
    Event,
    StoreLost,
    SweepSurveyed,
    Waiting,
)

# Seconds of training after which the tokens trained say how fast it goes.
SETTLED = 60.0

_SHOWN = ("validation_loss", "effective_rank_W")


@dataclass(frozen=True)
class Pace:
    """How far a sweep's training is, and how fast it goes."""

    tokens_per_second: float
    seconds_left: float | None
    """None while nothing is known of the rate."""
    share: float
    """Of the tokens of all cells of the search space, 0 to 1."""


@dataclass
class RunState:
    """Apply every event to it in turn; it holds nothing that did not come by one."""

    dashboard: str = ""
    waiting: str = ""
    """Why no cell can start at present."""
    stop_reason: str = ""
    """Why the sweep cannot go on; empty while it can."""
    complete_before: int = 0
    """Cells that were complete when the sweep began."""
    tokens_before: int = 0
    """Tokens of the cells that were trained when the sweep began."""
    planned: dict[str, int] = field(default_factory=dict)
    """The cells that were left when the sweep began, and the tokens of each."""
    untrained: set[str] = field(default_factory=set)
    """Those of them that were not trained."""
    seconds_per_token: dict[str, float] = field(default_factory=dict)
    """Of the cells that were left, by `cost.relative_seconds`: a token takes longer in a larger model or a smaller batch."""
    running: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Cell -> since when, and what it reported last; `starting` until the first report of one that is to be trained."""
    training: set[str] = field(default_factory=set)
    """The cells that have reported and are not trained to their end, since their trial started."""
    kept: set[str] = field(default_factory=set)
    """The cells that have written the checkpoint that the sweep's end asks for."""
    finished: set[str] = field(default_factory=set)
    failed: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Cell -> its errors."""
    process_lost: list[str] = field(default_factory=list)
    """The cells whose process was lost for good."""
    _first_tokens: dict[str, int] = field(default_factory=dict)
    _last_tokens: dict[str, int] = field(default_factory=dict)
    """At the first and the last report of each cell: what this run has trained is their difference."""
    _training_since: float | None = None
    """When the first cell reported; starting a cluster says nothing about how fast it trains."""

    def apply(self, event: Event) -> None:
        """Take an event in; those that change nothing here are ignored."""
        match event:
            case SweepSurveyed():
                left = event.survey.left
                tokens = {s.cell.id: s.cell.steps * s.cell.tokens_per_step for s in event.survey.states}
                self.complete_before = len(event.survey.states) - len(left)
                self.tokens_before = sum(tokens[s.cell.id] for s in event.survey.states if s.trained)
                self.planned = {s.cell.id: tokens[s.cell.id] for s in left}
                self.seconds_per_token = {
                    s.cell.id: relative_seconds(s.cell, event.gpu) / tokens[s.cell.id] for s in left
                }
                # Last: the lock's thread asks for the pace of these at any time.
                self.untrained = {s.cell.id for s in left if not s.trained}
            case ClusterConnected():
                self.dashboard = event.dashboard
            case Waiting():
                self.waiting = event.reason
            case CellStarted():
                self.training.discard(event.cell)
                cell = self.running.setdefault(event.cell, {"cell": event.cell, "since": event.at})
                if event.cell in self.untrained and event.cell not in self._last_tokens:
                    cell["starting"] = True
            case CellReported():
                self._report(event)
            case CellFinished():
                self.training.discard(event.cell)
                self.running.pop(event.cell, None)
                self.finished.add(event.cell)
            case CellFailed():
                self.training.discard(event.cell)
                self.running.pop(event.cell, None)
                self.failed[event.cell] = event.errors
                if event.process_lost:
                    self.process_lost.append(event.cell)
            case StoreLost():
                self.stop_reason = event.reason

    def _report(self, event: CellReported) -> None:
        cell = self.running.setdefault(event.cell, {"cell": event.cell, "since": event.at})
        cell |= {"step": event.step, "steps": event.steps, "tokens_per_second": event.tokens_per_second}
        (self.training.add if event.step < event.steps else self.training.discard)(event.cell)
        if event.kept:
            self.kept.add(event.cell)
        cell |= {name: event.row[name] for name in _SHOWN if name in event.row}
        if cell.pop("starting", False):
            cell["since"] = event.at
        if self._training_since is None:
            self._training_since = event.at
        self._first_tokens.setdefault(event.cell, event.tokens)
        self._last_tokens[event.cell] = event.tokens

    @property
    def ended(self) -> int:
        """How many cells have finished or failed."""
        return len(self.finished) + len(self.failed)

    @property
    def interrupted(self) -> bool:
        """Whether cells are left that have neither finished nor failed."""
        return self.ended < len(self.planned)

    @property
    def tokens_left_before(self) -> int:
        """Tokens that were left to train when the sweep began."""
        return sum(self.planned[cell] for cell in self.untrained)

    @property
    def tokens_planned(self) -> int:
        """Tokens of all cells of the search space."""
        return self.tokens_before + self.tokens_left_before

    @property
    def tokens_trained(self) -> int:
        """Tokens that cells have been trained on, in this run and before."""
        # One that trains again, since its weights were lost, counts as it did before.
        return self.tokens_before + sum(
            tokens for cell, tokens in list(self._last_tokens.items()) if cell in self.untrained
        )

    def counts(self) -> dict[str, int]:
        """The cells of the search space, by state; those that were done before are done."""
        starting = sum(cell.get("starting", False) for cell in list(self.running.values()))
        return {
            "done": self.complete_before + len(self.finished),
            "running": len(self.running) - starting,
            "starting": starting,
            "failed": len(self.failed),
            "waiting": len(self.planned) - self.ended - len(self.running),
        }

    def pace(self, now: float | None = None) -> Pace:
        """How far training is and how fast it goes at a time (by default now), in seconds since 1970.

        The seconds left are those that the cells' tokens would take by `cost.relative_seconds`, over how many of those
        pass in a second here. Evaluations count by what they have slowed training so far.
        """
        now = time.time() if now is None else now
        elapsed = 0.0 if self._training_since is None else now - self._training_since
        reached = self._last_tokens.copy()
        if elapsed < SETTLED:
            # The first reports come after few tokens and a long start; what the workers measure tells more.
            rates = {id: cell.get("tokens_per_second", 0.0) for id, cell in list(self.running.items())}
        else:
            rates = {cell: (tokens - self._first_tokens[cell]) / elapsed for cell, tokens in reached.items()}
        weights = self.seconds_per_token
        left = sum(weights[cell] * (self.planned[cell] - reached.get(cell, 0)) for cell in self.untrained)
        passing = sum(weights.get(cell, 0.0) * rate for cell, rate in rates.items())
        planned = self.tokens_planned
        return Pace(
            sum(rates.values()),
            left / passing if passing > 0 else None,
            self.tokens_trained / planned if planned else 1.0,
        )

    def record(self) -> dict[str, Any]:
        """What `raysweep status` is told of a running sweep, as JSON has it."""
        pace = self.pace()
        return {
            "dashboard": self.dashboard,
            "waiting": self.waiting,
            "running": {cell: dict(shown) for cell, shown in list(self.running.items())},
            "finished": len(self.finished),
            "tokens_per_second": pace.tokens_per_second,
            "seconds_left": pace.seconds_left,
            "share": pace.share,
        }


class EventBus:
    """Tells every subscriber what happens, in the order in which they subscribed; the state comes first."""

    def __init__(self) -> None:
        self.state = RunState()
        self._subscribers: list[Callable[[Event], None]] = []

    def subscribe(self, subscriber: Callable[[Event], None]) -> None:
        """Have it called with every event from now on; an exception in it ends the sweep."""
        self._subscribers.append(subscriber)

    def __call__(self, event: Event) -> None:
        self.state.apply(event)
        for subscriber in self._subscribers:
            subscriber(event)
