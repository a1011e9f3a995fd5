"""A suite as a function: have each checkpoint, measure and evaluate it, as Ray tasks; what is done stays done."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raysweep.cluster.capacity import DRIVER, autoscaler_limits, autoscaling_configuration, nodes
from raysweep.cluster.connection import connected
from raysweep.cluster.environment import preserved_environment
from raysweep.corpora.progress import CorpusProgress
from raysweep.corpora.shared import upload
from raysweep.errors import StoreError
from raysweep.space.hypotheses import paper_hypotheses
from raysweep.store import Store, declarations
from raysweep.store.index import read_all
from raysweep.store.lock import Lock
from raysweep.store.results import evaluated
from raysweep.store.schemas import FAILURES, PLAN, REVISIONS
from raysweep.store.sessions import recorded
from raysweep.store.store import PLANNED
from raysweep.suites.checkpoints import Checkpoint, Step, find
from raysweep.suites.pins import check_asked, pin, read_pinned, wanted
from raysweep.suites.read import LoadedSuite, Suite
from raysweep.suites.task import LOAD, Work, complete
from raysweep.sweep.failures import PROCESS_LOST, describe, innermost_cause, process_lost, record_failure
from raysweep.sweep.prepare_corpora import prepare_corpora
from raysweep.sweep.prepare_texts import prepare_texts
from raysweep.sweep.survey import CellState

# A task whose process is lost is started again so often. (Ray would do so without end where memory ran low.)
_LOST = 3

# Memory of a model for each byte of its files: those may have two bytes for a number, and it has four; and a quarter more.
_MEMORY = 2.5
_QUANTIZED = 2.0
"""As many again where it is quantized, and kept beside that."""
_FINETUNED = 16.0
"""Where it is trained on: its gradient and two moments, a copy of all but the gradient for a checkpoint, and its bytes."""


@dataclass(frozen=True)
class SuiteState:
    """Where a suite stands, by its checkpoints."""

    checkpoints: list[Checkpoint]
    left: dict[str, list[str]]
    """Checkpoint -> what the store lacks of it: `model`, `measure`, labels of evaluations."""
    errors: dict[str, dict[str, str]]
    """Checkpoint -> stage -> its last error."""
    unavailable: dict[str, str] = field(default_factory=dict)
    """Model -> why it has no checkpoint."""

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        return not self.left and not self.unavailable


def run(
    loaded: LoadedSuite,
    store: str | Path | Store,
    step: Step = lambda part, done, total, detail: None,
    said: Callable[[str], None] = lambda line: None,
    stop: threading.Event | None = None,
    begun: Callable[[], None] = lambda: None,
) -> SuiteState:
    """Measure and evaluate what the store lacks of a suite, on a Ray cluster.

    Killed at any moment, it loses nothing that was finished, and the next call resumes; downloads resume too.

    Parameters
    ----------
    loaded
        The suite; `raysweep.suites.read.load_suite` reads one.
    store
        The folder or URI of the results.
    step
        Called with what is being done, how much of it is done, how much there is, and a detail.
    said
        Called with what a person should know at once: what is waited for, what failed.
    stop
        Set it to end before all is done. What is running is not waited for.
    begun
        Called when tasks are about to start: from then on `stop` is looked at every second.

    Returns
    -------
    SuiteState
        What is left, and the errors.

    Raises
    ------
    UserError
        Where nothing can be done: no checkpoint can be had, a text is too short, the store is held by another.
    StoreError
        Where the store is lost.
    """
    # One of its own: while the suite runs it waits for a store that is away.
    store = Store(store.location if isinstance(store, Store) else str(store))
    store.probe()
    stop = stop or threading.Event()
    progress: dict[str, Any] = {}
    with Lock(store, lambda: {"suite": dict(progress)}) as lock:
        check_asked(store, loaded.suite)
        checkpoints, unavailable = find(loaded, store, step, said)
        if store.read(PLANNED) is None:
            store.write_table(PLANNED, [], PLAN)
        pin(store, [one.row for one in checkpoints])
        check_asked(store, loaded.suite, [one.id for one in checkpoints])
        hypotheses = loaded.hypotheses or paper_hypotheses()
        before = survey(loaded, store, checkpoints, unavailable)
        declarations.record(
            store, loaded.name, hypotheses.digest, len(checkpoints) - len(before.left), len(checkpoints)
        )
        for model, why in unavailable.items():
            said(f"{model} is left out: {why}")
        store.running = True
        if before.left and not stop.is_set():
            with preserved_environment(), recorded(store, loaded.name):
                _work(loaded, store, before, step, said, stop, begun, lock, progress)
        store.running = False
        return survey(loaded, store, checkpoints, unavailable)


def survey(
    loaded: LoadedSuite, store: Store, checkpoints: list[Checkpoint], unavailable: dict[str, str] | None = None
) -> SuiteState:
    """Where each checkpoint stands, from the store alone.

    Raises `UserError` where its numbers are of another text or length.
    """
    check_asked(store, loaded.suite)
    # As `lacking` has it of one checkpoint, of all for the price of a listing.
    done = {LOAD: read_all(store, "revisions", REVISIONS)}
    done |= {stage: evaluated(store, stage, asked) for stage, asked in loaded.suite.stages.items()}
    left = {
        one.id: missing
        for one in checkpoints
        if (missing := [stage for stage, of_checkpoints in done.items() if one.id not in of_checkpoints])
    }
    failures = {stage: read_all(store, f"failures/{stage}", FAILURES) for stage in done}
    errors = {
        name: told
        for name in left
        if (told := {stage: str(rows[name][0]["error"]) for stage, rows in failures.items() if name in rows})
    }
    return SuiteState(checkpoints, left, errors, unavailable or {})


def memory_of(suite: Suite, size: int) -> float:
    """Bytes of memory that a checkpoint is given whose files have that size."""
    more = [0.0]
    for one in suite.evaluations:
        trains = one.training_steps([suite.stand_in]) > 0
        more.append(_FINETUNED if trains else _QUANTIZED if one.task == "quantized" else 0.0)
    return size * (_MEMORY + max(more))


def pinned(loaded: LoadedSuite, store: Store) -> list[Checkpoint]:
    """The checkpoints of the suite's models that the store knows, without asking anybody."""
    models = {model.id: model for model in loaded.models}
    asked = wanted(store, loaded.suite)
    return [
        Checkpoint(models[row["model"]], row["revision"], row["step"], row["commit"], None, row["bytes"])
        for row in read_pinned(store).values()
        if row["model"] in models and row["id"] in asked
    ]


