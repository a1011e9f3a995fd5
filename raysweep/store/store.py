"""The store of one sweep: every path, and the tables in it.

    <store>/plan.parquet                       the cells as last planned; written before any other table
    <store>/corpora.json                       the fingerprint of every corpus, and text of an evaluation, as first built
    <store>/run.json                           who is running the sweep now, and how far it is
    <store>/live.parquet                       rows over training of the cells that are not finished
    <store>/cells/<cell>.parquet               a finished cell: its settings, its status, its last row
    <store>/trajectories/<cell>.parquet        a finished cell's rows over training
    <store>/measures/<cell>.parquet            what `measure` asked for, a row for each step, matrix and metric
    <store>/spectra/<cell>.parquet             the singular values of each measured matrix at each step
    <store>/evaluations/<task>-<settings>/<cell>.parquet
    <store>/timings/<stage>/<cell>.parquet     what wall-clock measured, apart from what must not depend on it
    <store>/failures/<stage>/<cell>.parquet    the last error of what is not done
    <store>/models.parquet                     of a suite of published models: their revisions, and the commit of each
    <store>/suite.json                         what the losses of that suite are of
    <store>/revisions/<model>@<revision>.parquet  a published model at a revision, and its geometry
    <store>/sessions/<start>-<process>.parquet  when the sweep was worked on, where, under which versions
    <store>/corpora/<fingerprint>/             a corpus, for the nodes of a cluster (raysweep.corpora.shared)
    <store>/index/                             what raysweep.store.index read before; may be deleted
    <store>/train/<cell>/                      a cell's checkpoints (raysweep.training.checkpoint)

The location is a path or any URI that `pyarrow.fs` takes. Only what can be read here counts as done. A
file that cannot be read counts as not done, is renamed with a warning, and is never deleted.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from raysweep.errors import UserError
from raysweep.store import tables
from raysweep.store.files import MARKER, StoreFiles
from raysweep.store.schemas import CELLS, EVALUATIONS, READABLE, TRAJECTORIES

PLANNED = MARKER
LIVE = "live.parquet"
TRAIN = "train"


class Store(StoreFiles):
    """The tables of the sweep at `location`."""

    @staticmethod
    def at(store: str | Path | Store) -> Store:
        """The store of a folder or URI; one that is open stays as it is."""
        return store if isinstance(store, Store) else Store(str(store))

    @staticmethod
    def cell_file(cell: str) -> str:
        return f"cells/{cell}.parquet"

    @staticmethod
    def trajectory_file(cell: str) -> str:
        return f"trajectories/{cell}.parquet"

    @staticmethod
    def measures_file(cell: str) -> str:
        return f"measures/{cell}.parquet"

    @staticmethod
    def spectra_file(cell: str) -> str:
        return f"spectra/{cell}.parquet"

    @staticmethod
    def evaluation_tables(task: str, settings: dict[str, Any]) -> str:
        """Settings are part of the path: other settings are another result, and neither overwrites the other."""
        return f"evaluations/{task}-{settings_hash(settings)}"

    def evaluation_file(self, cell: str, task: str, settings: dict[str, Any]) -> str:
        return f"{self.evaluation_tables(task, settings)}/{cell}.parquet"

    def evaluation_files(self, cell: str) -> list[str]:
        """The tables of evaluations that a cell has, of whatever settings."""
        paths = [f"evaluations/{directory}/{cell}.parquet" for directory in self.directories("evaluations")]
        return [path for path in paths if self.read(path) is not None]

    @staticmethod
    def evaluation_directory(cell: str, task: str, settings: dict[str, Any]) -> str:
        """Where an evaluation may keep checkpoints of its own."""
        return f"{TRAIN}/{cell}/{task}-{settings_hash(settings)}"

    @staticmethod
    def timing_file(cell: str, stage: str) -> str:
        return f"timings/{stage}/{cell}.parquet"

    @staticmethod
    def failure_file(cell: str, stage: str) -> str:
        return f"failures/{stage}/{cell}.parquet"

    @staticmethod
    def revision_file(checkpoint: str) -> str:
        return f"revisions/{checkpoint}.parquet"

    @staticmethod
    def run_directory(cell: str) -> str:
        return f"{TRAIN}/{cell}"

    # Tables.

    def write_table(self, path: str, rows: list[dict[str, Any]], schema: pa.Schema, wait: bool = True) -> None:
        """Put a table in place at once."""
        self.write(path, tables.encode(rows, schema), wait)

    def read_table(self, path: str, schema: pa.Schema) -> pa.Table | None:
        """The table, or None where there is none that can be read; a damaged file is quarantined."""
        content = self.read(path)
        if content is None:
            return None
        try:
            return tables.decode(content, schema)
        except tables.Damaged as error:
            self.quarantine(path, str(error))
            return None
        except tables.OtherVersion as error:
            self.check_schema(path, str(error))
            raise

    def check_schema(self, path: str, version: str) -> None:
        """Raise `UserError` where this raysweep cannot read a file written under that version of the schemas."""
        if version not in READABLE:
            raise UserError(
                f"{self.location}/{path} was written under schema {version or 'unknown'}, this raysweep reads "
                f"{READABLE[0]} to {READABLE[-1]}: use the version of raysweep that wrote the store, or another store"
            )

    def read_rows(self, path: str, schema: pa.Schema) -> list[dict[str, Any]] | None:
        """The rows of a table; see `read_table`."""
        table = self.read_table(path, schema)
        return None if table is None else table.to_pylist()

    def cell_row(self, cell: str) -> dict[str, Any] | None:
        """The finished cell's row, or None; a cell counts as finished only if its trajectory can be read too."""
        rows = self.read_rows(self.cell_file(cell), CELLS)
        if not rows or self.read_table(self.trajectory_file(cell), TRAJECTORIES) is None:
            return None
        return rows[0]

    def evaluation_rows(self, cell: str, task: str, settings: dict[str, Any]) -> list[dict[str, Any]] | None:
        """The rows of one evaluation of a cell, or None."""
        return self.read_rows(self.evaluation_file(cell, task, settings), EVALUATIONS)


def settings_text(settings: dict[str, Any]) -> str:
    """An evaluation's settings as they stand in `raysweep.store.schemas.EVALUATIONS`."""
    return json.dumps(settings, sort_keys=True)


def settings_hash(settings: dict[str, Any]) -> str:
    """8 hex digits of an evaluation's settings."""
    return hashlib.sha256(settings_text(settings).encode()).hexdigest()[:8]
