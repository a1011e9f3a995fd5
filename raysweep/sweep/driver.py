"""The Ray side of a driver: a fresh Tune `Tuner` over the cells that are left, on whatever cluster there is.

Ray reads its environment when it is imported, so `raysweep.sweep` sets that first and imports this module then.
"""

from __future__ import annotations

import signal
import time
from typing import Any

from ray import tune
from ray.tune.execution import class_cache
from ray.tune.search.basic_variant import BasicVariantGenerator

from raysweep.cli import panel as progress
from raysweep.cli.panel import LOST
from raysweep.cluster import connection as cluster
from raysweep.errors import StoreError, UserError
from raysweep.space.cell import Space
from raysweep.store import Store
from raysweep.store.lock import Lock
from raysweep.store.store import TRAIN
from raysweep.sweep import trackers as loggers
from raysweep.sweep.gauges import Gauges
from raysweep.sweep.runner import Survey, end_by_interrupt
from raysweep.sweep.trackers import OfThisProcess
from raysweep.sweep.trial import record_failure, run_cell

# How often, in seconds, a sweep looks which nodes there are.
LOOK_EVERY = 5.0

# Tune hands credentials on to its trials, and Ray writes what is handed on into its logs. Processes of this machine
# inherit them without that, and the nodes of a cluster have their own.
class_cache.ENV_VARS_TO_PROPAGATE -= {name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")}


def train(
    before: Survey, space: Space, location: str, fingerprints: dict[str, str], held: Lock, train: bool
) -> bool:  # fmt: skip
    """Run the cells that are left `before` as Tune trials; True if a signal stopped it.

    Without `train` a cell whose weights turn out to be damaged is not trained again.

    Raises `UserError` where the cluster can never hold a cell, `StoreError` where the store is lost.
    """
    shared = cluster.address() is not None
    with cluster.connected() as context:
        display = progress.Display(before, held, Gauges(space.name), str(context.dashboard_url or ""))
        room = Room(space, display, shared=shared)
        # What does not fit shows at once, and no long cell is left for the end.
        largest_first = sorted(before.left, key=lambda state: -state.cell.flops)
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(run_cell, space=space, location=location, fingerprints=fingerprints, train=train),
                # A trial only waits for others, and Tune will not take a bundle of nothing; memory is what it does use.
                tune.PlacementGroupFactory([{"memory": 300e6} | room.driver]),
            ),
            param_space={"cell": tune.grid_search([state.cell.describe() for state in largest_first])},
            tune_config=tune.TuneConfig(
                search_alg=room.generator,
                reuse_actors=True,
                trial_name_creator=_name,
                trial_dirname_creator=_name,
            ),
            run_config=tune.RunConfig(
                name=time.strftime("%Y%m%d-%H%M%S"),
                callbacks=[Forward(display, room), *loggers.callbacks(space, location)],
                # What goes wrong in a cell is a row of the store; a trial fails when its process is lost. (Those lost with
                # their nodes are not counted: `Forward`.)
                failure_config=tune.FailureConfig(max_failures=3),
                stop=UntilStopped(display),
                verbose=0,
                # Tune's own record of the run, which is never read.
                storage_path=context.address_info["session_dir"],
            ),
        )
        # What Ray starts, a job too, has Ctrl-C's signal blocked; and Ray has put a handler of its own in place of ours.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        end_by_interrupt()
        with display.live():
            tuner.fit()
        for cell in display.lost:
            record_failure(Store(location), cell, TRAIN, LOST)
        if display.stopped:
            raise StoreError(display.stopped)
        return display.interrupted


def _name(trial: Any) -> str:
    return str(trial.config["cell"]["id"])


class Room:
    """As many cells at once as the cluster can train, followed as its nodes come and go."""

    def __init__(self, space: Space, display: progress.Display, shared: bool) -> None:
        self.generator = BasicVariantGenerator()
        self._space, self._display, self._shared = space, display, shared
        self._looked = 0.0
        self._alive: set[str] = set()
        self.lost = 0
        """How many nodes have gone since the driver began."""
        self.look()
        safe = any(cluster.DRIVER in node for node in cluster.nodes().values())
        self.driver = {cluster.DRIVER: 0.001} if safe else {}
        """What a trial asks for beside memory: a place on a node that is not taken away, where there is one."""

    def look(self, now: bool = False) -> None:
        """See which nodes there are, and which the autoscaler would bring; called often, and looks now and then."""
        if self._looked and not now and time.monotonic() - self._looked < LOOK_EVERY:
            return
        first, self._looked = not self._looked, time.monotonic()
        nodes = cluster.nodes()
        self.lost += len(self._alive - set(nodes))
        self._alive = set(nodes)
        self._display.runs_on(list(nodes.values()))
        grows = cluster.growth() if self._shared else None
        places, why_none, grown = cluster.room(self._space, list(nodes.values()), grows)
        if first and why_none and (grown is False or not self._shared):
            raise UserError(f"{why_none}: lower resources in the search space")
        # One more than can train, so that a trial's own start overlaps the training of the one before it.
        self.generator.max_concurrent = places + 1
        hope = "the autoscaler starts some" if grown else "add nodes, or stop and lower resources in the search space"
        self._display.waits(f"{why_none}: {hope}" if why_none else "")


class Forward(OfThisProcess, tune.Callback):
    """Tells the display what Tune tells its callbacks."""

    def __init__(self, display: progress.Display, room: Room) -> None:
        self._display, self._room = display, room
        self._lost: dict[str, int] = {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._lost[_name(trial)] = self._room.lost
        self._display.started(_name(trial))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self._display.reported(result)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        # Tune takes it back only where Ray was told beforehand that the node would go.
        self._room.look(now=True)
        if self._room.lost > self._lost.get(_name(trial), self._room.lost):
            trial.run_metadata.num_failures -= 1
            self._lost[_name(trial)] = self._room.lost

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._display.crashed(_name(trial))

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self._display.tick()
        self._room.look()


class UntilStopped(OfThisProcess, tune.Stopper):
    """Ends the sweep where it cannot go on: every cell would meet the same store."""

    def __init__(self, display: progress.Display) -> None:
        self._display = display

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return bool(self._display.stopped)
