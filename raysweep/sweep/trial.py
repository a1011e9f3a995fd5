"""What one Tune trial does: train its cell, then its evaluations, each with rows of its own in the store.

`run_cell` is the Tune function. It trains through a Ray Train `TorchTrainer` named by the cell's id, writes the cell's
tables out of the final checkpoint, and starts the missing evaluations as Ray tasks. It does only what the store lacks, so
it may be killed and started again at any point. What goes wrong in a cell becomes a row under `failures/`, not an exception:
the sweep goes on, and the next `raysweep run` tries again. What goes wrong with the store is reported, and ends the sweep.
"""

from __future__ import annotations

import datetime
import logging
import os
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from raysweep.cluster import connection as cluster
from raysweep.errors import StoreError, UserError
from raysweep.space.cell import Cell, Space
from raysweep.store import Store
from raysweep.store.schemas import CELLS, EVALUATIONS, FAILURES, TIMINGS, TRAJECTORIES
from raysweep.store.store import TRAIN
from raysweep.version import __version__

if TYPE_CHECKING:
    from raysweep.evaluation.task import Evaluation
    from raysweep.training.checkpoint import Checkpoint

_T = TypeVar("_T")

# A checkpoint at least this often, in seconds, where rows are further apart.
CHECKPOINT_INTERVAL = 300.0

# Within so many seconds Ray sees that a node is gone; what ran there fails at once.
NOTICE = 30.0

# Within so many seconds a cluster that is being stopped has stopped its trials too.
SHUTDOWN = 3.0

# What Ray Train reads from the environment of whoever calls fit().
TRAIN_ENVIRONMENT = {
    # Workers are polled this often; the default of 2 s is most of what a short cell would wait for.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # A worker may have to wait for an evaluation, or for a node to start; giving up is not the controller's to decide.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(7 * 24 * 3600),
}


def run_cell(
    config: dict[str, Any], space: Space, location: str, fingerprints: dict[str, str], train: bool
) -> None:  # fmt: skip
    """The Tune function.

    `config["cell"]` is a cell as `Cell.describe` has it, `location` the store, `fingerprints` those of its corpora. Without
    `train` a trained cell is only evaluated.
    """
    from ray import tune

    cell = next(cell for cell in space.cells if cell.id == config["cell"]["id"])
    try:
        failed = _complete(cell, space, Store(location, running=True), fingerprints[cell.corpus.key], train)
    except StoreError as error:
        tune.report({"cell": cell.id, "unreachable": str(error)})
        return
    tune.report({"cell": cell.id, "failed": failed, "finished": True})


def _complete(cell: Cell, space: Space, store: Store, fingerprint: str, train: bool) -> list[str]:
    """Do what the store lacks of a cell; the errors. Raises `StoreError` where not even those can be written."""
    failed = []
    row = store.cell_row(cell.id)
    # A finished cell's missing evaluations need its weights; those that an unfinished one has must be of its weights.
    of_weights = _missing(cell, space, store) if row is not None else store.evaluation_files(cell.id)
    if of_weights and _final(cell, store) is None:
        if not train:
            return ["its final weights are damaged or gone: `raysweep run` trains it again"]
        if row is not None:
            # Training says so when it passes over the damaged checkpoint.
            store.set_aside(store.cell_file(cell.id), "the cell's final weights are damaged or gone")
            row = None
        for evaluation in store.evaluation_files(cell.id):
            # Where rounding differs these would be of another model than the rest.
            store.set_aside(evaluation, "it is of weights that are gone")
    if row is None:
        error = _attempt(store, cell, TRAIN, lambda: _train(cell, space, store, fingerprint))
        if error is not None:
            failed.append(error)
        row = store.cell_row(cell.id)
    if row is not None and row["status"] == "done":
        failed += _evaluate(cell, space, store, fingerprint)
    return failed


