"""The Ray side of a sweep: a fresh Tune `Tuner` over the cells that are left, on the cluster that is connected.

Ray reads its environment when it is imported: import this module inside `raysweep.cluster.connection.connected`.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ray import tune
from ray.tune.execution import class_cache

from raysweep.cluster.capacity import TRIAL_MEMORY
from raysweep.cluster.connection import Connection
from raysweep.errors import UserError
from raysweep.space.space import Space
from raysweep.store.lock import Lock
from raysweep.sweep import ending
from raysweep.sweep.concurrency import ConcurrencyController
from raysweep.sweep.events import (
    CellFailed,
    CellFinished,
    CellReported,
    CellStarted,
    ClusterConnected,
    Ending,
    Event,
    Heartbeat,
    StoreLost,
    Warned,
)
from raysweep.sweep.failures import PROCESS_LOST
from raysweep.sweep.gauges import Gauges
from raysweep.sweep.same_code import code
from raysweep.sweep.state import EventBus
from raysweep.sweep.survey import Survey
from raysweep.sweep.trackers import BackgroundLogger, trackers
from raysweep.sweep.trial import run_cell

# Ray drops gauges that are not set for 20 s.
HEARTBEAT_EVERY = 5.0

# What a report has beside what was measured.
_PROGRESS = ("cell", "step", "steps", "tokens", "tokens_per_second", "kept")
_MEASURED = ("train_loss", "validation_loss", "learning_rate", "gradient_norm")


def train_cells(
    before: Survey, space: Space, location: str, fingerprints: dict[str, str], train: bool,
    connection: Connection, bus: EventBus, lock: Lock, stop: threading.Event,
) -> None:  # fmt: skip
    """Run the cells that are left `before` as Tune trials, until they have ended, `stop` is set or the store is lost.

    What happens is told to `bus`. Without `train` a cell whose weights turn out to be damaged is not trained again.

    Raises `UserError` where the cluster can never hold a cell.
    """
    ending.forget()
    controller = ConcurrencyController(space, bus, connection.shared)
    bus.subscribe(Gauges(space.name, bus.state))
    # What does not fit shows at once, and no long cell is left for the end.
    largest_first = sorted(before.left, key=lambda state: -state.cell.flops)
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(
                run_cell,
                space=space,
                location=location,
                fingerprints=fingerprints,
                code=code(space.measure),
                train=train,
            ),
            # A trial only waits for others, and Tune will not take a bundle of nothing; memory is what it does use.
            tune.PlacementGroupFactory([{"memory": TRIAL_MEMORY} | controller.trial_resources]),
        ),
        param_space={"cell": tune.grid_search([state.cell.describe() for state in largest_first])},
        tune_config=tune.TuneConfig(
            search_alg=controller.generator,
            reuse_actors=True,
            trial_name_creator=_cell,
            trial_dirname_creator=_cell,
        ),
        run_config=tune.RunConfig(
            name=time.strftime("%Y%m%d-%H%M%S"),
            callbacks=[ProgressCallback(bus, controller)],
            # What goes wrong in a cell is a row of the store; a trial fails when its process is lost. (Those lost with
            # their nodes are not counted: `ProgressCallback`.)
            failure_config=tune.FailureConfig(max_failures=3),
            stop=EndOfSweep(bus, lock, stop, controller),
            verbose=0,
            # Tune's own record of the run, which is never read.
            storage_path=connection.context.address_info["session_dir"],
        ),
    )
    with _told(trackers(space, location), bus), _no_credentials_handed_on():
        bus(ClusterConnected(connection.dashboard))
        try:
            tuner.fit()
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise UserError(
                f"the disk of Ray's own folder, {connection.context.address_info['session_dir']}, is full: make room "
                "there, or set RAY_TMPDIR to another; nothing that was finished is lost"
            ) from None


@contextmanager
def _told(loggers: list[BackgroundLogger], bus: EventBus) -> Iterator[None]:
    """Have trackers told of the sweep while in the context, and wait for them at its end."""
    for logger in loggers:
        bus.subscribe(logger)
    finished = False
    try:
        yield
        finished = True
    except Exception:
        finished = True
        raise
    finally:  # At the second Ctrl-C there is no time to wait.
        for logger in loggers:
            logger.close(wait=finished)


def _cell(trial: Any) -> str:
    return str(trial.config["cell"]["id"])


@contextmanager
def _no_credentials_handed_on() -> Iterator[None]:
    """Tune hands credentials on to its trials, and Ray writes what is handed on into its logs.

    Processes of this machine inherit them without that, and the nodes of a cluster have their own.
    """
    usual = class_cache.ENV_VARS_TO_PROPAGATE
    class_cache.ENV_VARS_TO_PROPAGATE = {name for name in usual if not name.startswith("AWS_")}
    try:
        yield
    finally:
        class_cache.ENV_VARS_TO_PROPAGATE = usual


class NotPickledMixin:
    """Tune pickles callbacks and stoppers for a restore that raysweep never asks for."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (object, ())


