"""A training checkpoint: a folder of a few files, each under a checksum, found again after any kill.

model.safetensors       weights under OLMo's names
optimizer.safetensors   the optimizer's moments by parameter, and torch's random state
spectra.safetensors     the singular values so far, where any are kept
state.json              position, rows so far, and the checksums of the others
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from raysweep.store import Store
from raysweep.store.checkpoints import names, new_name, step_of
from raysweep.store.schemas import SCHEMA_VERSION
from raysweep.store.tables import checksum as checksum_of

log = logging.getLogger("raysweep")

MODEL, OPTIMIZER, SPECTRA = "model.safetensors", "optimizer.safetensors", "spectra.safetensors"
STATE = "state.json"


@dataclass
class TrainState:
    """How far a run is. Floats survive the JSON to the last bit."""

    cell: str
    fingerprint: str
    """Of the corpus it trains on."""
    step: int = 0
    """Optimizer steps taken."""
    loss_sum: float = 0.0
    """Sum of the steps' losses since the last row, the mean over workers."""
    loss_steps: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    """The trajectory so far."""
    measures: list[dict[str, Any]] = field(default_factory=list)
    """What `measure` asked for so far: rows of `schemas.MEASURES`."""
    diverged: bool = False
    seconds: float = 0.0
    """Wall-clock time so far; a killed process counts only up to its last checkpoint."""
    starts: int = 0
    computed_by: list[dict[str, str]] = field(default_factory=list)
    """What computed it (`model.language_model.computed_by`), in turn; empty where an older raysweep did."""
    base: str = ""
    """SHA-256 of the weights that a fine-tuning began with; empty for training from the beginning."""

    def ends(self, steps: int) -> bool:
        """Whether training of `steps` steps is over here."""
        return self.diverged or self.step == steps


@dataclass
class Checkpoint:
    state: TrainState
    model: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    """Empty where only the weights were asked for."""
    spectra: dict[str, torch.Tensor] = field(default_factory=dict)
    """Singular values by `spectrum_key`."""


def spectrum_key(step: int, matrix: str, settings: str) -> str:
    """The name of a matrix's singular values at a step in a checkpoint."""
    return f"{step}|{matrix}|{settings}"


def of_spectrum_key(key: str) -> tuple[int, str, str]:
    """The step, matrix and settings of a `spectrum_key`."""
    step, matrix, settings = key.split("|")
    return int(step), matrix, settings


def copied(checkpoint: Checkpoint) -> Checkpoint:
    """A copy that no step changes, in the memory of the CPU; of a GPU, in memory that it copies to at full speed."""

    def copy(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {
            name: torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda).copy_(
                tensor, non_blocking=True
            )
            for name, tensor in tensors.items()
        }

    state = checkpoint.state
    state = replace(state, rows=list(state.rows), measures=list(state.measures), computed_by=list(state.computed_by))
    copy_of = Checkpoint(state, copy(checkpoint.model), copy(checkpoint.optimizer), dict(checkpoint.spectra))
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return copy_of


def digest(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 of tensors by their names."""
    return hashlib.sha256(_bytes(tensors)).hexdigest()


def _bytes(tensors: dict[str, torch.Tensor]) -> bytes:
    return save({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()})


def write(checkpoint: Checkpoint, store: Store, folder: str) -> None:
    """Write its files into a folder of the store; the state comes last and makes it whole."""
    sums = {}
    files = {MODEL: checkpoint.model, OPTIMIZER: checkpoint.optimizer}
    for file, tensors in (files | ({SPECTRA: checkpoint.spectra} if checkpoint.spectra else {})).items():
        content = _bytes(tensors)
        store.write(f"{folder}/{file}", content)
        sums[file] = hashlib.sha256(content).hexdigest()
    # What older versions did not write is left out where there is none.
    position = {k: value for k, value in asdict(checkpoint.state).items() if k not in ("base", "measures") or value}
    body = {"schema": SCHEMA_VERSION, "position": position, "sha256": sums}
    store.write(f"{folder}/{STATE}", json.dumps(body | {"checksum": checksum_of(body)}).encode())


def append(
    checkpoint: Checkpoint, store: Store, run_directory: str, intact: list[str], keep: int | None = None
) -> list[str]:
    """Write the next checkpoint of a run, and delete those that it replaces.

    `intact` names the checkpoints that this run wrote or resumed from, the furthest first; with the new one they are
    returned, and `keep` of them stay (None: the last two, and one of every row). Others up to here were left by other runs
    and are deleted: they may be damaged, or never have been finished. What is further stays until this run has passed it.
    """
    step = checkpoint.state.step
    new = new_name(step)
    write(checkpoint, store, f"{run_directory}/{new}")
    intact = [new, *intact][: keep or 2]
    of_rows = {row["step"] for row in checkpoint.state.rows} if keep is None else set()
    for other in names(store, run_directory):
        if step_of(other) <= step and other not in intact and step_of(other) not in of_rows:
            store.delete_directory(f"{run_directory}/{other}")
    return intact


class Damaged(Exception):
    """A checkpoint's file is not what was written; the message says which."""


class Unfinished(Damaged):
    """The process that wrote the checkpoint ended before it had."""


def read(store: Store, folder: str, optimizer: bool = True) -> Checkpoint:
    """Read and verify a checkpoint in a folder of the store; raises `Damaged`.

    Without `optimizer` its file, two thirds of the whole, is neither read nor asked for.
    """
    state, sums = _state(store, folder)
    moments = _tensors(store, folder, OPTIMIZER, sums) if optimizer else {}
    spectra = _tensors(store, folder, SPECTRA, sums) if SPECTRA in sums else {}
    return Checkpoint(state, _tensors(store, folder, MODEL, sums), moments, spectra)


def latest(
    store: Store, run_directory: str, warn: Callable[[str], None] = log.warning, optimizer: bool = True
) -> tuple[str, Checkpoint] | None:
    """The name and content (see `read`) of the furthest intact checkpoint in a run directory of the store.

    A damaged one is passed over for the one before it, and `warn` is told, so that no damage loses more than one.
    """
    for name in names(store, run_directory):
        try:
            return name, read(store, f"{run_directory}/{name}", optimizer)
        except Unfinished:
            continue
        except Damaged as error:
            warn(f"checkpoint {run_directory}/{name} is damaged ({error}): resuming from the one before")
    return None


def _state(store: Store, folder: str) -> tuple[TrainState, dict[str, str]]:
    content = _content(store, f"{folder}/{STATE}")
    try:
        body = json.loads(content)
        checksum = body.pop("checksum")
        if checksum != checksum_of(body):
            raise ValueError
        # Checkpoints of all schemas are the same, and the first do not say which.
        schema = body.get("schema", "1")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Damaged(f"{STATE} is not what was written") from None
    store.check_schema(f"{folder}/{STATE}", schema)
    try:
        return TrainState(**body["position"]), body["sha256"]
    except (KeyError, TypeError):
        raise Damaged(f"{STATE} is not what was written") from None


def _tensors(store: Store, folder: str, name: str, sums: dict[str, str]) -> dict[str, torch.Tensor]:
    content = _content(store, f"{folder}/{name}")
    if hashlib.sha256(content).hexdigest() != sums[name]:
        raise Damaged(f"{name} is not what was written")
    try:
        return load(content)
    except SafetensorError as error:
        raise Damaged(f"{name} holds no tensors: {error}") from None


def _content(store: Store, path: str) -> bytes:
    content = store.read(path)
    if content is None:
        file = path.rpartition("/")[2]
        raise (Unfinished if file == STATE else Damaged)(f"{file} is missing")
    return content
