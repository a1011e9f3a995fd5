"""A sweep's results as a folder of a few small files, to commit and to hand on.

    space.yaml             the search space
    results.parquet        one row per finished cell: settings, last row of training, every metric (`raysweep results`)
    trajectories.parquet   every cell's rows over training
    evaluations.parquet    every metric, with its task and settings
    timings.parquet        seconds of every training and evaluation
    sessions.parquet       when the sweep was worked on, where, under which versions

`raysweep analyze` takes such a folder in place of a search space, `raysweep reproduce` trains a cell of it again, and
`raysweep restore` makes a store of it, on which the sweep goes on where it was published.
"""

from __future__ import annotations

import datetime
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raysweep.errors import UserError
from raysweep.space import cell as space
from raysweep.space.cell import Space
from raysweep.store import Store, lock, sessions
from raysweep.store import index as tables
from raysweep.store.schemas import CELLS, EVALUATIONS, SCHEMA_VERSION, SESSIONS, TIMINGS, TRAJECTORIES
from raysweep.store.store import PLANNED, TRAIN, read_parquet, settings_text
from raysweep.sweep import runner as sweep

SPACE = "space.yaml"
TABLES = {
    "results": CELLS,
    "trajectories": TRAJECTORIES,
    "evaluations": EVALUATIONS,
    "timings": TIMINGS,
    "sessions": SESSIONS,
}


@dataclass(frozen=True)
class Published:
    """What is in such a folder."""

    space: Space
    results: pa.Table
    trajectories: pa.Table
    evaluations: pa.Table
    timings: pa.Table
    sessions: pa.Table


def publish(space_file: Path, store: Store, folder: Path) -> Published:
    """Write what is finished of a sweep to a folder, in place of what was published there."""
    planned = space.load(space_file)
    results = tables.results(store, planned.cells, planned.evaluations)
    if not len(results):
        raise UserError(f"no cell of {planned.name} is finished in {store.location}: `raysweep run` trains them")
    finished = results["id"].to_pylist()
    stages = [TRAIN, *(evaluation.task for evaluation in planned.evaluations)]
    evaluated = [
        tables.evaluated(store, evaluation.task, evaluation.model_dump()) for evaluation in planned.evaluations
    ]
    timings = {stage: tables.read_all(store, f"timings/{stage}", TIMINGS) for stage in stages}
    rows: dict[str, list[dict[str, Any]]] = {
        "trajectories": [
            row for cell in finished for row in store.read_rows(store.trajectory_file(cell), TRAJECTORIES) or []
        ],
        "evaluations": [row for cell in finished for task in evaluated for row in task.get(cell, [])],
        "timings": [row for cell in finished for stage in stages for row in timings[stage].get(cell, [])],
        "sessions": sessions.read(store, planned.name),
    }  # fmt: skip
    for row in rows["timings"]:
        if row["finished"] is not None:  # `read_all` gives times as text.
            row["finished"] = datetime.datetime.fromisoformat(row["finished"])
    made = {"results": results}
    for name, of in rows.items():
        made[name] = pa.Table.from_pylist(of, schema=TABLES[name])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / f"{SPACE}.unfinished"
        unfinished.write_bytes(space_file.read_bytes())
        unfinished.replace(folder / SPACE)
        for name, table in made.items():
            unfinished = folder / f"{name}.parquet.unfinished"
            pq.write_table(table, unfinished, compression="zstd")
            unfinished.replace(folder / f"{name}.parquet")
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}") from None
    return Published(planned, **made)


def read(folder: Path) -> Published:
    """What was published in a folder. Raises `UserError` naming the file that is missing, damaged or of another schema."""
    found = {}
    for name, schema in TABLES.items():
        path = folder / f"{name}.parquet"
        try:
            table = read_parquet(path)
        except (OSError, pa.ArrowException) as error:
            reason = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
            raise UserError(
                f"{path} {reason}: {folder} is not what `raysweep publish` writes: publish it again"
            ) from None
        version = (table.schema.metadata or {}).get(b"raysweep_schema", b"").decode()
        if version != SCHEMA_VERSION or not set(schema.names) <= set(table.column_names):
            raise UserError(
                f"{path} was written under schema {version or 'unknown'}, this raysweep reads {SCHEMA_VERSION}: publish it "
                "again"
            )
        found[name] = table
    return Published(space.load(folder / SPACE), **found)


