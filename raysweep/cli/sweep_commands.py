"""plan, run, evaluate, stop, status. What only a running sweep needs is imported by the commands that run one."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from raysweep.cli import messages
from raysweep.cli.exit_status import INTERRUPTED
from raysweep.cli.options import load_space, open_store, print_json
from raysweep.space.space import Space
from raysweep.store import Store, lock
from raysweep.sweep import cost
from raysweep.sweep.survey import cells_missing_weights, survey

if TYPE_CHECKING:
    from raysweep.sweep.runner import SweepResult

RETRY = "run the same command again to retry what failed"

_T = TypeVar("_T")


def plan(options: argparse.Namespace) -> int:
    """`raysweep plan`."""
    answer = cost.plan(load_space(options))
    if options.json:
        print_json(answer)
    else:
        messages.show_plan(answer)
    return 0


def run(options: argparse.Namespace) -> int:
    """`raysweep run`."""
    if options.rehearse:
        return _rehearse(load_space(options))
    if options.cluster:
        from raysweep.cli import cluster_commands

        return cluster_commands.run(options.cluster, options.space, options.store)
    from raysweep.sweep import runner  # With what a running sweep needs.

    space = load_space(options)
    store = open_store(options, space)
    result = watched(lambda on_event, stop: runner.run(space, store, on_event, stop))
    return conclude(space, store, result, _again("run", options, store), RETRY)


def evaluate(options: argparse.Namespace) -> int:
    """`raysweep evaluate`."""
    from raysweep.sweep import runner

    space = load_space(options)
    store = open_store(options, space)
    result = watched(lambda on_event, stop: runner.evaluate(space, store, on_event, stop))
    return conclude(space, store, result, _again("evaluate", options, store), retry_evaluation(result[0], store))


def retry_evaluation(result: SweepResult | None, store: Store) -> str:
    """What does what an evaluation left."""
    if result is not None and cells_missing_weights(result.survey, store):
        return "`raysweep run` trains again what has no weights"
    return RETRY


def watched(work: Callable[[Any, Any], _T]) -> tuple[_T | None, bool]:
    """Do the work of a sweep, called with `on_event` and `stop`, and show it; its result, and whether it was stopped.

    There is no result where Ctrl-C came before anything was started.
    """
    from raysweep.cli.panel import SweepView
    from raysweep.cli.signals import StopOnSignal

    with StopOnSignal() as signals, SweepView() as view:

        def on_event(event: Any) -> None:
            signals(event)
            view(event)

        try:
            result = work(on_event, signals.stop)
        except KeyboardInterrupt:
            return None, True
    return result, view.state.interrupted


def conclude(space: Space, store: Store, watched: tuple[Any, bool], resume_command: str, retry: str) -> int:
    """Say what a sweep came to, and what to do about what is left; the exit status."""
    result, interrupted = watched
    space = space if result is None else result.space
    after = survey(store, space) if result is None else result.survey
    if after.left and interrupted:
        messages.interrupted(after, resume_command)
        return INTERRUPTED
    messages.conclude(space, store, after, retry)
    return 1 if after.left else 0


def _rehearse(space: Space) -> int:
    from raysweep.sweep.rehearsal import STEPS, rehearse, smallest_cell

    print(
        f"rehearsal of {space.name}: {smallest_cell(space).id}, {STEPS} steps and {len(space.evaluations)} evaluations"
    )
    result, interrupted = watched(lambda on_event, stop: rehearse(space, on_event))
    if result is None or interrupted:
        return INTERRUPTED
    messages.show_table(result.table)
    messages.show_outcome(result.survey, "run the same command again when that is fixed")
    if not result.complete:
        return 1
    print(f"every step of {space.name} works; nothing was kept")
    return 0


def _again(command: str, options: argparse.Namespace, store: Store) -> str:
    """The command that resumes, in another terminal too."""
    return shlex.join(["raysweep", command, options.space, "--store", store.location])


def stop(options: argparse.Namespace) -> int:
    """`raysweep stop`."""
    if options.cluster:
        from raysweep.cli import cluster_commands

        return cluster_commands.stop(options.cluster, options.store)
    store = open_store(options, load_space(options))
    stopped = lock.stop_holder(store)
    print(f"stopped process {stopped}" if stopped else f"nothing runs on {store.location}")
    return 0


def status(options: argparse.Namespace) -> int:
    """`raysweep status`."""
    if options.cluster:
        from raysweep.cli import cluster_commands

        return cluster_commands.status(options.cluster, options.space, options.store, options.json)
    space = load_space(options)
    store = open_store(options, space)
    now = survey(store, space)
    driver = lock.holder(store)
    live = driver["progress"].get("running", {}) if driver else {}
    counts = now.counts(name for name, cell in live.items() if not cell.get("starting"))
    if options.json:
        print_json(counts | {"versions": now.versions()})
    else:
        messages.show_status(space, store, now, counts, driver, store.age(lock.FILE) or 0.0)
    return 0