def _attempt(store: Store, cell: Cell, stage: str, work: Any) -> str | None:
    """Do the work; its error, if any, goes to the store and back to the caller as one line."""
    try:
        work()
    except Exception as error:
        logging.getLogger(__name__).exception("%s of %s failed", stage, cell.id)
        cause = _innermost(error)
        if isinstance(cause, StoreError):
            raise cause from None
        line = _one_line(cause)
        # A cluster that is being stopped takes its actors one by one, this process soon after: that is no failure.
        time.sleep(SHUTDOWN)
        # Where the store is at fault after all this raises, and no cell is blamed.
        store.probe()
        record_failure(store, cell.id, stage, line)
        return line
    store.delete(store.failure_file(cell.id, stage))
    return None


def record_failure(store: Store, cell: str, stage: str, error: str) -> None:
    """Put the last error of what is not done into the store; `stage` is `train` or an evaluation's task."""
    row = {"cell": cell, "stage": stage, "error": error, "failed": _now()}
    store.write_table(store.failure_file(cell, stage), [row], FAILURES)


def _innermost(error: BaseException) -> BaseException:
    """The innermost cause, which is where the reason is; wrappers carry tracebacks in their messages."""
    workers = getattr(error, "worker_failures", None)
    # Of Ray Train's own controller it has the cause here, and nowhere else.
    error = next(iter(workers.values())) if workers else getattr(error, "controller_failure", error)
    while (
        inner := getattr(error, "cause", None) or getattr(error, "_base_exc", None) or error.__cause__
    ) is not None and inner is not error:
        error = inner
    return error


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    message = lines[-1] if lines else ""
    name = type(error).__name__
    return message if isinstance(error, UserError) or message.startswith(name) else f"{name}: {message}"


# Training.


def _train(cell: Cell, space: Space, store: Store, fingerprint: str) -> None:
    import ray.train
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    os.environ.update(TRAIN_ENVIRONMENT)
    wanted = space.resources.train
    # Ray Train keeps no checkpoints, and so resumes nothing: its record of them is not written atomically, refuses another
    # version of Ray, and ends the run where the store is away for a moment. The worker writes its own
    # (raysweep.checkpoint), and goes on from those.
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={
            "cell": cell.model_dump(),
            "store": store.location,
            "fingerprint": fingerprint,
            "resources": wanted.model_dump(),
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=wanted.workers,
            use_gpu=wanted.gpus > 0,
            resources_per_worker={"CPU": wanted.cpus} | ({"GPU": wanted.gpus} if wanted.gpus else {}),
        ),
        run_config=ray.train.RunConfig(
            name=cell.id,
            # Of this trial, in Ray's own temporary folder.
            storage_path=os.getcwd(),
            callbacks=[TuneReportCallback()],  # type: ignore[list-item]
            # Of errors and of processes that die; see `_despite_lost_nodes` for the rest.
            failure_config=ray.train.FailureConfig(max_failures=2),
        ),
    )
    result: Any = _despite_lost_nodes(trainer.fit, several=wanted.workers > 1)
    if result.return_value is not None:
        raise result.return_value
    _write_tables(cell, store)


def _despite_lost_nodes(work: Callable[[], _T], several: bool = False) -> _T:
    """The result of the work, which is tried again where a process of it is lost while a node of the cluster goes away.

    Nodes that are taken away without notice are no fault of a cell's and may be any number. Ray counts them as failures.
    Of `several` workers those that are left fail in ways of their own.
    """
    while True:
        before = cluster.nodes()
        try:
            return work()
        except Exception as error:
            lost = _process_lost(error)
            if not (several or lost) or not _node_gone(before, NOTICE if lost else 0.0):
                raise
            logging.getLogger(__name__).warning("a node went away: trying again", exc_info=True)


def _node_gone(before: dict[str, Any], patience: float) -> bool:
    """Whether a node of those before is gone, or is seen to be within so many seconds."""
    deadline = time.monotonic() + patience
    while before.keys() <= cluster.nodes().keys():
        if time.monotonic() >= deadline:
            return False
        time.sleep(1.0)
    return True


