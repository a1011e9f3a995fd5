"""The store of one sweep: every path and every Arrow schema; atomic writes; tables read back.

    <store>/plan.parquet                       the cells as last planned
    <store>/corpora.json                       the fingerprint of every corpus as first built
    <store>/run.json                           who is running the sweep now, and how far it is
    <store>/cells/<cell>.parquet               a finished cell: its settings, its status, its last row
    <store>/trajectories/<cell>.parquet        a finished cell's rows over training
    <store>/evaluations/<task>-<settings>/<cell>.parquet
    <store>/timings/<stage>/<cell>.parquet     what wall-clock measured, apart from what must not depend on it
    <store>/failures/<stage>/<cell>.parquet    the last error of what is not done
    <store>/train/<cell>/                      Ray Train's run directory, with the checkpoints
    <store>/tune/                              Ray Tune's logs of each run, which raysweep never reads

The location is a path or any URI that `pyarrow.fs` takes. What is done is what can be read here, and nothing else is. A
file that cannot be read counts as not done, is set aside under another name with a warning, and is never deleted.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from raysweep.errors import UserError

log = logging.getLogger("raysweep")

SCHEMA_VERSION = "1"


def _schema(**fields: tuple[pa.DataType, str]) -> pa.Schema:
    """Column -> (type, unit)."""
    return pa.schema(
        [pa.field(name, kind, metadata={"unit": unit} if unit else None) for name, (kind, unit) in fields.items()],
        metadata={"raysweep_schema": SCHEMA_VERSION},
    )


_TEXT, _COUNT, _REAL = pa.string(), pa.int64(), pa.float64()

_GEOMETRY_W = {
    "effective_rank_W": (_REAL, "fraction of the width"),
    "cosine_W": (_REAL, ""),
    "isotropy_W": (_REAL, ""),
    "isotropy_symmetric_W": (_REAL, ""),
    "spectral_norm_W": (_REAL, ""),
}

_SETTINGS = {
    "id": (_TEXT, ""),
    "size": (_TEXT, ""),
    "width": (_COUNT, ""),
    "depth": (_COUNT, "blocks"),
    "heads": (_COUNT, ""),
    "corpus": (_TEXT, ""),
    "tokenizer": (_TEXT, ""),
    "vocabulary": (_COUNT, "rows of W"),
    "parameters": (_COUNT, "without the input embedding"),
    "tokens": (_COUNT, "tokens"),
    "steps": (_COUNT, "optimizer steps"),
    "learning_rate": (_REAL, "peak"),
    "flops": (_REAL, "FLOP"),
    "batch_size": (_COUNT, "sequences"),
    "sequence_length": (_COUNT, "tokens"),
    "learning_rate_factor": (_REAL, ""),
    "final_learning_rate_fraction": (_REAL, ""),
    "warmup_fraction": (_REAL, ""),
    "weight_decay": (_REAL, ""),
    "beta1": (_REAL, ""),
    "beta2": (_REAL, ""),
    "epsilon": (_REAL, ""),
    "gradient_clipping": (_REAL, "L2 norm"),
    "validation_sequences": (_COUNT, "sequences"),
    "seed": (_COUNT, ""),
}

_ROW = {
    "train_loss": (_REAL, "nats per token, mean since the row before"),
    "validation_loss": (_REAL, "nats per token"),
}

PLAN = _schema(**_SETTINGS)

CELLS = _schema(
    **_SETTINGS,
    status=(_TEXT, "done or diverged"),
    steps_trained=(_COUNT, "optimizer steps"),
    tokens_trained=(_COUNT, "tokens"),
    **_ROW,
    **_GEOMETRY_W,
    corpus_fingerprint=(_TEXT, ""),
    raysweep_version=(_TEXT, ""),
    torch_version=(_TEXT, ""),
)

TRAJECTORIES = _schema(
    cell=(_TEXT, ""),
    step=(_COUNT, "optimizer steps"),
    tokens=(_COUNT, "tokens"),
    **_ROW,
    learning_rate=(_REAL, ""),
    gradient_norm=(_REAL, "L2 norm before clipping"),
    **_GEOMETRY_W,
)

EVALUATIONS = _schema(
    cell=(_TEXT, ""),
    task=(_TEXT, ""),
    settings=(_TEXT, "JSON"),
    metric=(_TEXT, ""),
    value=(_REAL, "the metric's own"),
    unit=(_TEXT, ""),
)

TIMINGS = _schema(
    cell=(_TEXT, ""),
    stage=(_TEXT, "train or a task"),
    seconds=(_REAL, "s"),
    tokens_per_second=(_REAL, "tokens/s"),
    starts=(_COUNT, "times it was begun or resumed"),
    host=(_TEXT, ""),
    finished=(pa.timestamp("s", "UTC"), ""),
)

FAILURES = _schema(
    cell=(_TEXT, ""), stage=(_TEXT, "train or a task"), error=(_TEXT, ""), failed=(pa.timestamp("s", "UTC"), "")
)

TRAIN = "train"


class Store:
    """Reads and writes the store at `location`, a path or a URI."""

    def __init__(self, location: str) -> None:
        self.fs, self.root = _filesystem(location)
        self._local = isinstance(self.fs, pafs.LocalFileSystem)
        # Absolute, so that it means the same in every process of the cluster.
        self.location = self.root if self._local else location

    # Paths, relative to the store.

    @staticmethod
    def cell_file(cell: str) -> str:
        return f"cells/{cell}.parquet"

    @staticmethod
    def trajectory_file(cell: str) -> str:
        return f"trajectories/{cell}.parquet"

    @staticmethod
    def evaluation_file(cell: str, task: str, settings: dict[str, Any]) -> str:
        """Settings are part of the path: other settings are another result, and neither overwrites the other."""
        return f"evaluations/{task}-{settings_hash(settings)}/{cell}.parquet"

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
    def run_directory(cell: str) -> str:
        return f"{TRAIN}/{cell}"

    def storage(self, directory: str) -> dict[str, Any]:
        """A directory of the store, as the storage arguments of Ray's `RunConfig`."""
        path = f"{self.root}/{directory}"
        return {"storage_path": path} if self._local else {"storage_path": path, "storage_filesystem": self.fs}

    # Bytes.

    def write(self, path: str, content: bytes) -> None:
        """Put a whole file in place at once: a reader, or a crash, sees the old content or the new and nothing else."""
        full = f"{self.root}/{path}"
        try:
            if not self._local:
                self.fs.create_dir(full.rpartition("/")[0], recursive=True)
                # An object becomes visible when its upload is complete.
                with self.fs.open_output_stream(full) as stream:
                    stream.write(content)
                return
            Path(full).parent.mkdir(parents=True, exist_ok=True)
            unfinished = f"{full}.{uuid.uuid4().hex[:8]}.unfinished"
            try:
                with open(unfinished, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(unfinished, full)
            except OSError:
                Path(unfinished).unlink(missing_ok=True)
                raise
        except OSError as error:
            raise self.unwritable(error) from None

    def unwritable(self, error: OSError) -> UserError:
        """What to tell the user where writing failed with `error`."""
        return UserError(
            f"the store {self.location} cannot be written: {_reason(error)}; "
            "nothing that was finished is lost: mend that, then run again"
        )

    def read(self, path: str) -> bytes | None:
        """A file's content, or None where there is none."""
        try:
            with self.fs.open_input_stream(f"{self.root}/{path}") as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(f"the store {self.location} cannot be read: {_reason(error)}") from None

    def delete(self, path: str) -> None:
        """Delete a file if it is there."""
        try:
            self.fs.delete_file(f"{self.root}/{path}")
        except FileNotFoundError:
            return
        except OSError as error:
            raise self.unwritable(error) from None

    def upload(self, folder: Path, path: str) -> None:
        """Copy the files of a local folder to a directory of the store; a kill may leave a part of them."""
        try:
            self.fs.create_dir(f"{self.root}/{path}", recursive=True)
            pafs.copy_files(str(folder), f"{self.root}/{path}", pafs.LocalFileSystem(), self.fs)
        except OSError as error:
            raise self.unwritable(error) from None

    def delete_directory(self, path: str) -> None:
        """Delete a directory with all that is in it."""
        try:
            self.fs.delete_dir(f"{self.root}/{path}")
        except OSError as error:
            raise self.unwritable(error) from None

    def set_aside(self, path: str, why: str) -> None:
        """Rename a file or directory that is damaged, so that it is made anew and the damaged one can be looked at."""
        aside = f"{path}.damaged-{uuid.uuid4().hex[:6]}"
        log.warning("%s/%s is damaged (%s): set aside as %s and made anew", self.location, path, why, aside)
        try:
            self.fs.move(f"{self.root}/{path}", f"{self.root}/{aside}")
        except OSError as error:
            raise self.unwritable(error) from None

    def probe(self) -> None:
        """Raise `UserError` unless a file can be written, and removed again, right now."""
        # Larger than the little that a full disk may still take.
        path = f".probe-{uuid.uuid4().hex[:8]}"
        self.write(path, bytes(1 << 20))
        self.delete(path)

    # Tables.

    def write_table(self, path: str, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), buffer, write_page_checksum=True)
        self.write(path, buffer.getvalue())

    def read_table(self, path: str, schema: pa.Schema) -> pa.Table | None:
        """The table, or None where there is none that can be read; a damaged file is set aside."""
        content = self.read(path)
        if content is None:
            return None
        try:
            table = pq.read_table(io.BytesIO(content), page_checksum_verification=True)
            found = (table.schema.metadata or {}).get(b"raysweep_schema", b"").decode()
            table = table.select(schema.names).cast(schema)
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            self.set_aside(path, _reason(error))
            return None
        if found != SCHEMA_VERSION:
            raise UserError(
                f"{self.location}/{path} was written under schema {found or 'unknown'}, this raysweep reads "
                f"{SCHEMA_VERSION}: use the version of raysweep that wrote the store, or another store"
            )
        return table

    def read_rows(self, path: str, schema: pa.Schema) -> list[dict[str, Any]] | None:
        table = self.read_table(path, schema)
        return None if table is None else table.to_pylist()

    def cell_row(self, cell: str) -> dict[str, Any] | None:
        """The finished cell's row, or None; a cell counts as finished only if its trajectory can be read too."""
        rows = self.read_rows(self.cell_file(cell), CELLS)
        if not rows or self.read_table(self.trajectory_file(cell), TRAJECTORIES) is None:
            return None
        return rows[0]

    def evaluation_rows(self, cell: str, task: str, settings: dict[str, Any]) -> list[dict[str, Any]] | None:
        return self.read_rows(self.evaluation_file(cell, task, settings), EVALUATIONS)

    def failure(self, cell: str, stage: str) -> str | None:
        """The last error of a cell's training or evaluation."""
        rows = self.read_rows(self.failure_file(cell, stage), FAILURES)
        return str(rows[0]["error"]) if rows else None

    def check_corpora(self, fingerprints: dict[str, str]) -> None:
        """Record the fingerprint of each corpus, by its specification; `UserError` where another is on record."""
        content = self.read("corpora.json")
        try:
            known = json.loads(content) if content else {}
            if not isinstance(known, dict):
                raise ValueError("not a mapping")
        except ValueError as error:
            self.set_aside("corpora.json", _reason(error))
            known = {}
        for corpus, fingerprint in fingerprints.items():
            if known.get(corpus, fingerprint) != fingerprint:
                raise UserError(
                    f"the corpus {corpus} was {known[corpus]} when the store {self.location} was begun and is "
                    f"{fingerprint} now: install the versions of constraints.txt again, or use another --store"
                )
        if not fingerprints.items() <= known.items():
            self.write("corpora.json", json.dumps(known | fingerprints, indent=1, sort_keys=True).encode())


