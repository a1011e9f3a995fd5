"""The store of one sweep: every path; atomic writes; tables read back.

    <store>/plan.parquet                       the cells as last planned; written before any other table
    <store>/corpora.json                       the fingerprint of every corpus as first built
    <store>/run.json                           who is running the sweep now, and how far it is
    <store>/cells/<cell>.parquet               a finished cell: its settings, its status, its last row
    <store>/trajectories/<cell>.parquet        a finished cell's rows over training
    <store>/evaluations/<task>-<settings>/<cell>.parquet
    <store>/timings/<stage>/<cell>.parquet     what wall-clock measured, apart from what must not depend on it
    <store>/failures/<stage>/<cell>.parquet    the last error of what is not done
    <store>/sessions/<start>-<process>.parquet  when the sweep was worked on, where, under which versions
    <store>/corpora/<fingerprint>/             a corpus, for the nodes of a cluster (raysweep.corpora.shared)
    <store>/index/                             what raysweep.tables read before; may be deleted
    <store>/train/<cell>/                      a cell's checkpoints (raysweep.checkpoint)

The location is a path or any URI that `pyarrow.fs` takes. What is done is what can be read here, and nothing else is. A
file that cannot be read counts as not done, is set aside under another name with a warning, and is never deleted.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from raysweep.errors import StoreError, UserError
from raysweep.store.schemas import CELLS, EVALUATIONS, READABLE, SCHEMA_VERSION, SINCE_3, TRAJECTORIES

log = logging.getLogger("raysweep")

_CHECKSUM = b"raysweep_rows_sha256"

TRAIN = "train"
PLANNED = "plan.parquet"

# So many bytes of a large file are read at once.
PIECE = 64 << 20

# How long, in seconds, a running sweep waits for a store that is out of reach.
PATIENCE = 60.0

# What waiting does not mend, by number and, where an object store answers, by what it says.
_LASTING = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG,
}  # fmt: skip
_LASTING_ANSWERS = (
    "ACCESS_DENIED",
    "NO_SUCH_BUCKET",
    "INVALID_ACCESS_KEY_ID",
    "SIGNATURE_DOES_NOT_MATCH",
    "credentials",
)

_T = TypeVar("_T")


class Store:
    """Reads and writes the store at `location`, a path or a URI.

    Raises `StoreError` where that fails. Of a store that a sweep is `running` in it is known that it is there: if it goes
    away (a file server restarts, a mount is lost) it is waited for, for `PATIENCE` seconds, and what cannot be seen
    meanwhile does not count as missing.
    """

    def __init__(self, location: str, running: bool = False) -> None:
        self.fs, self.root = _trying(lambda: _filesystem(location), _unopenable(location), PATIENCE if running else 0)
        self._local = isinstance(self.fs, pafs.LocalFileSystem)
        # Absolute, so that it means the same in every process of the cluster.
        self.location = self.root if self._local else location
        self.running = running

    # Paths, relative to the store.

    @staticmethod
    def cell_file(cell: str) -> str:
        return f"cells/{cell}.parquet"

    @staticmethod
    def trajectory_file(cell: str) -> str:
        return f"trajectories/{cell}.parquet"

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
    def run_directory(cell: str) -> str:
        return f"{TRAIN}/{cell}"

    # Bytes.

    def write(self, path: str, content: bytes, wait: bool = True) -> None:
        """Put a whole file in place at once: a reader, or a crash, sees the old content or the new and nothing else."""
        full = f"{self.root}/{path}"

        def put() -> None:
            if not self._local:
                # An object becomes visible when its upload is complete.
                with self.fs.open_output_stream(full) as stream:
                    stream.write(content)
                return
            with _put_in_place(full) as unfinished, open(unfinished, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())

        self._patiently(put, self._unwritable, wait)

    def _unwritable(self, error: OSError) -> StoreError:
        return StoreError(
            f"the store {self.location} cannot be written: {_reason(error)}; "
            "nothing that was finished is lost: mend that, then run again"
        )

    def _unreadable(self, error: OSError) -> StoreError:
        return StoreError(f"the store {self.location} cannot be read: {_reason(error)}")

    def read(self, path: str, wait: bool = True) -> bytes | None:
        """A file's content, or None where there is none."""

        def get() -> bytes | None:
            try:
                with self.fs.open_input_stream(f"{self.root}/{path}") as stream:
                    return bytes(stream.read())
            except FileNotFoundError:
                return None

        return self._patiently(get, self._unreadable, wait)

    def delete(self, path: str, wait: bool = True) -> None:
        """Delete a file if it is there."""

        def delete() -> None:
            with suppress(FileNotFoundError):
                self.fs.delete_file(f"{self.root}/{path}")

        self._patiently(delete, self._unwritable, wait)

    def delete_directory(self, path: str) -> None:
        """Delete a directory, if it is there, with all that is in it."""

        def delete() -> None:
            with suppress(FileNotFoundError):
                self.fs.delete_dir(f"{self.root}/{path}")

        self._patiently(delete, self._unwritable)

    def set_aside(self, path: str, why: str) -> None:
        """Rename a file that is damaged, so that it is made anew and the damaged one can be looked at."""
        aside = f"{path}.damaged-{uuid.uuid4().hex[:6]}"
        log.warning("%s/%s is damaged (%s): set aside as %s and made anew", self.location, path, why, aside)

        def move() -> None:
            with suppress(FileNotFoundError):  # Somebody else has set it aside.
                self.fs.move(f"{self.root}/{path}", f"{self.root}/{aside}")

        self._patiently(move, self._unwritable)

    def _patiently(
        self, operation: Callable[[], _T], failure: Callable[[OSError], StoreError], wait: bool = True
    ) -> _T:
        """The operation's result; where it fails with an `OSError` it is tried again as long as that may help."""

        def operate() -> _T:
            # Asked before, lest a write makes a new store where the old one is away, and after, lest something that was
            # not found counts as missing.
            self._check_there()
            result = operation()
            self._check_there()
            return result

        return _trying(operate, failure, PATIENCE if self.running and wait else 0.0)

    def _check_there(self) -> None:
        # Every run writes its plan before any cell's files; an object store is there or says so itself.
        if self.running and self._local:
            try:
                os.stat(f"{self.root}/{PLANNED}")
            except FileNotFoundError:
                raise FileNotFoundError(errno.ENOENT, "it is not there (moved, or not mounted?)") from None

    def put_file(self, local: Path, path: str) -> None:
        """Copy a file of any size into the store; it is there whole or not at all."""
        full = f"{self.root}/{path}"

        def put() -> None:
            if not self._local:
                pafs.copy_files(str(local), full, pafs.LocalFileSystem(), self.fs)
                return
            with _put_in_place(full) as unfinished:
                shutil.copyfile(local, unfinished)

        self._patiently(put, self._unwritable)

    def get_file(self, path: str, local: Path) -> None:
        """Copy a file of any size out of the store. Raises `OSError` where it cannot be written here."""
        with local.open("wb") as file:
            start = 0
            while piece := self._piece(path, start):
                file.write(piece)
                start += len(piece)

    def _piece(self, path: str, start: int) -> bytes:
        def get() -> bytes:
            with self.fs.open_input_file(f"{self.root}/{path}") as stream:
                return bytes(stream.read_at(PIECE, min(start, stream.size())))

        return self._patiently(get, self._unreadable)

    def tree(self, directory: str) -> dict[str, int]:
        """The size, in bytes, of every file under a directory, at any depth, by its path from there."""
        full = f"{self.root}/{directory}"
        selector = pafs.FileSelector(full, recursive=True)
        infos = self._patiently(lambda: self.fs.get_file_info(selector), self._unreadable)
        return {info.path.removeprefix(f"{full}/"): info.size for info in infos if info.type == pafs.FileType.File}

    def age(self, path: str) -> float | None:
        """Seconds since a file was written, None where there is none."""
        info = self._patiently(lambda: self.fs.get_file_info(f"{self.root}/{path}"), self._unreadable)
        return None if info.mtime_ns is None else max(0.0, time.time() - info.mtime_ns / 1e9)

    def probe(self) -> None:
        """Raise `StoreError` unless a file can be written, and removed again, right now."""
        # Larger than the little that a full disk may still take.
        path = f".probe-{uuid.uuid4().hex[:8]}"
        self.write(path, bytes(1 << 20))
        self.delete(path)

    def files(self, directory: str) -> list[tuple[str, int, int]]:
        """Name, size and time of change (ns since 1970) of every table in a directory, none where there is no directory."""
        infos = self._listing(directory)
        return [
            (info.base_name, info.size, info.mtime_ns or 0) for info in infos if info.base_name.endswith(".parquet")
        ]

    def directories(self, directory: str) -> list[str]:
        """The names of the directories in one."""
        return [info.base_name for info in self._listing(directory) if info.type == pafs.FileType.Directory]

    def _listing(self, directory: str) -> list[pafs.FileInfo]:
        selector = pafs.FileSelector(f"{self.root}/{directory}", allow_not_found=True)
        return self._patiently(lambda: list(self.fs.get_file_info(selector)), self._unreadable)

    # Tables.

    def write_table(self, path: str, rows: list[dict[str, Any]], schema: pa.Schema, wait: bool = True) -> None:
        table = pa.Table.from_pylist(rows, schema=schema)
        table = table.replace_schema_metadata({**schema.metadata, _CHECKSUM: checksum(table.to_pylist())})
        buffer = pa.BufferOutputStream()
        pq.write_table(table, buffer, write_page_checksum=True)
        self.write(path, buffer.getvalue().to_pybytes(), wait)

    def read_table(self, path: str, schema: pa.Schema) -> pa.Table | None:
        """The table, or None where there is none that can be read; a damaged file is set aside."""
        content = self.read(path)
        if content is None:
            return None
        try:
            table = read_parquet(pa.BufferReader(content))
            metadata = table.schema.metadata or {}
            found = metadata.get(b"raysweep_schema", b"").decode()
            if found in READABLE:
                later = [name for name in schema.names if name in SINCE_3 and found != SCHEMA_VERSION]
                table = table.select([name for name in schema.names if name not in later])
                table = table.cast(pa.schema([schema.field(name) for name in table.column_names], schema.metadata))
                # The checksums of Parquet's pages leave out what describes the pages.
                if found != "1" and metadata.get(_CHECKSUM, b"").decode() != checksum(table.to_pylist()):
                    raise ValueError("its rows are not what was written")
                for name in later:
                    before = pa.array([SINCE_3[name]] * len(table), schema.field(name).type)
                    table = table.append_column(schema.field(name), before)
                table = table.select(schema.names).cast(schema)
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, OverflowError) as error:
            self.set_aside(path, _reason(error))
            return None
        self.check_schema(path, found)
        return table

    def check_schema(self, path: str, found: str) -> None:
        """Raise `UserError` where this raysweep cannot read a file written under the schema `found`."""
        if found not in READABLE:
            raise UserError(
                f"{self.location}/{path} was written under schema {found or 'unknown'}, this raysweep reads "
                f"{' and '.join(READABLE)}: use the version of raysweep that wrote the store, or another store"
            )

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

    def corpora(self) -> dict[str, str]:
        """The fingerprints that are on record, by the corpora's specifications."""
        content = self.read("corpora.json")
        schema = SCHEMA_VERSION
        try:
            known, schema = _known_corpora(json.loads(content)) if content is not None else ({}, schema)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            self.set_aside("corpora.json", "it is not what was written")
            known = {}
        self.check_schema("corpora.json", schema)
        return known

    def check_corpora(self, fingerprints: dict[str, str]) -> None:
        """Record the fingerprint of each corpus, by its specification; `UserError` where another is on record."""
        known = self.corpora()
        for corpus, fingerprint in fingerprints.items():
            if known.get(corpus, fingerprint) != fingerprint:
                raise UserError(
                    f"the corpus {corpus} was {known[corpus]} when the store {self.location} was begun and is "
                    f"{fingerprint} now: install the versions of constraints.txt again, or use another --store"
                )
        if not fingerprints.items() <= known.items():
            known |= fingerprints
            body = {"schema": SCHEMA_VERSION, "corpora": known}
            body |= {"sha256": checksum(body)}
            self.write("corpora.json", json.dumps(body, indent=1, sort_keys=True).encode())


