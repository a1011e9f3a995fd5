"""The tables of one cell, out of its final checkpoint."""

from __future__ import annotations

import itertools
import socket
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from raysweep.space.cell import Cell
from raysweep.store import Store, measures
from raysweep.store.schemas import CELLS, TIMINGS, TRAJECTORIES
from raysweep.store.sessions import now
from raysweep.store.store import TRAIN
from raysweep.training import checkpoint
from raysweep.training.checkpoint import Checkpoint, of_spectrum_key, spectrum_key
from raysweep.version import __version__

if TYPE_CHECKING:
    import torch


def final_checkpoint(cell: Cell, store: Store) -> Checkpoint | None:
    """State and weights at the end of a cell's training, if they are there and intact."""
    latest = checkpoint.latest(store, store.run_directory(cell.id), optimizer=False)
    return latest[1] if latest is not None and latest[1].state.ends(cell.steps) else None


def write_cell_tables(cell: Cell, store: Store, gpus: float, add: bool = False) -> None:
    """A cell's trajectory, timing and row, out of its final checkpoint; the row comes last and says it is done.

    `gpus` is how many its workers had together. With `add` what `raysweep measure` has found stays.
    """
    final = final_checkpoint(cell, store)
    if final is None:
        raise RuntimeError("training ended without its final checkpoint")
    state = final.state
    last = state.rows[-1]
    store.write_table(store.trajectory_file(cell.id), state.rows, TRAJECTORIES)
    measures.write(store, cell.id, state.measures, spectra_rows(final.spectra), add)
    tokens = last["tokens"]
    write_timing(store, cell.id, TRAIN, state.seconds, tokens, state.starts, state.computed_by, gpus)
    row = cell.describe() | {
        "status": "diverged" if state.diverged else "done",
        "steps_trained": state.step,
        "tokens_trained": tokens,
        **{key: value for key, value in last.items() if key in CELLS.names and key not in ("tokens", "learning_rate")},
        "corpus_fingerprint": state.fingerprint,
        "raysweep_version": __version__,
        "torch_version": version("torch"),
    }
    store.write_table(store.cell_file(cell.id), [row], CELLS)


def spectra_rows(spectra: dict[str, torch.Tensor]) -> list[dict[str, Any]]:
    """The singular values of a checkpoint as rows of `schemas.SPECTRA`, without the cell."""
    return [
        {
            "step": step,
            "matrix": matrix,
            "settings": settings,
            "singular_values": spectra[spectrum_key(step, matrix, settings)].tolist(),
        }
        for step, matrix, settings in sorted(map(of_spectrum_key, spectra))
    ]


def write_timing(
    store: Store, cell: str, stage: str, seconds: float, tokens: int | None, starts: int,
    computed_by: list[dict[str, str]], gpus: float,
) -> None:  # fmt: skip
    """What wall-clock measured of one stage (`train` or a task) and what computed it, apart from what must not depend on it.

    Where a run went on on another device, each column has both in turn.
    """
    row = {
        "cell": cell,
        "stage": stage,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds if tokens is not None and seconds > 0 else None,
        "starts": starts,
        "host": socket.gethostname(),
        **{
            column: ", then ".join(name for name, _ in itertools.groupby(part[column] for part in computed_by))
            for column in (computed_by[0] if computed_by else ())
        },
        "gpus": gpus,
        "finished": now(),
    }
    store.write_table(store.timing_file(cell, stage), [row], TIMINGS)