def settings_hash(settings: dict[str, Any]) -> str:
    """8 hex digits of an evaluation's settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def results(store: Store, cells: Iterable[Any], evaluations: Iterable[Any]) -> pa.Table:
    """One row per finished cell: its settings, its last row, every metric of `evaluations`, and its training time.

    `cells` are `raysweep.space.Cell`s and `evaluations` their space's settings. A metric that a cell lacks is null.
    """
    rows: list[dict[str, Any]] = []
    units: dict[str, str] = {}
    for cell in cells:
        row = store.cell_row(cell.id)
        if row is None:
            continue
        timing = store.read_rows(store.timing_file(cell.id, TRAIN), TIMINGS)
        row["train_seconds"] = timing[0]["seconds"] if timing else None
        row["train_tokens_per_second"] = timing[0]["tokens_per_second"] if timing else None
        for evaluation in evaluations:
            for metric in store.evaluation_rows(cell.id, evaluation.task, evaluation.model_dump()) or []:
                row[metric["metric"]] = metric["value"]
                units[metric["metric"]] = metric["unit"]
        rows.append(row)
    schema = CELLS
    for name, unit in {"train_seconds": "s", "train_tokens_per_second": "tokens/s", **units}.items():
        schema = schema.append(pa.field(name, _REAL, metadata={"unit": unit}))
    return pa.Table.from_pylist(rows, schema=schema)


def _filesystem(location: str) -> tuple[pafs.FileSystem, str]:
    if "://" not in location:
        return pafs.LocalFileSystem(), str(Path(location).expanduser().absolute())
    try:
        fs, root = pafs.FileSystem.from_uri(location)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"the store {location} cannot be opened: {_reason(error)}") from None
    return fs, root.rstrip("/")


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