def read_parquet(source: Any) -> pa.Table:
    """A Parquet file's table, whose pages are what their checksums say.

    On this thread alone: `pq.read_table` leaves it to threads of Arrow's, and one that still holds a Python object when the
    interpreter ends aborts the process (apache/arrow issues 34314, 50482; here once in 150 commands on a busy machine).
    """
    with pq.ParquetFile(source, page_checksum_verification=True, pre_buffer=False) as file:
        return file.read(use_threads=False)


@contextmanager
def _put_in_place(full: str) -> Iterator[str]:
    """Another name to write a local file under, which gets its own at the end; nothing is left of one that fails."""
    Path(full).parent.mkdir(parents=True, exist_ok=True)
    unfinished = f"{full}.{uuid.uuid4().hex[:8]}.unfinished"
    try:
        yield unfinished
        os.replace(unfinished, full)
    except OSError:
        with suppress(OSError):
            os.unlink(unfinished)
        raise


def _trying(operation: Callable[[], _T], failure: Callable[[OSError], StoreError], patience: float) -> _T:
    """The operation's result, tried for `patience` seconds."""
    deadline = None
    while True:
        try:
            return operation()
        except OSError as error:
            now = time.monotonic()
            if deadline is None:
                deadline = now + patience
                if patience and not _lasting(error):
                    log.warning("%s: waiting for it, up to %.0f s", failure(error), patience)
            if now >= deadline or _lasting(error):
                raise failure(error) from None
        time.sleep(1.0)


