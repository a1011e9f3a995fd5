"""What one Tune trial does: train its cell, then its evaluations, each with rows of its own in the store.

`run_cell` is the Tune function. It trains through a Ray Train `TorchTrainer` named by the cell's id, writes the cell's
tables out of the final checkpoint, and starts the missing evaluations as Ray tasks. It does only what the store lacks, so
it may be killed and started again at any point. What goes wrong in a cell becomes a row under `failures/`, not an exception:
the sweep goes on, and the next `raysweep run` tries again. What goes wrong with the store is reported, and ends the sweep.
"""

from __future__ import annotations

import os
from typing import Any

import ray.train
from ray import tune

from raysweep.cluster.environment import TRIAL
from raysweep.errors import StoreError, UserError
from raysweep.space.cell import Cell
from raysweep.space.space import Space
from raysweep.store import Store, measures
from raysweep.store.store import TRAIN
from raysweep.sweep.evaluate_cell import missing_evaluations, run_evaluations
from raysweep.sweep.failures import record_failure, run_and_record
from raysweep.sweep.node_loss import retry_on_node_loss
from raysweep.sweep.same_code import check_same_code


def run_cell(
    config: dict[str, Any], space: Space, location: str, fingerprints: dict[str, str], code: dict[str, str], train: bool
) -> None:  # fmt: skip
    """The Tune function.

    `config["cell"]` is a cell as `Cell.describe` has it, `location` the store, `fingerprints` those of its corpora and
    `code` the driver's. Without `train` a trained cell is only evaluated.
    """
    cell = next(cell for cell in space.cells if cell.id == config["cell"]["id"])
    try:
        store = Store(location, running=True)
        errors = complete_cell(cell, space, store, fingerprints[cell.corpus.key], code, train)
    except StoreError as error:
        tune.report({"cell": cell.id, "unreachable": str(error)})
        return
    tune.report({"cell": cell.id, "failed": errors, "finished": True})


def complete_cell(
    cell: Cell, space: Space, store: Store, fingerprint: str, code: dict[str, str], train: bool
) -> list[str]:
    """Do what the store lacks of a cell and return the errors. Raises `StoreError` if not even those can be written."""
    try:
        check_same_code(code)
        for task in space.evaluations_of(cell):
            task.check_here()
    except UserError as different:
        trained = store.cell_row(cell.id) is not None
        for stage in [one.label for one in missing_evaluations(cell, space, store)] if trained else [TRAIN]:
            record_failure(store, cell.id, stage, str(different))
        return [str(different)]
    errors = []
    row = store.cell_row(cell.id)
    # A finished cell's missing evaluations need its weights; those that an unfinished one has must be of its weights.
    need_weights = missing_evaluations(cell, space, store) if row is not None else store.evaluation_files(cell.id)
    if need_weights and not _has_weights(cell, store):
        if not train:
            return ["its final weights are damaged or gone: `raysweep run` trains it again"]
        if row is not None:
            # Training says so when it passes over the damaged checkpoint.
            store.quarantine(store.cell_file(cell.id), "the cell's final weights are damaged or gone")
            row = None
        for evaluation in store.evaluation_files(cell.id):
            # Where rounding differs these would be of another model than the rest.
            store.quarantine(evaluation, "it is of weights that are gone")
    if row is None:
        error = run_and_record(store, cell, TRAIN, lambda: train_cell(cell, space, store, fingerprint, code))
        if error is not None:
            errors.append(error)
        row = store.cell_row(cell.id)
    if row is not None and row["status"] == "done":
        errors += run_evaluations(cell, space, store, fingerprint, code)
    return errors


def _has_weights(cell: Cell, store: Store) -> bool:
    """Whether a cell's final weights are there and intact."""
    from raysweep.sweep.cell_tables import final_checkpoint  # It imports torch, which a driver never needs.

    return final_checkpoint(cell, store) is not None


def _train_in_worker(config: dict[str, Any]) -> Any:
    """What Ray Train calls in each worker; what that imports is for the worker's process alone."""
    from raysweep.sweep.worker import train_in_worker

    return train_in_worker(config)


def train_cell(cell: Cell, space: Space, store: Store, fingerprint: str, code: dict[str, str]) -> None:
    """Train a cell to its end by Ray Train, and write its tables."""
    # In the trial's own process; the driver never needs torch.
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    from raysweep.sweep.cell_tables import write_cell_tables
    from raysweep.sweep.failed_group import remove_groups

    os.environ.update(TRIAL)
    resources = space.resources.train
    # Ray Train keeps no checkpoints, and so resumes nothing: its record of them is not written atomically, refuses another
    # version of Ray, and ends the run where the store is away for a moment. The worker writes its own
    # (raysweep.training.checkpoint), and resumes from those.
    trainer = TorchTrainer(
        _train_in_worker,
        train_loop_config={
            "cell": cell.model_dump(),
            "store": store.location,
            "fingerprint": fingerprint,
            "code": code,
            "resources": resources.model_dump(),
            "measure": [one.model_dump(exclude_unset=True) for one in space.measure],
        },
        # A lone worker talks to nobody, and NCCL cannot start where there is no GPU: what the worker says of that is a line.
        # The others wait while the first measures.
        torch_config=TorchConfig(
            backend="gloo" if resources.workers == 1 else None, timeout_s=1800 if not space.measure else 4 * 3600
        ),
        scaling_config=ray.train.ScalingConfig(
            num_workers=resources.workers,
            use_gpu=resources.gpus > 0,
            resources_per_worker={"CPU": resources.cpus} | ({"GPU": resources.gpus} if resources.gpus else {}),
        ),
        run_config=ray.train.RunConfig(
            name=cell.id,
            # Of this trial, in Ray's own temporary folder.
            storage_path=os.getcwd(),
            callbacks=[TuneReportCallback()],  # type: ignore[list-item]
            # Of errors and of processes that die; see `retry_on_node_loss` for the rest.
            failure_config=ray.train.FailureConfig(max_failures=2),
        ),
    )

    # Where a table was lost and no weights, what `raysweep measure` has found is of these weights.
    kept = any(measures.keys(store, cell.id)) and _has_weights(cell, store)

    def fit() -> Any:
        remove_groups(cell.id)
        return trainer.fit()

    result = retry_on_node_loss(fit, several_workers=resources.workers > 1)
    if result.return_value is not None:
        raise result.return_value
    write_cell_tables(cell, store, resources.workers * resources.gpus, add=kept)
