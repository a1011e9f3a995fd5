"""A sweep's results as a folder of a few files, to commit and to hand on.

    space.yaml             the search space
    results.parquet        one row per finished cell: settings, last row of training, every metric (`raysweep results`)
    trajectories.parquet   every cell's rows over training
    evaluations.parquet    every metric, with its task and settings
    timings.parquet        seconds of every training and evaluation
    hypotheses.json        which hypotheses were declared, and how many cells were finished then; their file is beside it
    texts.json             the fingerprints of the texts that evaluations read beside the corpora, where they read any
    measures.parquet       what `measure` asked for, where it asked for anything
    spectra.parquet        singular values, where they were kept: the largest of these files where many matrices are measured
    sessions.parquet       when the sweep was worked on, where, under which versions

`raysweep analyze` takes such a folder in place of a search space, `raysweep reproduce` trains a cell of it again, and
`raysweep restore` makes a store of it, on which the sweep resumes where it was published.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from raysweep.errors import UserError
from raysweep.space.read import load_published
from raysweep.space.space import Space
from raysweep.store import declarations
from raysweep.store.schemas import (
    CELLS,
    EVALUATIONS,
    MEASURES,
    READABLE,
    SESSIONS,
    SPECTRA,
    TIMINGS,
    TRAJECTORIES,
    defaults,
)
from raysweep.store.tables import read_parquet, with_defaults

SPACE = "space.yaml"
TEXTS = "texts.json"
TABLES = {
    "results": CELLS,
    "trajectories": TRAJECTORIES,
    "evaluations": EVALUATIONS,
    "timings": TIMINGS,
    "sessions": SESSIONS,
    "measures": MEASURES,
    "spectra": SPECTRA,
}

# Which a folder may lack: it was published before there were any, or nothing was measured.
LATER = ("measures", "spectra")


@dataclass(frozen=True)
class PublishedResults:
    """What is in such a folder."""

    space: Space
    results: pa.Table
    trajectories: pa.Table
    evaluations: pa.Table
    timings: pa.Table
    sessions: pa.Table
    measures: pa.Table = field(default_factory=MEASURES.empty_table)
    spectra: pa.Table = field(default_factory=SPECTRA.empty_table)
    declared: list[dict[str, Any]] = field(default_factory=list)
    """Which hypotheses were declared, and when (`raysweep.store.declarations`)."""
    texts: dict[str, str] = field(default_factory=dict)
    """The fingerprint of each text that an evaluation reads, by the text's key."""


def read_published(folder: Path) -> PublishedResults:
    """What was published in a folder. Raises `UserError` naming the file that is missing, damaged or of another schema."""
    read_tables = {}
    for name, schema in TABLES.items():
        path = folder / f"{name}.parquet"
        if name in LATER and not path.exists():
            read_tables[name] = schema.empty_table()
            continue
        try:
            table = read_parquet(path)
        except (OSError, pa.ArrowException) as error:
            reason = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
            raise UserError(
                f"{path} {reason}: {folder} is not what `raysweep publish` writes: publish it again"
            ) from None
        version = (table.schema.metadata or {}).get(b"raysweep_schema", b"").decode()
        if version not in READABLE or not set(schema.names) - set(defaults(version)) <= set(table.column_names):
            raise UserError(
                f"{path} was written under schema {version or 'unknown'}, this raysweep reads {READABLE[0]} to "
                f"{READABLE[-1]}: publish it again"
            )
        read_tables[name] = with_defaults(table, schema, version)
    cells = set(read_tables["results"]["id"].to_pylist())
    if cells != set(read_tables["trajectories"]["cell"].to_pylist()):
        raise UserError(
            f"{folder} holds files of two publications: results.parquet and trajectories.parquet have different cells: "
            "publish it again"
        )
    declared: list[dict[str, Any]] = _json(folder / declarations.FILE, list)
    texts: dict[str, str] = _json(folder / TEXTS, dict)
    return PublishedResults(load_published(folder / SPACE), declared=declared, texts=texts, **read_tables)


def _json(path: Path, kind: type) -> Any:
    """What a file holds, which is of that kind; nothing where it is not there."""
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else kind()
        if not isinstance(content, kind):
            raise ValueError(f"it holds no {kind.__name__}")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): publish it again") from None
    return content


def text_keys(space: Space) -> dict[str, str]:
    """The key of every text that an evaluation of the space reads -> the evaluation."""
    corpora = {cell.corpus: None for cell in space.cells}
    return {one.text.key(corpus): one.label for one in space.evaluations if one.text for corpus in corpora}


def by_cell(table: pa.Table) -> dict[str, list[dict[str, Any]]]:
    """A published table's rows by their cell."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        rows.setdefault(row["cell"], []).append(row)
    return rows
