"""Plan minus done -> Tuner -> exit status.

`survey` computes from the search space and the store alone what is done, diverged, failed and left. `run` trains and
evaluates what is not done, with a fresh Ray Tune `Tuner` over just those cells, and surveys again: the scheduler's own
account of what happened is never asked.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from raysweep.cli import messages as printing
from raysweep.cli import panel as progress
from raysweep.cluster import connection as cluster
from raysweep.errors import UserError
from raysweep.space.cell import Cell, Space
from raysweep.space.corpus import Corpus
from raysweep.store import Store, lock, sessions
from raysweep.store import index as tables
from raysweep.store.schemas import FAILURES, PLAN
from raysweep.store.store import PLANNED, TRAIN
from raysweep.sweep import trackers as loggers
from raysweep.sweep.cost import DEVICES

if TYPE_CHECKING:
    from raysweep.corpora.loader import TokenizedCorpus

INTERRUPTED = 130

log = logging.getLogger("raysweep")


@dataclass
class CellState:
    """Where one planned cell stands. `training` is done, diverged, failed, started or new; an evaluation is done, failed
    or new (those of a diverged cell are not asked for)."""

    cell: Cell
    training: str
    evaluations: dict[str, str] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    """Stage -> its last error."""
    versions: str = ""
    """What it was trained under, once it is."""

    @property
    def complete(self) -> bool:
        return self.training in ("done", "diverged") and set(self.evaluations.values()) <= {"done"}


@dataclass
class Survey:
    states: list[CellState]

    def count(self, *training: str) -> int:
        return sum(state.training in training for state in self.states)

    @property
    def left(self) -> list[CellState]:
        return [state for state in self.states if not state.complete]

    def counts(self, running: Iterable[str] = ()) -> dict[str, dict[str, int]]:
        """What `status --json` prints. Cells that are running are not also counted as failed or left."""
        running = set(running) & {state.cell.id for state in self.states if state.training not in ("done", "diverged")}
        cells = dict.fromkeys(("planned", "done", "running", "failed", "diverged", "left"), 0)
        evaluations = dict.fromkeys(("planned", "done", "failed", "left"), 0)
        for state in self.states:
            cells["planned"] += 1
            if state.cell.id in running:
                cells["running"] += 1
            else:
                cells[{"started": "left", "new": "left"}.get(state.training, state.training)] += 1
            for outcome in state.evaluations.values():
                evaluations["planned"] += 1
                evaluations["left" if outcome == "new" else outcome] += 1
        return {"cells": cells, "evaluations": evaluations}

    def versions(self) -> dict[str, int]:
        """The versions that cells were trained under, and how many by each."""
        return dict(Counter(state.versions for state in self.states if state.versions))


def survey(store: Store, space: Space) -> Survey:
    """Read the store and say where each planned cell stands."""
    from raysweep.training import checkpoint

    trained = tables.finished(store)
    evaluated = {e.task: tables.evaluated(store, e.task, e.model_dump()) for e in space.evaluations}
    failures = {stage: tables.read_all(store, f"failures/{stage}", FAILURES) for stage in (TRAIN, *evaluated)}
    begun = set(store.directories(TRAIN))

    def error(cell: Cell, stage: str) -> str | None:
        rows = failures[stage].get(cell.id)
        return str(rows[0]["error"]) if rows else None

    states = []
    for cell in space.cells:
        row = trained.get(cell.id)
        state = CellState(cell, row["status"] if row else "new")
        states.append(state)
        if row is not None:
            state.versions = f"raysweep {row['raysweep_version']}, torch {row['torch_version']}"
        if row is None and (failed := error(cell, TRAIN)) is not None:
            state.training, state.errors[TRAIN] = "failed", failed
        elif row is None and cell.id in begun and checkpoint.names(store, store.run_directory(cell.id)):
            state.training = "started"
        if state.training == "diverged":
            continue
        for task, rows in evaluated.items():
            if row and cell.id in rows:
                state.evaluations[task] = "done"
            elif (failed := error(cell, task)) is not None:
                state.evaluations[task], state.errors[task] = "failed", failed
            else:
                state.evaluations[task] = "new"
    return Survey(states)


def plan(space: Space) -> dict[str, Any]:
    """What `plan --json` prints."""
    cells = [cell.describe() for cell in space.cells]
    flops = sum(cell.flops for cell in space.cells)
    totals = {
        "cells": len(cells),
        "tokens": sum(cell.steps * cell.tokens_per_step for cell in space.cells),
        "flops": flops,
    }
    devices = {name: asdict(device) | {"hours": device.hours(flops)} for name, device in DEVICES.items()}
    return {"cells": cells, "totals": totals, "devices": devices}


def run(space: Space, store: Store, resume_command: str, train: bool = True) -> int:
    """Do everything the store lacks; returns the exit status: 0 complete, 1 something failed, 130 interrupted.

    Without `train` it evaluates the cells that are trained and leaves the others alone. Raises `UserError` before
    anything is started where the store, its lock, the corpus or the cluster stand in the way.
    """
    loggers.check(space)
    end_by_interrupt()
    store.probe()
    with lock.Lock(store) as held:
        before = survey(store, space)
        if not train:
            before = _trained(before, space, store)
            space = space.model_copy(update={"cells": tuple(state.cell for state in before.states)})
            before = _with_weights(before, store)
            if store.read(PLANNED) is None:
                write_plan(space, store)
        else:
            if again := _without_weights(before, store):
                log.warning(
                    "%d cells lack evaluations and have no weights in %s, such as %s: they are trained again, and what "
                    "they had been evaluated to is set aside", len(again), store.location, min(again),
                )  # fmt: skip
            write_plan(space, store)
        store.running = True
        if before.states:
            printing.announce(space, store, before)
        interrupted = False
        if before.left:
            try:
                with sessions.recorded(store, space.name):
                    interrupted = _train(before, space, store, held, train)
            except KeyboardInterrupt:
                interrupted = True
        after = survey(store, space)
        if after.left and interrupted:
            printing.interrupted(after, resume_command)
            return INTERRUPTED
        retry = "run the same command again to retry what failed"
        if not train and _without_weights(after, store):
            retry = "`raysweep run` trains again what has no weights"
        printing.conclude(space, store, after, retry)
        return 1 if after.left else 0


def end_by_interrupt() -> None:
    """Let `kill`, and a cluster that shuts down, end a sweep as Ctrl-C does; only a main thread can."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda number, frame: os.kill(os.getpid(), signal.SIGINT))


