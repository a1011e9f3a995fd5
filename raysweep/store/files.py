"""Reads and writes a store's files: they appear whole or not at all, and short outages are waited out."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import pyarrow.fs as pafs

from raysweep.errors import StoreError, reason
from raysweep.files import put_in_place
from raysweep.store import retry
from raysweep.store.filesystem import open_filesystem

log = logging.getLogger("raysweep")

# What every store has from its first run on.
MARKER = "plan.parquet"

# So many bytes of a large file are read at once.
PIECE = 8 << 20

_T = TypeVar("_T")


class StoreFiles:
    """Reads and writes files under `location`, a path or a URI that `pyarrow.fs` takes.

    Raises `StoreError` if that fails. While a sweep is `running`, its store is known to exist: if it goes away,
    operations are retried for `retry.PATIENCE` seconds, and files that cannot be seen then do not count as missing.
    """

    def __init__(self, location: str, running: bool = False, remembers: bool = False) -> None:
        def unopenable(error: OSError) -> StoreError:
            return StoreError(f"the store {location} cannot be opened: {reason(error)}")

        patience = retry.PATIENCE if running else 0.0
        self.fs, self.root = retry.with_retries(lambda: open_filesystem(location), unopenable, patience)
        self._local = isinstance(self.fs, pafs.LocalFileSystem)
        # Absolute, so that it means the same in every process of the cluster.
        self.location = self.root if self._local else location
        self.running = running
        self.remembers = remembers
        """Whether what `raysweep.store.index` reads stays in memory, for a process that reads the store again and again."""
        self.remembered: dict[str, dict[str, tuple[tuple[int, int], list[dict[str, Any]]]]] = {}
        """Directory -> file -> its size and time of change, and its rows."""

    def write(self, path: str, content: bytes, wait: bool = True) -> None:
        """Put a whole file in place at once: a reader, or a crash, sees the old content or the new and nothing else."""
        full = f"{self.root}/{path}"

        def put() -> None:
            if not self._local:
                # An object becomes visible when its upload is complete.
                with self.fs.open_output_stream(full) as stream:
                    stream.write(content)
                return
            with put_in_place(Path(full)) as unfinished, unfinished.open("wb") as file:
                file.write(content)

        self._with_retries(put, self._unwritable, wait)

    def _unwritable(self, error: OSError) -> StoreError:
        return StoreError(
            f"the store {self.location} cannot be written: {reason(error)}; "
            "nothing that was finished is lost: fix that, then run again"
        )

    def _unreadable(self, error: OSError) -> StoreError:
        return StoreError(f"the store {self.location} cannot be read: {reason(error)}")

    def read(self, path: str, wait: bool = True) -> bytes | None:
        """A file's content, or None where there is none."""

        def get() -> bytes | None:
            try:
                with self.fs.open_input_stream(f"{self.root}/{path}") as stream:
                    return bytes(stream.read())
            except FileNotFoundError:
                return None

        return self._with_retries(get, self._unreadable, wait)

    def delete(self, path: str, wait: bool = True) -> None:
        """Delete a file if it is there."""

        def delete() -> None:
            with suppress(FileNotFoundError):
                self.fs.delete_file(f"{self.root}/{path}")

        self._with_retries(delete, self._unwritable, wait)

    def delete_directory(self, path: str) -> None:
        """Delete a directory, if it is there, with all that is in it."""

        def delete() -> None:
            with suppress(FileNotFoundError):
                self.fs.delete_dir(f"{self.root}/{path}")

        self._with_retries(delete, self._unwritable)

    def quarantine(self, path: str, why: str) -> None:
        """Rename a file that is damaged, so that it is recomputed and the damaged one can be looked at."""
        renamed = f"{path}.damaged-{uuid.uuid4().hex[:6]}"
        log.warning("%s/%s is damaged (%s): renamed to %s and recomputed", self.location, path, why, renamed)

        def move() -> None:
            with suppress(FileNotFoundError):  # Somebody else has renamed it.
                self.fs.move(f"{self.root}/{path}", f"{self.root}/{renamed}")

        self._with_retries(move, self._unwritable)

    def _with_retries(
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

        return retry.with_retries(operate, failure, retry.PATIENCE if self.running and wait else 0.0)

    def _check_there(self) -> None:
        # Every run writes its plan before any cell's files; an object store is there or says so itself.
        if self.running and self._local:
            try:
                os.stat(f"{self.root}/{MARKER}")
            except FileNotFoundError:
                raise FileNotFoundError(errno.ENOENT, "it is not there (moved, or not mounted?)") from None

    def put_file(self, local: Path, path: str) -> None:
        """Copy a file of any size into the store; it is there whole or not at all."""
        full = f"{self.root}/{path}"

        def put() -> None:
            if not self._local:
                pafs.copy_files(str(local), full, pafs.LocalFileSystem(), self.fs)
                return
            with put_in_place(Path(full)) as unfinished:
                shutil.copyfile(local, unfinished)

        self._with_retries(put, self._unwritable)

    def get_file(self, path: str, local: Path) -> None:
        """Copy a file of any size out of the store. Raises `OSError` where it cannot be written here."""
        with local.open("wb") as file:
            while True:
                piece = self._piece(path, file.tell())
                file.write(piece)
                if len(piece) < PIECE:
                    return

    def _piece(self, path: str, start: int) -> bytes:
        def get() -> bytes:
            with self.fs.open_input_file(f"{self.root}/{path}") as stream:
                return bytes(stream.read_at(PIECE, min(start, stream.size())))

        return self._with_retries(get, self._unreadable)

    def tree(self, directory: str) -> dict[str, int]:
        """The size, in bytes, of every file under a directory, at any depth, by its path from there."""
        full = f"{self.root}/{directory}"
        selector = pafs.FileSelector(full, recursive=True)
        infos = self._with_retries(lambda: self.fs.get_file_info(selector), self._unreadable)
        return {info.path.removeprefix(f"{full}/"): info.size for info in infos if info.type == pafs.FileType.File}

    def age(self, path: str) -> float | None:
        """Seconds since a file was written, None where there is none."""
        info = self._with_retries(lambda: self.fs.get_file_info(f"{self.root}/{path}"), self._unreadable)
        return None if info.mtime_ns is None else max(0.0, time.time() - info.mtime_ns / 1e9)

    def begun(self) -> bool:
        """Whether a sweep has ever begun here."""
        return self.age(MARKER) is not None

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
        return self._with_retries(lambda: list(self.fs.get_file_info(selector)), self._unreadable)
