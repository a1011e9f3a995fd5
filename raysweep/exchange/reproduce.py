"""Trains and evaluates a published cell again, and compares every number with the published one."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysweep.errors import UserError
from raysweep.exchange.published import PublishedResults, by_cell
from raysweep.space.measure import column as named
from raysweep.space.space import Space, find_cell
from raysweep.store import Store
from raysweep.store.measures import value_key
from raysweep.store.results import GPU_HOURS, TRAINED_ON, results
from raysweep.store.schemas import MEASURES, TRAJECTORIES
from raysweep.store.store import settings_text
from raysweep.sweep.events import Event
from raysweep.sweep.runner import SweepResult, run

# Of a row of results what differs from one run to the next, or says where the row is from.
_NOT_COMPARED = {"train_seconds", "train_tokens_per_second", GPU_HOURS, TRAINED_ON, "raysweep_version", "torch_version"}


@dataclass(frozen=True)
class Difference:
    """One number that is not what was published."""

    name: str
    published: Any
    here: Any


@dataclass(frozen=True)
class Comparison:
    """How many numbers were compared, and those that differ."""

    compared: int
    differences: list[Difference]
    trained_there: str | None = None
    """Device, precision and code of the first cell's training, where that was recorded."""
    trained_here: str | None = None


def reproduce(
    published: PublishedResults,
    folder: Path,
    cell: str,
    store: Store,
    on_event: Callable[[Event], None] | None = None,
    stop: threading.Event | None = None,
) -> tuple[SweepResult, Comparison | None]:
    """Do what the store lacks of the published cell with this id, or this part in its id, then `compare` it.

    There is no comparison where that was stopped or failed. Raises what `run` raises, and `UserError` where the cell was
    not finished when `folder` was published.
    """
    single = find_cell(published.space, cell)
    space = published.space.model_copy(update={"cells": (single,), "loggers": ()})
    if single.id not in published.results["id"].to_pylist():
        raise UserError(f"{single.id} was not finished when {folder} was published: choose another cell")
    result = run(space, store, on_event, stop)
    return result, compare(published, space, store) if result.complete else None


def compare(published: PublishedResults, space: Space, store: Store) -> Comparison:
    """Compare the cells of `space` in the store with the published ones, number by number, to the last bit.

    Raises `UserError` where the store lacks a cell.
    """
    theirs_by_id = {row["id"]: row for row in published.results.to_pylist()}
    trajectories, of_cells = by_cell(published.trajectories), by_cell(published.measures)
    here = {row["id"]: row for row in results(space, store).to_pylist()}
    asked = {(one.label, settings_text(one.identity)) for one in space.evaluations}
    # What was not measured yet when it was published is no difference; nor are functions that are not here.
    may_lack = {named(row["metric"], row["matrix"]) for rows in of_cells.values() for row in rows} | {
        row["metric"] for row in published.evaluations.to_pylist() if (row["task"], row["settings"]) not in asked
    }
    count, differences = 0, []

    def compare_row(name: str, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
        nonlocal count
        for column, value in theirs.items():
            if column not in _NOT_COMPARED and value is not None and not (column in may_lack and column not in ours):
                count += 1
                if not _same(ours.get(column), value):
                    differences.append(Difference(f"{name}{column}", value, ours.get(column)))

    for cell in space.cells:
        if cell.id not in theirs_by_id or cell.id not in here:
            where = "published" if cell.id not in theirs_by_id else f"in {store.location}"
            raise UserError(f"{cell.id} is not finished {where}")
        rows = store.read_rows(store.trajectory_file(cell.id), TRAJECTORIES) or []
        theirs = trajectories.get(cell.id, [])
        if len(rows) != len(theirs):
            differences.append(Difference("rows over training", len(theirs), len(rows)))
        for ours, row in zip(rows, theirs, strict=False):
            compare_row(f"step {row['step']}: ", ours, row)
        compare_row("", here[cell.id], theirs_by_id[cell.id])
        values = {value_key(row): row["value"] for row in store.read_rows(store.measures_file(cell.id), MEASURES) or []}
        for row in of_cells.get(cell.id, []):
            if (key := value_key(row)) in values:
                where, metric = f"step {row['step']}, {row['matrix']}: ", row["metric"]
                compare_row(where, {metric: values[key]}, {metric: row["value"]})
    first = space.cells[0].id
    return Comparison(count, differences, theirs_by_id[first].get(TRAINED_ON), here[first].get(TRAINED_ON))


def _same(a: Any, b: Any) -> bool:
    both_nan = isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b)
    return both_nan or a == b