def _work(
    loaded: LoadedSuite, store: Store, before: SuiteState, step: Step, said: Callable[[str], None], stop: threading.Event,
    begun: Callable[[], None], lock: Lock, progress: dict[str, Any],
) -> None:  # fmt: skip
    suite = loaded.suite

    def report(of_corpus: CorpusProgress) -> None:
        step(f"{of_corpus.corpus}: {of_corpus.phase}", of_corpus.done, of_corpus.total, "")
        if stop.is_set():
            raise KeyboardInterrupt

    stand_in = CellState(suite.stand_in, "done", dict.fromkeys((one.label for one in suite.evaluations), "new"))
    corpora = prepare_corpora([stand_in], suite.evaluations, store, report)
    texts = prepare_texts([stand_in], suite.evaluations, corpora, store, report)
    (corpus,) = corpora.values()
    with connected(code=suite.code) as connection:
        if connection.shared:
            for opened in [corpus, *(text for each in texts.values() for text in each)]:
                upload(opened, store, report)
        begun()
        _run_tasks(loaded, store, before, corpus.fingerprint, step, said, stop, lock, progress, connection.shared)


def _run_tasks(
    loaded: LoadedSuite, store: Store, before: SuiteState, fingerprint: str, step: Step, said: Callable[[str], None],
    stop: threading.Event, lock: Lock, progress: dict[str, Any], shared: bool,
) -> None:  # fmt: skip
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from raysweep.sweep.same_code import code

    suite = loaded.suite
    work = Work(suite, store.location, fingerprint, code(suite.measure))
    resources = suite.resources
    todo = [one for one in before.checkpoints if one.id in before.left]
    # What does not fit shows at once, and no long one is left for the end.
    todo.sort(key=lambda one: -one.size)
    limits = autoscaler_limits(autoscaling_configuration()) if shared else None
    there = [*nodes().values(), *(limits.every_node if limits else ())]
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    board: Any = ray.remote(num_cpus=0)(_Board).options(scheduling_strategy=here).remote()
    # Shares of a GPU are a process's: the next task is to have one of its own.
    task = ray.remote(
        num_cpus=resources.cpus, num_gpus=resources.gpus, max_retries=0, max_calls=1 if resources.gpus else 0,
        scheduling_strategy="SPREAD",
    )(complete)  # fmt: skip
    running: dict[Any, Checkpoint] = {}
    failed, waits = 0, False
    for one in todo:
        memory = memory_of(suite, one.size)
        if not any(
            node.get("CPU", 0) >= resources.cpus
            and node.get("GPU", 0) >= resources.gpus
            and node.get("memory", 0) >= memory
            for node in there
        ):
            asks = f"{resources.cpus} CPUs, {resources.gpus:g} GPUs and about {memory / 1e9:.3g} GB of memory"
            if limits is None and any(DRIVER in node and not node.get("CPU") for node in there):
                # A head that only drives: the nodes of an elastic job come when there is room.
                if not waits:
                    said(f"waiting for a node that has {asks}")
                waits = True
            else:
                why = (
                    f"no node has what it asks for: {asks}, which follows from its size: leave it out by `select`, or add "
                    "such a node"
                )
                record_failure(store, one.id, LOAD, why)
                said(f"{one.id} failed: {why}")
                failed += 1
                continue
        running[task.options(memory=memory).remote(one, work, board)] = one
    total, ended, came = len(todo), failed, 0
    lost: Counter[str] = Counter()
    losses = _NodeLosses()
    while running:
        losses.look()
        with suppress(ray.exceptions.RayError):  # Its node is gone; what was said is said.
            for line in ray.get(board.take.remote(), timeout=10):
                said(line)
        progress |= {"done": ended, "of": total, "failed": failed}
        step("checkpoints", ended, total, f"{came / 1e9:.2f} GB came" if came else "")
        if stop.is_set():
            return
        if lock.lost:
            raise StoreError(lock.lost)
        for answer in ray.wait(list(running), timeout=1.0)[0]:
            one = running.pop(answer)
            ended += 1
            try:
                outcome = ray.get(answer)
            except Exception as error:
                cause = innermost_cause(error)
                if isinstance(cause, StoreError):
                    raise cause from None
                if stop.is_set():
                    return
                if process_lost(error) and (losses.any_since(one.id) or lost[one.id] < _LOST):
                    # A node that was taken away says nothing of the checkpoint.
                    lost[one.id] += not losses.any_since(one.id)
                    losses.begin(one.id)
                    ended -= 1
                    said(f"{one.id}: its process was lost, or its node: trying again")
                    running[task.options(memory=memory_of(suite, one.size)).remote(one, work, board)] = one
                    continue
                why = PROCESS_LOST if process_lost(error) else describe(cause)
                record_failure(store, one.id, LOAD, why)
                outcome = {"errors": {LOAD: why}, "bytes": 0}
            came += outcome["bytes"]
            failed += bool(outcome["errors"])
            for stage, why in outcome["errors"].items():
                said(f"{one.id}: {'' if stage == LOAD else stage + ' '}failed: {why}")
    step("checkpoints", ended, total, f"{came / 1e9:.2f} GB came" if came else "")