def restore(published: Published, store: Store) -> tuple[int, int]:
    """Write to a store the published cells that it lacks, so that `raysweep run` goes on from there.

    Checkpoints are not published: a cell whose evaluations are not all there, under the settings of the published search
    space, is left to be trained again. What the store has finished is left as it is. How many cells are complete, and how
    many of them the store lacked. Raises `UserError` where it was begun on other corpora.
    """
    planned = published.space
    rows = {row["id"]: row for row in published.results.to_pylist()}
    parts = {name: by_cell(getattr(published, name)) for name in ("trajectories", "evaluations", "timings")}
    wanted = {(evaluation.task, settings_text(evaluation.model_dump())) for evaluation in planned.evaluations}
    store.probe()
    with lock.Lock(store):
        if store.read(PLANNED) is None:
            sweep.write_plan(planned, store)
        store.check_corpora(
            {cell.corpus.key: rows[cell.id]["corpus_fingerprint"] for cell in planned.cells if cell.id in rows}
        )
        known = {(row["started"], row["host"]) for row in sessions.read(store, planned.name)}
        for index, row in enumerate(published.sessions.to_pylist()):
            if (row["started"], row["host"]) not in known:
                store.write_table(sessions.file(row["started"], f"restored{index}"), [row], SESSIONS)
        done = tables.finished(store)
        complete = lacked = 0
        for cell in [cell.id for cell in planned.cells if cell.id in rows]:
            trajectory, metrics, timings = (part.get(cell, []) for part in parts.values())
            evaluations: dict[tuple[str, str], list[dict[str, Any]]] = {}
            for metric in metrics:
                evaluations.setdefault((metric["task"], metric["settings"]), []).append(metric)
            if not trajectory or (rows[cell]["status"] == "done" and not wanted <= evaluations.keys()):
                continue
            complete += 1
            if cell in done:
                continue
            lacked += 1
            for (task, settings), of_task in evaluations.items():
                store.write_table(store.evaluation_file(cell, task, json.loads(settings)), of_task, EVALUATIONS)
            for timing in timings:
                store.write_table(store.timing_file(cell, timing["stage"]), [timing], TIMINGS)
            store.write_table(store.trajectory_file(cell), trajectory, TRAJECTORIES)
            # Last: it says that the cell is done.
            store.write_table(store.cell_file(cell), [{name: rows[cell][name] for name in CELLS.names}], CELLS)
    return complete, lacked


def by_cell(table: pa.Table) -> dict[str, list[dict[str, Any]]]:
    """A published table's rows by their cell."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        found.setdefault(row["cell"], []).append(row)
    return found


@dataclass(frozen=True)
class Account:
    """What a sweep took."""

    sessions: int
    """How often `raysweep run` was called while there was something to do."""
    killed: int
    """Sessions that did not end by themselves; one that is still there counts too."""
    resumed: int
    """Cells whose training was begun more than once."""
    wall_clock: float
    """Seconds in sessions."""
    work: float
    """Core-seconds that trainings and evaluations asked for while they ran."""
    tokens: int
    """Trained on."""
    overhead: float
    """Wall-clock over the work that ended in it / cores: 1 where every core did nothing but train and evaluate. NaN where
    more than the driver's machine worked, or sessions are not known."""


def account(published: Published) -> Account:
    """What the sweep took, from its timings and sessions."""
    resources = published.space.resources
    cores = {TRAIN: resources.train.workers * resources.train.cpus}
    timings, ran = published.timings.to_pylist(), published.sessions.to_pylist()
    work = sum(row["seconds"] * cores.get(row["stage"], resources.evaluate.cpus) for row in timings)
    # In a store that several search spaces share, a cell may have been finished for another one.
    here = [
        row
        for row in timings
        if row["finished"] and any(session["started"] <= row["finished"] <= session["seen"] for session in ran)
    ]
    work_here = sum(row["seconds"] * cores.get(row["stage"], resources.evaluate.cpus) for row in here)
    available = sum((row["seen"] - row["started"]).total_seconds() * row["cores"] for row in ran)
    alone = {row["host"] for row in here} == {row["host"] for row in ran}
    return Account(
        sessions=len(ran),
        killed=sum(not row["ended"] for row in ran),
        resumed=sum(row["starts"] > 1 for row in timings if row["stage"] == TRAIN),
        wall_clock=sum((row["seen"] - row["started"]).total_seconds() for row in ran),
        work=work,
        tokens=sum(published.results["tokens_trained"].to_pylist()),
        overhead=available / work_here if work_here and alone else math.nan,
    )