def write_plan(space: Space, store: Store) -> None:
    """The cells as planned now; a store's first table."""
    store.write_table(PLANNED, [cell.describe() for cell in space.cells], PLAN)


def _trained(now: Survey, space: Space, store: Store) -> Survey:
    """The survey of only those cells that have been trained."""
    trained = [state for state in now.states if state.training in ("done", "diverged")]
    if not trained:
        raise UserError(f"no cell of {space.name} is trained in {store.location}: `raysweep run` trains them")
    return Survey(trained)


def _with_weights(now: Survey, store: Store) -> Survey:
    """The survey without the cells that lack evaluations and whose weights the store does not have."""
    gone = _without_weights(now, store)
    if gone:
        log.warning(
            "%d cells that lack evaluations have no weights in %s, such as %s: `raysweep run` trains them again",
            len(gone), store.location, min(gone),
        )  # fmt: skip
    return Survey([state for state in now.states if state.cell.id not in gone])


def _without_weights(now: Survey, store: Store) -> set[str]:
    """The trained cells that lack evaluations and whose final weights the store does not have."""
    from raysweep.training import checkpoint

    begun = set(store.directories(TRAIN))

    def steps(cell: Cell) -> set[int]:
        names = checkpoint.names(store, store.run_directory(cell.id)) if cell.id in begun else []
        return {checkpoint.step_of(name) for name in names}

    return {s.cell.id for s in now.left if s.training == "done" and s.cell.steps not in steps(s.cell)}


def _corpora(left: list[CellState], tasks: Collection[str], store: Store, shared: bool = False) -> dict[str, str]:
    """Build what the cells train on, here and now, where an error can be shown; its fingerprints by specification.

    What training and these evaluation tasks read must hold a sequence, or nothing is started.

    A cluster that is `shared` has nodes that find it in the store.
    """
    from raysweep.corpora.shared import publish
    from raysweep.evaluation import out_of_distribution

    fingerprints, built = {}, []
    lengths: dict[Corpus, set[int]] = {}
    for state in left:
        lengths.setdefault(state.cell.corpus, set()).add(state.cell.sequence_length)
    for corpus, needed in lengths.items():
        opened = _opened(corpus, store)
        for shard in _read_by(tasks):
            opened.sequences(shard, max(needed))
        if "out_of_distribution" in tasks:
            out_of_distribution.domains(opened, max(needed))
        fingerprints[corpus.key] = opened.fingerprint
        built.append(opened)
    store.check_corpora(fingerprints)
    if shared:
        with progress.bars() as step:
            for opened in built:
                publish(opened, store, step)
    return fingerprints


def _opened(corpus: Corpus, store: Store) -> TokenizedCorpus:
    """The corpus, built if need be; where its text is gone, as it was built for this store."""
    from raysweep.corpora.loader import open_corpus
    from raysweep.corpora.shared import obtain

    try:
        return open_corpus(corpus)
    except UserError as error:
        known = store.corpora().get(corpus.key)
        if known is None:
            raise
        try:
            opened = obtain(corpus, known, store)
        except UserError:
            raise error from None
        log.warning("%s: going on with the corpus as it was built before, %s", error, known)
        return opened


def _read_by(tasks: Iterable[str]) -> list[str]:
    """The shards that training and these tasks read."""
    shards = ["pretraining/train", "pretraining/validation"]
    for task in tasks:
        if task.startswith("finetune_"):
            shards += [f"{task}/train", f"{task}/test"]
        if task != "out_of_distribution":
            shards.append("pretraining/test")
    return list(dict.fromkeys(shards))


def _train(before: Survey, space: Space, store: Store, held: lock.Lock, train: bool) -> bool:
    """Run what is left as Tune trials; True if a signal stopped it."""
    from raysweep.sweep.trial import TRAIN_ENVIRONMENT

    os.environ.update(TRAIN_ENVIRONMENT)
    cluster.set_environment()
    fingerprints = _corpora(
        before.left, [e.task for e in space.evaluations], store, shared=cluster.address() is not None
    )
    from raysweep.sweep import driver

    return driver.train(before, space, store.location, fingerprints, held, train)
