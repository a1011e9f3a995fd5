"""The evaluations of one trained cell, each a Ray task with a row of its own in the store."""

from __future__ import annotations

import time
from typing import Any

import ray

from raysweep.space.cell import Cell
from raysweep.space.evaluations import Evaluation
from raysweep.space.space import Space
from raysweep.store import Store
from raysweep.store.schemas import EVALUATIONS
from raysweep.sweep.failures import process_lost, run_and_record
from raysweep.sweep.node_loss import retry_on_node_loss
from raysweep.sweep.same_code import check_same_code

# Seconds after which an evaluation whose process was killed is tried again: others may give memory back meanwhile.
RETRY_AFTER_S = (1.0, 10.0, 30.0)


def run_evaluations(cell: Cell, space: Space, store: Store, fingerprint: str, code: dict[str, str]) -> list[str]:
    """Start the evaluations that the store lacks as Ray tasks, wait for all, and return the errors."""
    resources = space.resources.evaluate
    task = ray.remote(
        num_cpus=resources.cpus,
        num_gpus=resources.gpus,
        # A process that has used a GPU keeps some of its memory, and would use the same one again whatever it is given.
        max_calls=1 if resources.gpus else 0,
        # Ray would start what is killed for want of memory again without end and without a word.
        max_retries=0,
        # Left to itself a task started in a trial is confined to the trial's own placement group, which has no CPU.
        scheduling_strategy="DEFAULT",
    )(evaluate_cell)

    def start(evaluation: Evaluation) -> Any:
        return task.remote(cell, evaluation, store.location, fingerprint, code, resources.cpus, resources.gpus)

    def outcome(evaluation: Evaluation, running: list[Any]) -> str | None:
        def result() -> None:
            # A crashed process is tried again, an error in the task is not.
            waits = list(RETRY_AFTER_S)
            while True:
                try:
                    ray.get(running.pop() if running else start(evaluation))
                    return
                except Exception as error:
                    if not waits or not process_lost(error):
                        raise
                    time.sleep(waits.pop(0))

        return run_and_record(store, cell, evaluation.label, lambda: retry_on_node_loss(result))

    started = [(evaluation, [start(evaluation)]) for evaluation in missing_evaluations(cell, space, store)]
    errors = [outcome(evaluation, running) for evaluation, running in started]
    return [error for error in errors if error is not None]


def missing_evaluations(cell: Cell, space: Space, store: Store) -> list[Evaluation]:
    """The evaluations of a cell that the store has no rows of."""
    return [
        evaluation
        for evaluation in space.evaluations_of(cell)
        if store.evaluation_rows(cell.id, evaluation.label, evaluation.identity) is None
    ]


def evaluate_cell(
    cell: Cell, evaluation: Evaluation, location: str, fingerprint: str, code: dict[str, str], cpus: int, gpus: float
) -> None:  # fmt: skip
    """The Ray task: one evaluation of one trained cell, from its weights in the store to its rows in the store."""
    # torch is for the process of the task, not for that of the trial that starts it.
    import torch

    from raysweep.corpora.shared import obtain
    from raysweep.evaluation.run import run
    from raysweep.model.language_model import gpu
    from raysweep.sweep.cell_tables import final_checkpoint, write_timing
    from raysweep.sweep.prepare_texts import prepared_text

    check_same_code(code)
    begun = time.monotonic()
    torch.set_num_threads(cpus)
    store = Store(location, running=True)
    # A task that asked for no GPU sees those of its node all the same.
    device = gpu(gpus, "resources.evaluate.gpus") if gpus > 0 else torch.device("cpu")
    final = final_checkpoint(cell, store)
    if final is None:
        raise RuntimeError("the final weights of the cell are gone")
    corpus = obtain(cell.corpus.name, fingerprint, store)
    text = prepared_text(evaluation, cell.corpus, store)
    rows, by = run(cell, evaluation, final.model, corpus, store, device, gpus or 1.0, text)
    settings = evaluation.identity
    write_timing(store, cell.id, evaluation.label, time.monotonic() - begun, None, 1, [by], gpus)
    store.write_table(store.evaluation_file(cell.id, evaluation.label, settings), rows, EVALUATIONS)
