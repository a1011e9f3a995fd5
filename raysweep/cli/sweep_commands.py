"""plan, run, evaluate, stop, status. What only a running sweep needs is imported by the commands that run one."""

from __future__ import annotations

import argparse
import logging
import shlex
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from raysweep.cli import design_messages, messages
from raysweep.cli.console import say
from raysweep.cli.exit_status import INTERRUPTED
from raysweep.cli.options import load_space, open_store, print_json
from raysweep.cli.panel import SweepView
from raysweep.cli.signals import StopOnSignal
from raysweep.corpora.folder import listing
from raysweep.errors import StoreError, UserError
from raysweep.space.corpus import Corpus, Source
from raysweep.space.hypothesis_columns import unknown_columns
from raysweep.space.space import Space
from raysweep.store import Store, declarations, lock
from raysweep.suites.read import is_suite
from raysweep.sweep import cost
from raysweep.sweep.events import Event, SweepSurveyed
from raysweep.sweep.survey import Survey, cells_missing_weights, survey
from raysweep.text import abbreviate, duration

if TYPE_CHECKING:
    from raysweep.analysis.design_check import WithoutVerdict
    from raysweep.sweep.runner import SweepResult

logger = logging.getLogger(__name__)

# Of English text and code, roughly: 4.2 with the 50,000 tokens of OLMo, fewer with a small vocabulary.
_BYTES_OF_A_TOKEN = 4

_T = TypeVar("_T")


def plan(options: argparse.Namespace) -> int:
    """`raysweep plan`."""
    if is_suite(options.space):
        return int(_of_suite().plan(options))
    prices = dict(map(_price, options.price))
    calibrate = None if options.calibrate is None else Path(options.calibrate)
    space = load_space(options)
    answer = cost.plan(space, calibrate, prices)
    if undecidable := _without_verdict(space):
        answer["without_verdict"] = [vars(test) for test in undecidable]
    if options.json:
        print_json(answer)
    else:
        from joblib import cpu_count  # As `run` asks, and it takes a moment.

        messages.show_plan(answer)
        cores = cpu_count()
        seconds = cost.wall_clock(space, cores)
        if seconds is not None:
            many = "1 core" if cores == 1 else f"{cores} cores"
            say(f"about {duration(seconds)} of training on the {many} of this machine; evaluations come on top")
        if undecidable:
            design_messages.show_without_verdict(undecidable)
    for warning in _of_the_text(space, options.space):  # After the table, which may be long.
        logger.warning("%s", warning)
    return 0


def _without_verdict(space: Space) -> list[WithoutVerdict]:
    """The declared tests that these cells cannot decide."""
    if space.hypotheses is None:
        return []
    from raysweep.analysis.design_check import without_verdict  # With pandas and scipy.

    return without_verdict(space)


def _of_the_text(space: Space, file: str) -> Iterator[str]:
    """What is known before a folder of text is read: that it is not here, or that it is small for the cells."""
    longest: dict[Corpus, int] = {}
    for cell in space.cells:
        longest[cell.corpus] = max(longest.get(cell.corpus, 0), cell.steps * cell.tokens_per_step)
    sources = [source for corpus in longest for of_role in corpus.sources().values() for source in of_role]
    sources += [source for one in space.evaluations if one.text is not None for source in one.text.on]
    folders = dict.fromkeys(Path(source.folder).expanduser() for source in sources if source.folder is not None)
    for folder in folders:
        if not folder.is_dir():
            yield f"{folder}: no such folder here; the machine that runs the sweep reads text from it"
    for corpus, tokens in longest.items():
        whole = _bytes_of_plain_text(corpus.sources().get("pretraining", ()))
        if whole is None:
            continue
        size = whole * corpus.fraction
        there = size / _BYTES_OF_A_TOKEN
        if there < tokens:
            yield (
                f"corpus {corpus.name}: {abbreviate(size, letters='kMGT')}B of text are some {abbreviate(there)} tokens, "
                f"and the longest cell trains on {abbreviate(tokens)}: it may read them more than once. "
                f"`raysweep corpus show {file}` counts them"
            )