def _unopenable(location: str) -> Callable[[OSError], StoreError]:
    return lambda error: StoreError(f"the store {location} cannot be opened: {_reason(error)}")


def _known_corpora(body: dict[str, Any]) -> tuple[dict[str, str], str]:
    """What corpora.json holds, and the schema that it was written under."""
    if all(isinstance(fingerprint, str) for fingerprint in body.values()):
        return body, "1"
    sealed, sha256 = {key: value for key, value in body.items() if key != "sha256"}, body["sha256"]
    # The first files of schema 2 did not say so.
    if sha256 not in (checksum(sealed), checksum(body["corpora"]) if len(sealed) == 1 else ""):
        raise ValueError
    return body["corpora"], sealed.get("schema", "2")


def checksum(content: Any) -> str:
    """SHA-256 of rows, or of anything else that JSON can hold: floats count to the last bit."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def settings_text(settings: dict[str, Any]) -> str:
    """An evaluation's settings as they stand in `schemas.EVALUATIONS`."""
    return json.dumps(settings, sort_keys=True)


def settings_hash(settings: dict[str, Any]) -> str:
    """8 hex digits of an evaluation's settings."""
    return hashlib.sha256(settings_text(settings).encode()).hexdigest()[:8]


def _filesystem(location: str) -> tuple[pafs.FileSystem, str]:
    if slip := re.match(r"(s3|gs|gcs|hdfs|file):/?(?!/)", location):
        raise UserError(f"the store {location} is no address: write {slip[1]}://...")
    if "://" not in location:
        return pafs.LocalFileSystem(), str(Path(location).expanduser().absolute())
    if "@" in location.partition("://")[2].partition("/")[0]:
        kind = location.partition("://")[0]
        raise UserError(
            f"the address of the store, {kind}://..., holds credentials: leave them out and set them in the environment "
            "or in the cloud's own configuration file, where they are in no log"
        )
    if location.startswith("gs://") and "retry_limit_seconds" not in location:
        # By itself Google's client tries for a quarter of an hour, and a sweep waits in its own way (PATIENCE).
        location += f"{'&' if '?' in location else '?'}retry_limit_seconds=10"
    try:
        fs, root = pafs.FileSystem.from_uri(location)
    except (pa.ArrowException, ValueError) as error:
        raise UserError(f"the store {location} cannot be opened: {_reason(error)}") from None
    if not root.strip("/"):
        raise UserError(f"the store {location} names no bucket or folder")
    return fs, root.rstrip("/")


def _lasting(error: OSError) -> bool:
    return error.errno in _LASTING or any(answer in str(error) for answer in _LASTING_ANSWERS)


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
