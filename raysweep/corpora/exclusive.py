"""One process at a time, on any file system."""

from __future__ import annotations

import errno
import fcntl
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, SoftFileLease, Timeout

from raysweep.cache import unwritable
from raysweep.errors import UserError
from raysweep.files import flush, flush_all

log = logging.getLogger("raysweep")

# Seconds after which a process that waits says for what.
SILENT = 60

LEASE = 300.0
"""Without flock: seconds after which who has not been heard of holds a lock no longer. Clocks may differ by less."""


def made_once(folder: Path, complete: Path, make: Callable[[Path], None], *, resume: bool) -> bool:
    """Have `make` fill a folder that then appears whole, unless `complete` is there: a file in it, or itself.

    One process makes it, under another name, and the others wait. With `resume` what one that was killed has made is kept.
    Whether this process made it. Raises `UserError` where the cache cannot be written.
    """
    if complete.exists():
        return False
    try:
        with exclusive(Path(f"{folder}.lock")):
            if complete.exists():
                return False
            unfinished = folder.with_name(f"{folder.name}.unfinished")
            if not resume:
                shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(exist_ok=resume)
            make(unfinished)
            # Once it has its name it counts as whole, and what it was made of may be deleted: a power cut must not empty it.
            flush_all(unfinished)
            unfinished.rename(folder)
            flush(folder.parent)
            return True
    except OSError as error:
        raise unwritable(error) from None


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Let one process at a time into the context, of those that name the same path; the others wait.

    Where the file system has no flock, as Lustre mounted without it, a file marks the holder, which touches it while it
    lives. Where the holder was killed on another machine, the others wait for five minutes. Raises `UserError` where this
    process stood still for so long that another holds the lock now.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if _has_flock(path.parent):
        of_file = FileLock(path)
        _acquire(of_file, f"waiting for the process that holds {path}, on this machine or on one that shares its disk")
        try:
            yield
        finally:
            of_file.release()
        return
    # filelock's own way from one to the other lets two in at once, where both begin with flock.
    marker = path.with_name(f"{path.name}.held")
    lock = SoftFileLease(marker, lease_duration=LEASE)
    most = f"{LEASE / 60:.0f} minutes at most"
    _acquire(
        lock, f"waiting for the process that holds {marker}; if it was killed on another machine, this takes {most}"
    )
    try:
        yield
        if lock.compromise is not None:
            raise UserError(f"another process has taken over {marker}, since this one stood still: run it again")
    finally:
        lock.release()


def _acquire(lock: FileLock | SoftFileLease, waiting: str) -> None:
    """Wait for a lock, and say `waiting` where that takes long."""
    try:
        lock.acquire(timeout=SILENT)
    except Timeout:
        log.warning("%s", waiting)
        lock.acquire()


class Hold:
    """A lock that this process holds."""

    def __init__(self, lock: FileLock | SoftFileLease) -> None:
        self._lock = lock

    def release(self) -> None:
        """Let go of it."""
        self._lock.release()


def try_hold(path: Path) -> Hold | None:
    """Hold what `path` names until the process ends or lets go; None where another does."""
    lock = FileLock(path) if _has_flock(path.parent) else SoftFileLease(path, lease_duration=LEASE)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    return Hold(lock)


def _has_flock(folder: Path) -> bool:
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
                return False
            raise
    return True
