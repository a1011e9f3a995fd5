"""What a store has finished, read from its tables."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from raysweep.errors import UserError
from raysweep.space.cell import Cell
from raysweep.space.measure import column
from raysweep.space.space import Space
from raysweep.store.index import read_all
from raysweep.store.measures import asked
from raysweep.store.schemas import CELLS, EVALUATIONS, MEASURES, REAL, TIMINGS, TRAJECTORIES
from raysweep.store.store import TRAIN, Store

log = logging.getLogger("raysweep")

TRAINED_ON = "trained_on"
"""The column of what trained a cell: device, precision, code of the blocks."""

GPU_HOURS = "train_gpu_hours"
"""The column of what training took of GPUs, which it held from its start in a worker to its end."""


def nothing_finished(space: Space, store: Store) -> str:
    """Why there is no result: the sweep has finished no cell, or there is no sweep at all, as in a mistyped folder."""
    if store.begun():
        return f"no cell of {space.name} is finished in {store.location}: `raysweep run` trains them"
    return f"no sweep has begun in {store.location}: name another --store, or begin one there with `raysweep run`"


def finished(store: Store) -> dict[str, dict[str, Any]]:
    """The row of every finished cell by its id; a cell counts as finished only if its trajectory can be read too."""
    trajectories = read_all(store, "trajectories", TRAJECTORIES, keep=lambda rows: [])
    return {cell: rows[0] for cell, rows in read_all(store, "cells", CELLS).items() if rows and cell in trajectories}


def evaluated(store: Store, task: str, settings: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The rows of one evaluation by cell."""
    return read_all(store, store.evaluation_tables(task, settings), EVALUATIONS)


def _gpu_hours(timing: dict[str, Any]) -> float | None:
    """What the training of a cell took of GPUs; None where an older raysweep trained it, which did not say."""
    return None if timing["gpus"] is None else timing["gpus"] * timing["seconds"] / 3600


def _computed_by(timing: dict[str, Any]) -> str | None:
    """What trained a cell, in words; None where an older raysweep did, which did not say."""
    if timing["device"] is None:
        return None
    compiled = ", compiled" if timing["compiled"] != "no" else ""
    return f"{timing['device_name']}, {timing['precision']}, {timing['kernels']} blocks{compiled}"


def _last(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the last step."""
    last = max((row["step"] for row in rows), default=0)
    return [row for row in rows if row["step"] == last]


def _at_the_end(cell: Cell, step: int, space: Space, rows: list[dict[str, Any]]) -> Iterator[tuple[str, float, str]]:
    """Column, value and unit of what `measure` asks for at the end of a cell's training."""
    wanted = asked(space, cell)
    for row in rows:
        if row["step"] == step and (row["matrix"], row["metric"], row["settings"]) in wanted:
            yield column(row["metric"], row["matrix"]), row["value"], row["unit"]


def _of_other_code(label: str, store: Store) -> bool:
    """Whether there are results of an evaluation under other settings, or another version of its code."""
    return any(name.startswith(f"{label}-") for name in store.directories("evaluations"))


@cache
def _warn_of_other_code(location: str, label: str, version: str) -> None:
    """Say it once, however often the store is read."""
    log.warning(
        "%s: the store's numbers are of other code than version %s: `raysweep evaluate` computes them with it",
        label, version,
    )  # fmt: skip


def timings(space: Space, store: Store, cells: Iterable[str]) -> list[dict[str, Any]]:
    """The rows of `schemas.TIMINGS` of these cells: of their training, and of each evaluation of the space."""
    stages = [TRAIN, *(evaluation.label for evaluation in space.evaluations)]
    by_cell = [read_all(store, f"timings/{stage}", TIMINGS) for stage in stages]
    rows = [row for cell in cells for of_stage in by_cell for row in of_stage.get(cell, [])]
    for row in rows:
        if row["finished"] is not None:  # `read_all` gives times as text.
            row["finished"] = datetime.datetime.fromisoformat(row["finished"])
    return rows


def results(space: Space, store: str | Path | Store) -> pa.Table:
    """The results of a sweep so far, one row per finished cell.

    Parameters
    ----------
    space
        Which cells, and which evaluations.
    store
        The folder or URI of the results.

    Returns
    -------
    pyarrow.Table
        In the order of the search space: each cell's settings, its status, its last row of training (loss in nats per
        token, geometry of W), every metric of the evaluations, what `measure` asks for at the end of training, its training
        time in seconds, its GPU-hours where it had GPUs, and what trained it. A field's metadata has the unit, and the
        version of a task of your own. A metric that a cell lacks is null.

    Raises
    ------
    StoreError
        Where the store cannot be read.

    Examples
    --------
    >>> space = raysweep.load("search_spaces/demo.yaml")
    >>> raysweep.results(space, "runs/demo").num_rows                  # doctest: +SKIP
    16
    """
    store = Store.at(store)
    done = finished(store)
    timings = read_all(store, f"timings/{TRAIN}", TIMINGS)
    measured = [(one, evaluated(store, one.label, one.identity)) for one in space.evaluations]
    for evaluation, found in measured:
        if evaluation.code_version and not found and _of_other_code(evaluation.label, store):
            _warn_of_other_code(store.location, evaluation.label, evaluation.code_version)
    measures = read_all(store, "measures", MEASURES, keep=_last) if space.measure else {}
    rows: list[dict[str, Any]] = []
    metadata: dict[str, dict[str, str]] = {
        "train_seconds": {"unit": "s"},
        "train_tokens_per_second": {"unit": "tokens/s"},
    }
    for cell in space.cells:
        row = done.get(cell.id)
        if row is None:
            continue
        timing = timings.get(cell.id)
        row["train_seconds"] = timing[0]["seconds"] if timing else None
        row["train_tokens_per_second"] = timing[0]["tokens_per_second"] if timing else None
        row[GPU_HOURS] = _gpu_hours(timing[0]) if timing else None
        row[TRAINED_ON] = _computed_by(timing[0]) if timing else None
        by: dict[str, str] = {}
        for evaluation, of_cells in measured:
            version = evaluation.code_version
            for metric in of_cells.get(cell.id, []):
                name = metric["metric"]
                if name in row:
                    raise UserError(
                        f"{evaluation.label} and {by.get(name, 'training')} both have a number {name}: give "
                        f"{evaluation.label} another name in the search space"
                    )
                by[name] = evaluation.label
                row[name] = metric["value"]
                metadata[name] = {"unit": metric["unit"]} | ({"version": version} if version else {})
        for name, value, unit in _at_the_end(cell, row["steps_trained"], space, measures.get(cell.id, [])):
            row[name], metadata[name] = value, {"unit": unit}
        rows.append(row)
    schema = CELLS
    for name, about in metadata.items():
        schema = schema.append(pa.field(name, REAL, metadata=about))
    if any(row[GPU_HOURS] for row in rows):
        schema = schema.append(pa.field(GPU_HOURS, REAL, metadata={"unit": "h"}))
    if any(row[TRAINED_ON] for row in rows):
        schema = schema.append(pa.field(TRAINED_ON, pa.string()))
    return pa.Table.from_pylist(rows, schema=schema)
