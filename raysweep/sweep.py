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
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from raysweep import cluster, lock, progress, tables
from raysweep.corpora import Corpus
from raysweep.devices import DEVICES
from raysweep.errors import StoreError, UserError
from raysweep.space import Cell, Space
from raysweep.store import FAILURES, PLAN, PLANNED, TRAIN, Store

INTERRUPTED = 130

# How often, in seconds, a sweep looks which nodes there are.
LOOK_EVERY = 5.0


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
    from raysweep import checkpoint

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
    store.probe()
    with lock.Lock(store) as held:
        before = survey(store, space)
        if not train:
            before = _trained(before, space, store)
            space = space.model_copy(update={"cells": tuple(state.cell for state in before.states)})
            if store.read(PLANNED) is None:
                _write_plan(space, store)
        else:
            _write_plan(space, store)
        store.running = True
        progress.announce(space, store, before)
        interrupted = False
        if before.left:
            try:
                interrupted = _tune(before.left, space, store, _corpora(before.left, store), held)
            except KeyboardInterrupt:
                interrupted = True
        after = survey(store, space)
        if after.left and interrupted:
            progress.interrupted(after, resume_command)
            return INTERRUPTED
        progress.conclude(space, store, after)
        return 1 if after.left else 0


def _write_plan(space: Space, store: Store) -> None:
    store.write_table(PLANNED, [cell.describe() for cell in space.cells], PLAN)


def _trained(now: Survey, space: Space, store: Store) -> Survey:
    """The survey of only those cells that have been trained."""
    trained = [state for state in now.states if state.training in ("done", "diverged")]
    if not trained:
        raise UserError(f"no cell of {space.name} is trained in {store.location}: `raysweep run` trains them")
    return Survey(trained)


def _corpora(left: list[CellState], store: Store) -> dict[str, str]:
    """Build what the cells train on, here and now, where an error can be shown; its fingerprints by specification."""
    from raysweep.corpora.loader import open_corpus

    fingerprints = {}
    lengths: dict[Corpus, set[int]] = {}
    for state in left:
        lengths.setdefault(state.cell.corpus, set()).add(state.cell.sequence_length)
    for corpus, needed in lengths.items():
        opened = open_corpus(corpus)
        for shard in ("train", "validation"):
            opened.sequences(f"pretraining/{shard}", max(needed))
        fingerprints[corpus.model_dump_json()] = opened.fingerprint
    store.check_corpora(fingerprints)
    return fingerprints


def _tune(left: list[CellState], space: Space, store: Store, fingerprints: dict[str, str], held: lock.Lock) -> bool:
    """Run the cells as Tune trials; True if a signal stopped it."""
    from raysweep.trial import TRAIN_ENVIRONMENT, run_cell

    # Read when ray is imported and when a local cluster is started, so set before either.
    address = cluster.address()
    os.environ.update(TRAIN_ENVIRONMENT | cluster.RAY_ENVIRONMENT | ({} if address else cluster.LOCAL_ENVIRONMENT))
    import ray
    from ray import tune
    from ray.tune.execution import class_cache
    from ray.tune.search.basic_variant import BasicVariantGenerator

    # Tune hands credentials on to its trials, and Ray writes what is handed on into its logs. Processes of this machine
    # inherit them without that, and the nodes of a cluster have their own.
    class_cache.ENV_VARS_TO_PROPAGATE -= {name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")}

    looked = 0.0

    class Forward(tune.Callback):
        """Tells the display what Tune tells its callbacks."""

        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            display.started(trial.config["cell"])

        def on_trial_result(
            self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
        ) -> None:
            display.reported(result)

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            display.crashed(trial.config["cell"])

        def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
            display.tick()
            if time.monotonic() - looked > LOOK_EVERY:
                follow()

    class UntilStopped(tune.Stopper):
        """Every cell would meet the same store."""

        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            return False

        def stop_all(self) -> bool:
            return bool(display.stopped)

        def __reduce__(self) -> tuple[Any, ...]:
            return (object, ())  # As the display.

    def follow() -> None:
        """As many cells at once as the nodes that there are can train, which on a shared cluster may change."""
        nonlocal looked
        first, looked = not looked, time.monotonic()
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        display.runs_on(nodes)
        places, why_none = cluster.places(space, nodes)
        if why_none and address is None and first:
            raise UserError(f"{why_none}: lower resources in the search space")
        # One more than can train, so that a trial's own start overlaps the training of the one before it.
        generator.max_concurrent = places + 1
        display.waits(f"{why_none}: add nodes, or stop and lower resources in the search space" if why_none else "")

    context: Any = ray.init(address=address or "local", logging_level=logging.CRITICAL, log_to_driver=False)
    ending = threading.Event()
    if address is None:
        threading.Thread(target=cluster.watch, args=(ending,), daemon=True).start()
    for name in ("ray", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        display = progress.Display(left, held, str(context.dashboard_url or ""))
        generator = BasicVariantGenerator()
        follow()
        trainable = tune.with_resources(
            tune.with_parameters(run_cell, space=space, location=store.location, fingerprints=fingerprints),
            # A trial only waits for others, and Tune will not take a bundle of nothing; memory is what it does use.
            tune.PlacementGroupFactory([{"memory": 300e6}]),
        )
        # What does not fit shows at once, and no long cell is left for the end.
        largest_first = sorted(left, key=lambda state: -state.cell.flops)
        tuner = tune.Tuner(
            trainable,
            param_space={"cell": tune.grid_search([state.cell.id for state in largest_first])},
            tune_config=tune.TuneConfig(
                search_alg=generator,
                reuse_actors=True,
                trial_name_creator=lambda trial: str(trial.config["cell"]),
                trial_dirname_creator=lambda trial: str(trial.config["cell"]),
            ),
            run_config=tune.RunConfig(
                name=time.strftime("%Y%m%d-%H%M%S"),
                callbacks=[Forward()],
                # What goes wrong in a cell is a row of the store; a trial fails when its process or node is lost.
                failure_config=tune.FailureConfig(max_failures=3),
                stop=UntilStopped(),
                verbose=0,
                # Tune's own record of the run, which is never read.
                storage_path=context.address_info["session_dir"],
            ),
        )
        # `kill`, and a cluster that shuts down, end a sweep as Ctrl-C does.
        signal.signal(signal.SIGTERM, lambda number, frame: os.kill(os.getpid(), signal.SIGINT))
        with display.live():
            tuner.fit()
        if display.stopped:
            raise StoreError(display.stopped)
        return display.interrupted
    finally:
        ending.set()
        ray.shutdown()