def _bytes_of_plain_text(sources: Iterable[Source]) -> int | None:
    """How large the files of folders are; None where that is not known, or some are compressed."""
    size = 0
    for source in sources:
        if source.folder is None:
            return None
        try:
            files = listing(Path(source.folder).expanduser(), source.files).files
            size += sum(path.stat().st_size for path in files.values())
        except (OSError, ValueError):  # `run` says what is wrong with it.
            return None
        if not files or not all(name.endswith((".txt", ".jsonl")) for name in files):
            return None
    return size or None


def _of_suite() -> Any:
    """The commands of a suite of published models."""
    from raysweep.cli import suite_commands

    return suite_commands


def _price(text: str) -> tuple[str, float]:
    """`H100=2.5` -> its parts. Raises `UserError`."""
    name, given, dollars = text.rpartition("=")
    try:
        price = float(dollars)
        if not given or not 0 <= price < float("inf"):
            raise ValueError
    except ValueError:
        raise UserError(f"--price {text}: a device and its dollars for an hour are needed, such as H100=2.5") from None
    return name, price


def run(options: argparse.Namespace) -> int:
    """`raysweep run`."""
    if is_suite(options.space):
        return int(_of_suite().run(options))
    if options.watch and (options.rehearse or options.cluster):
        raise UserError(
            "--watch is of a sweep that this command runs and keeps: leave it out; `raysweep watch` shows a store"
        )
    if options.rehearse:
        if options.store is not None or options.cluster is not None:
            raise UserError("--rehearse runs on this machine and keeps nothing: leave --store and --cluster out")
        return _rehearse(load_space(options))
    if options.cluster:
        from raysweep.cli import cluster_commands, slurm_commands

        if slurm_commands.job_of(options.cluster) is not None:
            raise UserError(
                f"--cluster {options.cluster}: `raysweep slurm` starts a job, and the job goes on by itself"
            )
        return cluster_commands.run(options.cluster, options.space, options.store)
    from raysweep.sweep import runner  # With what a running sweep needs.

    space = load_space(options)
    store = open_store(options, space)
    _warn_before_training(space, store, options.space)
    with _page(options, store), StopOnSignal() as signals:
        watched = watch(lambda on_event: runner.run(space, store, on_event, signals.stop), signals)
        status = conclude(watched, space, store, _again("run", options, store))
    if status == 0:
        messages.next_commands(options.space, store)
    return status


def _warn_before_training(space: Space, store: Store, file: str) -> None:
    """Of tests that the cells cannot decide, while they can still be changed: before these hypotheses are declared."""
    if space.hypotheses is None or declarations.read(store, space.name):
        return
    try:
        undecidable = _without_verdict(space)
    except Exception as error:  # It is advice: nothing waits for it.
        logger.warning("whether these cells can decide the declared tests could not be told: %s", error)
        logger.debug("what happened", exc_info=True)
        return
    if undecidable:
        logger.warning("%s", design_messages.before_training(undecidable, file))


@contextmanager
def _page(options: argparse.Namespace, store: Store) -> Iterator[None]:
    """The page of --watch, where it is asked for."""
    if not options.watch:
        yield
        return
    from raysweep.cli.watch_commands import page_of_run

    with page_of_run(options.space, store) as address:
        print(f"the sweep on a page: {address}", flush=True)
        yield


def evaluate(options: argparse.Namespace) -> int:
    """`raysweep evaluate`."""
    from raysweep.sweep import runner

    space = load_space(options)
    store = open_store(options, space)
    with StopOnSignal() as signals:
        watched = watch(lambda on_event: runner.evaluate(space, store, on_event, signals.stop), signals)
        return conclude(watched, space, store, _again("evaluate", options, store), retry_evaluation)


@dataclass(frozen=True)
class Watched(Generic[_T]):
    """What came of a sweep that was shown while it ran."""

    result: _T | None
    """None where Ctrl-C ended it at once."""
    interrupted: bool
    surveyed: Survey | None
    """What there was to do; None where it was ended before that was known."""


def watch(work: Callable[[Callable[[Event], None]], _T], signals: StopOnSignal) -> Watched[_T]:
    """Do the work of a sweep, which is given `on_event`, and show it."""
    surveyed: list[Survey] = []
    with SweepView() as view:

        def on_event(event: Event) -> None:
            if isinstance(event, SweepSurveyed):
                surveyed.append(event.survey)
            signals(event)
            view(event)

        try:
            result = work(on_event)
        except KeyboardInterrupt:
            return Watched(None, True, surveyed[0] if surveyed else None)
    return Watched(result, view.state.interrupted, surveyed[0] if surveyed else None)