class ProgressCallback(NotPickledMixin, tune.Callback):
    """Turns what Tune tells its callbacks into events."""

    def __init__(self, emit: Callable[[Event], None], controller: ConcurrencyController) -> None:
        self._emit, self._controller = emit, controller
        self._nodes_lost: dict[str, int] = {}
        # Every cell may have the same to say.
        self._warned = {""}
        self._beat = time.monotonic()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._nodes_lost[_cell(trial)] = self._controller.nodes_lost
        self._emit(CellStarted(_cell(trial)))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        cell = result["cell"]
        if result.get("finished"):
            errors = tuple(result["failed"])
            self._emit(CellFailed(cell, errors) if errors else CellFinished(cell))
        elif "unreachable" in result:
            self._emit(StoreLost(result["unreachable"]))
        else:
            if result.get("warning", "") not in self._warned:
                self._warned.add(result["warning"])
                self._emit(Warned(result["warning"]))
            measured = {k: v for k, v in result.items() if k in _MEASURED or k.endswith("_W")}
            self._emit(CellReported(row=measured, **{name: result[name] for name in _PROGRESS}))

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        # Tune takes a failure back only where Ray was told beforehand that the node would go.
        cell = _cell(trial)
        self._controller.refresh(now=True)
        if self._controller.nodes_lost > self._nodes_lost.get(cell, self._controller.nodes_lost):
            trial.run_metadata.num_failures -= 1
            self._nodes_lost[cell] = self._controller.nodes_lost

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._emit(CellFailed(_cell(trial), (PROCESS_LOST,), process_lost=True))

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if time.monotonic() - self._beat > HEARTBEAT_EVERY:
            self._beat = time.monotonic()
            self._emit(Heartbeat())
        self._controller.refresh()


class EndOfSweep(NotPickledMixin, tune.Stopper):
    """Ends the sweep on request, or if the store is lost: every cell would fail on the same store.

    On request it starts no further cell, and first has every cell that trains write a checkpoint.
    """

    def __init__(self, bus: EventBus, lock: Lock, stop: threading.Event, controller: ConcurrencyController) -> None:
        self._bus, self._lock, self._stop, self._controller = bus, lock, stop, controller
        self._asked: float | None = None

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        if self._lock.lost and not self._bus.state.stop_reason:
            self._bus(StoreLost(self._lock.lost))
        return bool(self._bus.state.stop_reason) or (self._stop.is_set() and self._all_kept())

    def _all_kept(self) -> bool:
        """Whether every cell that trains has written a checkpoint since it was asked to, or has had its time."""
        state = self._bus.state
        if self._asked is None:
            self._asked = time.monotonic()
            self._controller.start_no_more()
            ending.ask()
            if state.training:
                self._bus(Ending(len(state.training)))
        # A cell whose node was lost waits for another, and cannot: no more train than there is room for.
        expected = min(len(state.training), self._controller.room())
        return len(state.training & state.kept) >= expected or time.monotonic() - self._asked > ending.patience()
