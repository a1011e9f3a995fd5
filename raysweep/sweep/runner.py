"""A sweep as a function: do what the store lacks of a search space, then report what it has.

`run` trains and evaluates, `evaluate` only evaluates. Both survey the store, run a fresh Ray Tune `Tuner` over just the
cells that are left, and survey again: the scheduler's own account of what happened is never asked.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from raysweep.cluster.connection import connected
from raysweep.cluster.environment import preserved_environment
from raysweep.corpora.progress import CorpusProgress
from raysweep.corpora.shared import upload
from raysweep.errors import StoreError, UserError
from raysweep.space.hypotheses import paper_hypotheses
from raysweep.space.space import Space
from raysweep.store import Store, declarations
from raysweep.store.lock import Lock
from raysweep.store.results import results
from raysweep.store.schemas import PLAN
from raysweep.store.sessions import recorded
from raysweep.store.store import PLANNED, TRAIN
from raysweep.sweep import trackers
from raysweep.sweep.events import ClusterLost, Event, SweepSurveyed
from raysweep.sweep.failures import PROCESS_LOST, record_failure
from raysweep.sweep.live import live_rows
from raysweep.sweep.prepare_corpora import prepare_corpora
from raysweep.sweep.prepare_texts import prepare_texts
from raysweep.sweep.state import EventBus
from raysweep.sweep.survey import Survey, cells_missing_weights, survey

log = logging.getLogger("raysweep")


@dataclass(frozen=True)
class SweepResult:
    """The outcome of a sweep."""

    space: Space
    """What was asked for; `evaluate` leaves out the cells that are not trained."""
    store: Store
    survey: Survey
    """Where every one of them stands."""

    @property
    def complete(self) -> bool:
        """Whether every cell and every evaluation is in the store."""
        return not self.survey.left

    @property
    def failed(self) -> dict[str, dict[str, str]]:
        """Cell -> stage (`train` or a task) -> its last error."""
        return self.survey.errors

    @cached_property
    def table(self) -> pa.Table:
        """One row per finished cell, as `raysweep.results` has it."""
        return results(self.space, self.store)


def run(
    space: Space,
    store: str | Path | Store,
    on_event: Callable[[Event], None] | None = None,
    stop: threading.Event | None = None,
) -> SweepResult:
    """Train and evaluate what the store lacks of a search space, on a Ray cluster.

    It uses the cluster that RAY_ADDRESS names or `ray start` left, else starts one on this machine that listens on
    localhost and ends with the sweep. It prints nothing, installs no signal handlers and leaves `os.environ` as it was.
    Killed at any moment, it loses nothing that was finished, and the next call resumes.

    Parameters
    ----------
    space
        What to train and evaluate; `raysweep.load` reads one from a file.
    store
        The folder or URI of the results.
    on_event
        Called with everything that happens (`raysweep.Event`), mostly in this thread. An exception in it ends the sweep.
    stop
        Set it, from a signal handler or another thread, to end the sweep before it is complete.

    Returns
    -------
    SweepResult
        What is done, what failed, and the table of results. A failed cell raises nothing: `result.failed` names it, and
        the next call tries again.

    Raises
    ------
    UserError
        If the store, its lock, a corpus or the cluster cannot be used; raised before anything starts.
    StoreError
        If the store is lost during the sweep.
    KeyboardInterrupt
        On Ctrl-C, if no handler catches it. Nothing that was finished is lost.

    Examples
    --------
    >>> space = raysweep.load("search_spaces/demo.yaml")
    >>> result = raysweep.run(space, "runs/demo", on_event=print)      # doctest: +SKIP
    >>> result.complete, len(result.table)                             # doctest: +SKIP
    (True, 16)
    """
    return _complete(space, store, on_event, stop, train=True)


def evaluate(
    space: Space,
    store: str | Path | Store,
    on_event: Callable[[Event], None] | None = None,
    stop: threading.Event | None = None,
) -> SweepResult:
    """Evaluate the cells that are trained, and train nothing.

    A trained cell that lacks evaluations and has lost its weights is skipped with a warning and stays incomplete.

    Parameters
    ----------
    space, store, on_event, stop
        As for `raysweep.run`.

    Returns
    -------
    SweepResult
        Of the cells that are trained.

    Raises
    ------
    UserError, StoreError, KeyboardInterrupt
        As `raysweep.run` does, and where no cell is trained.

    Examples
    --------
    >>> space = raysweep.load("search_spaces/demo.yaml")
    >>> raysweep.evaluate(space, "runs/demo").complete                 # doctest: +SKIP
    True
    """
    return _complete(space, store, on_event, stop, train=False)


def write_plan(space: Space, store: Store) -> None:
    """The cells as planned now; a store's first table."""
    store.write_table(PLANNED, [cell.describe() for cell in space.cells], PLAN)


