"""What each Ray Train worker of a cell does: train from the furthest checkpoint, report rows, keep checkpoints."""

from __future__ import annotations

import socket
import time
from typing import Any

import ray.train
import torch
from ray.train.torch import get_device
from torch.nn.parallel import DistributedDataParallel

from raysweep.corpora.shared import obtain
from raysweep.errors import UserError
from raysweep.model import kernels
from raysweep.model.language_model import gpu, use_deterministic_operations
from raysweep.space.cell import Cell
from raysweep.space.measure import Measurement
from raysweep.store import Store
from raysweep.sweep import ending
from raysweep.sweep.same_code import check_same_code
from raysweep.training import checkpoint
from raysweep.training.resume import train_to_end
from raysweep.training.run import Run

# A checkpoint at least this often, in seconds, where rows are further apart.
CHECKPOINT_INTERVAL = 300.0


def train_in_worker(config: dict[str, Any]) -> Any:
    """Train the cell that `config` describes. A `UserError` of a lone worker is returned: to try again would not help."""
    try:
        _train(config)
    except UserError as error:
        if ray.train.get_context().get_world_size() > 1:
            raise  # The others would wait for this one for ever.
        return type(error)(str(error))
    return None


def _train(config: dict[str, Any]) -> None:
    check_same_code(config["code"])
    cell = Cell.model_validate(config["cell"])
    resources = config["resources"]
    store = Store(config["store"], running=True)
    context = ray.train.get_context()
    rank, workers, device = context.get_world_rank(), context.get_world_size(), get_device()
    if resources["gpus"]:
        if resources["deterministic"]:
            use_deterministic_operations()
        gpu(resources["gpus"], "resources.train.gpus")
    torch.set_num_threads(resources["cpus"])
    warnings: list[str] = []
    latest = checkpoint.latest(store, store.run_directory(cell.id), warnings.append)
    resumed_from, resumed = latest if latest else (None, None)
    _check_same_start(resumed_from, workers)
    if resumed and resumed.state.fingerprint == config["fingerprint"] and resumed.state.ends(cell.steps):
        return  # Trained to the end, but killed before its tables were written.
    computed_before = list(resumed.state.computed_by) if resumed else []
    run = Run(
        cell,
        obtain(cell.corpus.name, config["fingerprint"], store),
        device=device,
        rank=rank,
        workers=workers,
        micro_batch_size=resources["micro_batch_size"],
        gpu_share=resources["gpus"] or 1.0,
        compile=device.type == "cuda" if resources["compile"] is None else resources["compile"],
        distribute=DistributedDataParallel if workers > 1 else lambda language_model: language_model,
        measure=[Measurement.model_validate(one) for one in config["measure"]],
        checkpoint=resumed,
    )
    if device.type == "cpu" and not kernels.available():
        warnings.append(
            f"{socket.gethostname()} has no working C compiler: small models train with PyTorch's own operations, "
            "about half as fast, and their numbers round differently"
        )
    if moved := went_on_elsewhere(computed_before, run.state.computed_by):
        warnings.append(moved)
    started, first_step = time.monotonic(), run.state.step
    told: set[str] = set()

    def report(row: dict[str, Any] | None, kept: bool = False) -> None:
        step = run.state.step
        warnings.extend(said for name, said in run.failed_metrics.items() if name not in told)
        told.update(run.failed_metrics)
        progress = {
            "cell": cell.id,
            "step": step,
            "steps": cell.steps,
            "kept": kept,
            "tokens": step * cell.tokens_per_step,
            "tokens_per_second": (step - first_step) * cell.tokens_per_step / (time.monotonic() - started),
            **{key: value for key, value in (row or {}).items() if value is not None},
        }
        if warnings:
            # A worker's own log is on its node; by a report it reaches the person who is watching.
            progress["warning"] = "; ".join(warnings)
            warnings.clear()
        ray.train.report(progress)

    kept = None if resources["keep_checkpoints"] == "all" else resources["keep_checkpoints"]
    train_to_end(
        run, store, store.run_directory(cell.id), resumed_from, kept, CHECKPOINT_INTERVAL, report,
        ending.is_asked_for, lambda: report(None, kept=True),
    )  # fmt: skip


def went_on_elsewhere(before: list[dict[str, str]], now: list[dict[str, str]]) -> str | None:
    """What to say where a run goes on with another device, precision or kernels than computed it last; else None.

    It names no cell: of many that moved in the same way it is said once, and the store's timings say which they are.
    """
    if not before or before[-1] == now[-1]:
        return None
    changed = [key for key in now[-1] if before[-1].get(key) != now[-1][key]]
    old, new = (", ".join(f"{key.replace('_', ' ')} {of[-1].get(key)}" for key in changed) for of in (before, now))
    return (
        f"a cell that was trained on {old} goes on on {new}: from here on its numbers round differently than in a run "
        "on one machine (the columns of timings/ say which cells these are)"
    )


def _check_same_start(name: str | None, workers: int) -> None:
    """Raise where the workers of a cell found different checkpoints, which file servers' caches can cause.

    Then the cell is tried again. Without this each would train on from another step, and their mean would be stored.
    """
    if workers > 1:
        names: list[str | None] = [None] * workers
        torch.distributed.all_gather_object(names, name)
        if len(set(names)) > 1:
            raise RuntimeError(f"the workers found different checkpoints in the store: {', '.join(map(str, names))}")