def _process_lost(error: Exception) -> bool:
    """Whether it was a process that failed, and not what ran in it."""
    from ray.exceptions import RayError

    failures = (getattr(error, "worker_failures", None) or {0: error}).values()
    return any(
        isinstance(_innermost(getattr(failure, "health_check_failure", failure)), RayError) for failure in failures
    )


def train_worker(config: dict[str, Any]) -> Any:
    """What each Ray Train worker runs. A `UserError` of a lone worker is returned: to try again would not help."""
    import ray.train

    try:
        _train_worker(config)
    except UserError as error:
        if ray.train.get_context().get_world_size() > 1:
            raise  # The others would wait for this one for ever.
        return type(error)(str(error))
    return None


def _train_worker(config: dict[str, Any]) -> None:
    import ray.train
    import torch
    from ray.train.torch import get_device
    from torch.nn.parallel import DistributedDataParallel

    from raysweep.corpora.shared import obtain
    from raysweep.model import kernels
    from raysweep.training import checkpoint
    from raysweep.training.run import Run

    cell = Cell.model_validate(config["cell"])
    resources = config["resources"]
    store = Store(config["store"], running=True)
    context = ray.train.get_context()
    rank, workers, device = context.get_world_rank(), context.get_world_size(), get_device()
    torch.set_num_threads(resources["cpus"])
    warnings: list[str] = []
    found = checkpoint.latest(store, store.run_directory(cell.id), warnings.append)
    position = found[1].position if found else None
    if position is not None and position.fingerprint == config["fingerprint"] and position.ends(cell.steps):
        return  # Trained to the end, but killed before its tables were written.
    run = Run(
        cell,
        obtain(cell.corpus, config["fingerprint"], store),
        device=device,
        rank=rank,
        workers=workers,
        micro_batch_size=resources["micro_batch_size"],
        gpu_share=resources["gpus"] or 1.0,
        compile=resources["compile"],
        distribute=DistributedDataParallel if workers > 1 else lambda language_model: language_model,
        checkpoint=found[1] if found else None,
    )
    if device.type == "cpu" and not kernels.available():
        warnings.append(
            f"{socket.gethostname()} has no C compiler, or it failed: small models train with PyTorch's own operations, "
            "about half as fast, and round otherwise than where there is one"
        )
    intact = [found[0]] if found else []
    kept = None if resources["keep_checkpoints"] == "all" else resources["keep_checkpoints"]
    saved = started = time.monotonic()
    first_step = run.position.step

    def due(step: int) -> bool:
        """Rank 0's clock decides for all."""
        now = torch.tensor(time.monotonic() - saved > CHECKPOINT_INTERVAL, device=device, dtype=torch.uint8)
        if workers > 1:
            torch.distributed.broadcast(now, src=0)
        return bool(now)

    for row in run.rows(pause=due):
        step = run.position.step
        seconds = time.monotonic() - started
        progress = {
            "cell": cell.id,
            "step": step,
            "steps": cell.steps,
            "tokens": step * cell.tokens_per_step,
            "tokens_per_second": (step - first_step) * cell.tokens_per_step / seconds,
            **{key: value for key, value in (row or {}).items() if value is not None},
        }
        if warnings:
            # A worker's own log is on its node; by a report it reaches the person who is watching.
            progress["warning"] = "; ".join(warnings)
            warnings.clear()
        if rank == 0:
            intact = checkpoint.append(run.checkpoint(), store, store.run_directory(cell.id), intact, kept)
        ray.train.report(progress)
        saved = time.monotonic()


def _final(cell: Cell, store: Store) -> Checkpoint | None:
    """Position and weights at the end of a cell's training, if they are there and intact."""
    from raysweep.training import checkpoint

    found = checkpoint.latest(store, store.run_directory(cell.id), optimizer=False)
    return found[1] if found is not None and found[1].position.ends(cell.steps) else None