def _complete(
    space: Space,
    location: str | Path | Store,
    on_event: Callable[[Event], None] | None,
    stop: threading.Event | None,
    train: bool,
) -> SweepResult:
    trackers.check(space)
    # One of its own: while the sweep runs it waits for a store that is away.
    store = Store(location.location if isinstance(location, Store) else str(location))
    store.probe()
    bus = EventBus()
    with Lock(store, bus.state.record) as lock:
        before = survey(store, space)
        _declare(space, store, before)
        if train:
            _warn_of_lost_weights(before, store)
            write_plan(space, store)
        else:
            before = _trained(before, space, store)
            space = space.model_copy(update={"cells": tuple(state.cell for state in before.states)})
            before = _with_weights(before, store)
            if store.read(PLANNED) is None:
                write_plan(space, store)
        store.running = True
        if on_event is not None:
            bus.subscribe(on_event)
        bus(SweepSurveyed(space.name, store.location, before, space.resources.train.gpus > 0))
        if before.left:
            with preserved_environment(), recorded(store, space.name), live_rows(store, bus), suppress(_Stopped):
                _train(before, space, store, bus, lock, stop or threading.Event(), train)
        after = survey(store, space)
        store.running = False
        return SweepResult(space, store, after)


def _declare(space: Space, store: Store, before: Survey) -> None:
    """Keep which hypotheses there were, and how many cells were finished."""
    hypotheses = space.hypotheses or paper_hypotheses()
    finished = sum(state.trained for state in before.states)
    declarations.record(store, space.name, hypotheses.digest, finished, len(before.states))


class _Stopped(Exception):
    """The caller asked for an end before anything was started."""


def _train(
    before: Survey, space: Space, store: Store, bus: EventBus, lock: Lock, stop: threading.Event, train: bool
) -> None:
    """Run what is left as Tune trials."""

    def report(progress: CorpusProgress) -> None:
        bus(progress)
        if stop.is_set():
            raise _Stopped

    corpora = prepare_corpora(before.left, space.evaluations, store, report, space.measure)
    texts = prepare_texts(before.left, space.evaluations, corpora, store, report)
    with connected(lambda reason: bus(ClusterLost(reason)), space.code) as connection:
        from raysweep.sweep.driver import train_cells  # After Ray's environment is set.
        from raysweep.sweep.room import check_room

        if connection.shared:
            for corpus, opened in corpora.items():
                texts.setdefault(corpus.name, []).append(opened)
            for opened in (text for each in texts.values() for text in each):
                upload(opened, store, report)
            check_room(texts)
        fingerprints = {corpus.key: opened.fingerprint for corpus, opened in corpora.items()}
        train_cells(before, space, store.location, fingerprints, train, connection, bus, lock, stop)
        if bus.state.process_lost and not bus.state.stop_reason:
            for cell in bus.state.process_lost:
                record_failure(store, cell, TRAIN, PROCESS_LOST)
        if bus.state.stop_reason:
            raise StoreError(bus.state.stop_reason)


def _trained(before: Survey, space: Space, store: Store) -> Survey:
    """The survey of only those cells that have been trained."""
    trained = [state for state in before.states if state.trained]
    if not trained:
        raise UserError(f"no cell of {space.name} is trained in {store.location}: `raysweep run` trains them")
    return Survey(trained)


def _with_weights(before: Survey, store: Store) -> Survey:
    """The survey without the cells that lack evaluations and whose weights the store does not have."""
    gone = cells_missing_weights(before, store)
    if gone:
        log.warning(
            "%d cells that lack evaluations have no weights in %s, such as %s: `raysweep run` trains them again",
            len(gone), store.location, min(gone),
        )  # fmt: skip
    return Survey([state for state in before.states if state.cell.id not in gone])


def _warn_of_lost_weights(before: Survey, store: Store) -> None:
    if gone := cells_missing_weights(before, store):
        log.warning(
            "%d cells lack evaluations and have no weights in %s, such as %s: they are trained again, and their "
            "earlier evaluations are renamed and recomputed", len(gone), store.location, min(gone),
        )  # fmt: skip