class _NodeLosses:
    """Whether a node was lost since a checkpoint was begun."""

    def __init__(self) -> None:
        self._there: set[str] = set()
        self._lost = 0
        self._begun: Counter[str] = Counter()

    def look(self) -> None:
        """See which nodes there are."""
        there = set(nodes())
        self._lost += len(self._there - there)
        self._there = there

    def begin(self, checkpoint: str) -> None:
        """A checkpoint is begun now; the others were with the first look."""
        self._begun[checkpoint] = self._lost

    def any_since(self, checkpoint: str) -> bool:
        self.look()
        return self._lost > self._begun[checkpoint]


class _Board:
    """An actor on which tasks say what they wait for; each thing once."""

    def __init__(self) -> None:
        self._new: list[str] = []
        self._told: set[str] = set()

    def tell(self, line: str) -> None:
        if line not in self._told:
            self._told.add(line)
            self._new.append(line)

    def take(self) -> list[str]:
        """What is new."""
        new, self._new = self._new, []
        return new


def error_lines(state: SuiteState) -> list[str]:
    """What is wrong: a line for each model that is not there, and for each error of checkpoints with how many have it."""
    lines = [f"{model}: {why}" for model, why in state.unavailable.items()]
    alike: dict[str, list[str]] = {}
    for name, of_stage in state.errors.items():
        for stage, why in of_stage.items():
            alike.setdefault(f"{'' if stage == LOAD else stage + ': '}{why.replace(name, 'it')}", []).append(name)
    for why, names in alike.items():
        others = f" and {len(names) - 1:,} others" if len(names) > 1 else ""
        lines.append(f"{names[0]}{others}: {why}")
    return lines