def _write_tables(cell: Cell, store: Store) -> None:
    """A cell's trajectory, timing and row, out of its final checkpoint; the row comes last and says it is done."""
    final = _final(cell, store)
    if final is None:
        raise RuntimeError("training ended without its final checkpoint")
    position = final.position
    last = position.rows[-1]
    store.write_table(store.trajectory_file(cell.id), position.rows, TRAJECTORIES)
    tokens = last["tokens"]
    _write_timing(store, cell, TRAIN, position.seconds, tokens, position.starts)
    row = cell.describe() | {
        "status": "diverged" if position.diverged else "done",
        "steps_trained": position.step,
        "tokens_trained": tokens,
        **{key: value for key, value in last.items() if key in CELLS.names and key not in ("tokens", "learning_rate")},
        "corpus_fingerprint": position.fingerprint,
        **_versions(),
    }
    store.write_table(store.cell_file(cell.id), [row], CELLS)


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {"raysweep_version": __version__, "torch_version": version("torch")}


def _write_timing(store: Store, cell: Cell, stage: str, seconds: float, tokens: int | None, starts: int) -> None:
    row = {
        "cell": cell.id,
        "stage": stage,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds if tokens is not None and seconds > 0 else None,
        "starts": starts,
        "host": socket.gethostname(),
        "finished": _now(),
    }
    store.write_table(store.timing_file(cell.id, stage), [row], TIMINGS)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)


# Evaluation.


def _evaluate(cell: Cell, space: Space, store: Store, fingerprint: str) -> list[str]:
    """Start what is missing as Ray tasks, wait for all, and return the errors."""
    import ray

    wanted = space.resources.evaluate
    task = ray.remote(
        num_cpus=wanted.cpus,
        num_gpus=wanted.gpus,
        # A process that has used a GPU keeps some of its memory, and would use the same one again whatever it is given.
        max_calls=1 if wanted.gpus else 0,
        # A crashed process or a lost node is tried again, an error in the task is not.
        max_retries=3,
        # Left to itself a task started in a trial is confined to the trial's own placement group, which has no CPU.
        scheduling_strategy="DEFAULT",
    )(evaluate_cell)

    def start(evaluation: Evaluation) -> Any:
        return task.remote(cell, evaluation, store.location, fingerprint, wanted.cpus, wanted.gpus)

    def outcome(evaluation: Evaluation, running: list[Any]) -> str | None:
        def result() -> None:
            ray.get(running.pop() if running else start(evaluation))

        return _attempt(store, cell, evaluation.task, lambda: _despite_lost_nodes(result))

    started = [(evaluation, [start(evaluation)]) for evaluation in _missing(cell, space, store)]
    errors = [outcome(evaluation, running) for evaluation, running in started]
    return [error for error in errors if error is not None]


def _missing(cell: Cell, space: Space, store: Store) -> list[Evaluation]:
    return [
        evaluation
        for evaluation in space.evaluations
        if store.evaluation_rows(cell.id, evaluation.task, evaluation.model_dump()) is None
    ]


def evaluate_cell(
    cell: Cell, evaluation: Evaluation, location: str, fingerprint: str, cpus: int, gpus: float
) -> None:  # fmt: skip
    """The Ray task: one evaluation of one trained cell, from its weights in the store to its rows in the store."""
    import torch

    from raysweep.corpora.shared import obtain
    from raysweep.evaluation import task as evaluate

    begun = time.monotonic()
    torch.set_num_threads(cpus)
    store = Store(location, running=True)
    # A task that asked for no GPU sees those of its node all the same.
    device = torch.device("cuda" if gpus > 0 and torch.cuda.is_available() else "cpu")
    final = _final(cell, store)
    if final is None:
        raise RuntimeError("the final weights of the cell are gone")
    corpus = obtain(cell.corpus, fingerprint, store)
    rows = evaluate.run(cell, evaluation, final.model, corpus, store, device, gpus or 1.0)
    settings = evaluation.model_dump()
    _write_timing(store, cell, evaluation.task, time.monotonic() - begun, None, 1)
    store.write_table(store.evaluation_file(cell.id, evaluation.task, settings), rows, EVALUATIONS)
