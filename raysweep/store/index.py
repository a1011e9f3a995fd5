"""The tables of many cells at once, for the price of a listing and one file where they were read before.

`<store>/index/<directory>-<schema>.parquet` keeps the rows of every file that was read and verified, under the file's
name, size and time of change; only what is new or has changed since is opened. Nothing depends on an index: one that lacks
something, is damaged or is deleted is made anew out of the tables.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pyarrow as pa

from raysweep.errors import UserError
from raysweep.store import Store
from raysweep.store.schemas import CELLS, EVALUATIONS, INDEX, REAL, SCHEMA_VERSION, TIMINGS, TRAJECTORIES
from raysweep.store.store import TRAIN

# An index is written again when so many files were not in it.
WORTH_WRITING = 64


def read_all(store: Store, directory: str, schema: pa.Schema, rows: bool = True) -> dict[str, list[dict[str, Any]]]:
    """The rows of every table under `directory` that can be read, by the cell that the file is named after.

    Without `rows` only which there are: each with an empty list. Times of day come back as text.
    """
    path = f"index/{directory.replace('/', '-')}-{SCHEMA_VERSION}.parquet"
    known = {}
    files = store.files(directory)
    if len(files) > WORTH_WRITING:
        with suppress(UserError):
            known = {row["file"]: row for row in store.read_rows(path, INDEX) or []}
    found: dict[str, str] = {}
    unread = []
    for name, size, changed in files:
        row = known.get(name)
        if row is not None and (row["size"], row["changed"]) == (size, changed):
            found[name] = row["rows"]
        else:
            unread.append(name)

    def read(name: str) -> str | None:
        content = store.read_rows(f"{directory}/{name}", schema)
        return None if content is None else json.dumps(content if rows else [], default=str)

    with ThreadPoolExecutor(16) as threads:
        found |= {name: text for name, text in zip(unread, threads.map(read, unread), strict=True) if text is not None}
    if len(unread) > WORTH_WRITING:
        index = [
            {"file": name, "size": size, "changed": changed, "rows": found[name]}
            for name, size, changed in files
            if name in found
        ]
        with suppress(UserError):  # Whoever may only read has it slower, no more.
            store.write_table(path, index, INDEX)
    return {name.removesuffix(".parquet"): json.loads(text) for name, text in found.items()}


def finished(store: Store) -> dict[str, dict[str, Any]]:
    """The row of every finished cell by its id; a cell counts as finished only if its trajectory can be read too."""
    trajectories = read_all(store, "trajectories", TRAJECTORIES, rows=False)
    return {cell: rows[0] for cell, rows in read_all(store, "cells", CELLS).items() if rows and cell in trajectories}


def evaluated(store: Store, task: str, settings: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The rows of one evaluation by cell."""
    return read_all(store, store.evaluation_tables(task, settings), EVALUATIONS)


def results(store: Store, cells: Iterable[Any], evaluations: Iterable[Any]) -> pa.Table:
    """One row per finished cell: its settings, its last row, every metric of `evaluations`, and its training time.

    `cells` are `raysweep.space.Cell`s and `evaluations` their space's settings. A metric that a cell lacks is null.
    """
    done = finished(store)
    timings = read_all(store, f"timings/{TRAIN}", TIMINGS)
    measured = [evaluated(store, evaluation.task, evaluation.model_dump()) for evaluation in evaluations]
    rows: list[dict[str, Any]] = []
    units: dict[str, str] = {}
    for cell in cells:
        row = done.get(cell.id)
        if row is None:
            continue
        timing = timings.get(cell.id)
        row["train_seconds"] = timing[0]["seconds"] if timing else None
        row["train_tokens_per_second"] = timing[0]["tokens_per_second"] if timing else None
        for task in measured:
            for metric in task.get(cell.id, []):
                row[metric["metric"]] = metric["value"]
                units[metric["metric"]] = metric["unit"]
        rows.append(row)
    schema = CELLS
    for name, unit in {"train_seconds": "s", "train_tokens_per_second": "tokens/s", **units}.items():
        schema = schema.append(pa.field(name, REAL, metadata={"unit": unit}))
    return pa.Table.from_pylist(rows, schema=schema)
