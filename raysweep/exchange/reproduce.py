"""A cell of published results trained and evaluated again, and every number of it held against the published one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysweep.errors import UserError
from raysweep.exchange import export, publish
from raysweep.exchange.publish import Published
from raysweep.space.cell import Space
from raysweep.store import Store
from raysweep.store import index as tables
from raysweep.store.schemas import TRAJECTORIES
from raysweep.sweep import runner as sweep

# Of a row of results what differs from one run to the next, or says where the row is from.
_NOT_COMPARED = {"train_seconds", "train_tokens_per_second", "raysweep_version", "torch_version"}


@dataclass(frozen=True)
class Difference:
    """One number that is not what was published."""

    name: str
    published: Any
    here: Any


def reproduce(
    published: Published, folder: Path, cell: str, store: Store, resume_command: str
) -> tuple[int, list[Difference]] | None:
    """Do what the store lacks of the published cell with this id, or this part in its id, then `compare` it.

    None where that was stopped or failed, which has been said.
    """
    chosen = export.find(published.space, cell)
    planned = published.space.model_copy(update={"cells": (chosen,), "loggers": ()})
    if chosen.id not in published.results["id"].to_pylist():
        raise UserError(f"{chosen.id} was not finished when {folder} was published: choose another cell")
    if sweep.run(planned, store, resume_command):
        return None
    return compare(published, planned, store)


def compare(published: Published, planned: Space, store: Store) -> tuple[int, list[Difference]]:
    """Hold the cells of `planned` in the store against the published ones, number by number, to the last bit.

    How many were compared, and those that differ. Raises `UserError` where the store lacks a cell.
    """
    wanted = {row["id"]: row for row in published.results.to_pylist()}
    trajectories = publish.by_cell(published.trajectories)
    here = {row["id"]: row for row in tables.results(store, planned.cells, planned.evaluations).to_pylist()}
    count, found = 0, []

    def hold(name: str, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
        nonlocal count
        for column, value in theirs.items():
            # What was not measured yet when it was published is no difference.
            if column not in _NOT_COMPARED and value is not None:
                count += 1
                if not _same(ours.get(column), value):
                    found.append(Difference(f"{name}{column}", value, ours.get(column)))

    for cell in planned.cells:
        if cell.id not in wanted or cell.id not in here:
            where = "published" if cell.id not in wanted else f"in {store.location}"
            raise UserError(f"{cell.id} is not finished {where}")
        rows = store.read_rows(store.trajectory_file(cell.id), TRAJECTORIES) or []
        theirs = trajectories.get(cell.id, [])
        if len(rows) != len(theirs):
            found.append(Difference("rows over training", len(theirs), len(rows)))
        for ours, row in zip(rows, theirs, strict=False):
            hold(f"step {row['step']}: ", ours, row)
        hold("", here[cell.id], wanted[cell.id])
    return count, found


def _same(a: Any, b: Any) -> bool:
    both_nan = isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b)
    return both_nan or a == b