def retry_all(after: Survey, store: Store) -> str:
    """What does what a run left."""
    return "run the same command again to retry what failed"


def retry_evaluation(after: Survey, store: Store) -> str:
    """What does what an evaluation left."""
    if cells_missing_weights(after, store):
        return "`raysweep run` trains again what has no weights"
    return retry_all(after, store)


def conclude(
    watched: Watched[SweepResult],
    space: Space,
    store: Store,
    resume_command: str,
    retry: Callable[[Survey, Store], str] = retry_all,
) -> int:
    """Say what a sweep came to, and what to do about what is left; the exit status."""
    if watched.result is not None:
        space, after = watched.result.space, watched.result.survey
    elif watched.surveyed is None:
        return INTERRUPTED
    else:
        cells = tuple(state.cell for state in watched.surveyed.states)
        try:
            after = survey(store, space.model_copy(update={"cells": cells}))
        except StoreError:
            return INTERRUPTED
    if after.left and watched.interrupted:
        messages.interrupted(after, resume_command)
        return INTERRUPTED
    messages.conclude(space, store, after, retry(after, store))
    return 1 if after.left else 0


def _rehearse(space: Space) -> int:
    from raysweep.sweep.rehearsal import STEPS, rehearse, smallest_cell

    cell = smallest_cell(space)
    fitting = space.evaluations_of(cell)
    print(f"rehearsal of {space.name}: {cell.id}, {STEPS} steps and {len(fitting)} evaluations")
    if without := [one.label for one in space.evaluations if one not in fitting]:
        print(f"not rehearsed, for want of text in its corpus {cell.corpus.name}: {', '.join(without)}")
    with StopOnSignal() as signals:
        watched = watch(lambda on_event: rehearse(space, on_event, signals.stop), signals)
    if watched.result is None or watched.interrupted:
        print("stopped; nothing was kept")
        return INTERRUPTED
    messages.show_table(watched.result.table)
    messages.show_outcome(watched.result.survey, "run the same command again when that is fixed")
    if not watched.result.complete:
        return 1
    for said in unknown_columns(space.hypotheses, watched.result.table.column_names) if space.hypotheses else ():
        logger.warning("a test will be undecided: %s", said)
    print(f"every step of {space.name} works; nothing was kept")
    return 0


def _again(command: str, options: argparse.Namespace, store: Store) -> str:
    """The command that resumes, in another terminal too."""
    return shlex.join(["raysweep", command, options.space, "--store", store.location])


def stop(options: argparse.Namespace) -> int:
    """`raysweep stop`."""
    if is_suite(options.space) and not options.cluster:
        return int(_of_suite().stop(options))
    if options.cluster:
        from raysweep.cli import cluster_commands, slurm_commands

        if (job := slurm_commands.job_of(options.cluster)) is not None:
            return slurm_commands.stop(job)
        load_space(options)
        return cluster_commands.stop(options.cluster, options.store)
    store = open_store(options, load_space(options))
    stopped = lock.stop_holder(store)
    print(f"stopped process {stopped}" if stopped else f"nothing runs on {store.location}")
    return 0


def status(options: argparse.Namespace) -> int:
    """`raysweep status`."""
    if is_suite(options.space) and not options.cluster:
        return int(_of_suite().status(options))
    if options.cluster:
        from raysweep.cli import cluster_commands, slurm_commands

        if (job := slurm_commands.job_of(options.cluster)) is None:
            return cluster_commands.status(options.cluster, options.space, options.store, options.json)
        if not options.json:
            slurm_commands.show_job(job)
        if is_suite(options.space):
            return int(_of_suite().status(options))
    space = load_space(options, reading=True)
    store = open_store(options, space)
    now = survey(store, space)
    driver = lock.holder(store)
    live = driver["progress"].get("running", {}) if driver else {}
    counts = now.counts(name for name, cell in live.items() if not cell.get("starting"))
    if options.json:
        print_json(counts | {"versions": now.versions()})
    else:
        messages.show_status(space, store, now, counts, driver, lock.silence(store))
    return 0
