"""Files that appear whole or not at all: written under another name, then renamed."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from raysweep.errors import UserError


def local_path(given: str | Path, what: str) -> Path:
    """The file or folder on this machine that a person named, `~` expanded. `what` says where: `--output`.

    Raises `UserError` for no name and for an address, which would become a folder called `s3:`.
    """
    text = str(given)
    if not text:
        raise UserError(f"{what} is empty: name a file or folder")
    if "://" in text or re.match(r"(s3|gs|gcs|hdfs|file):", text):
        raise UserError(f"{what} {text} is an address, and must be on this machine: name a file or folder")
    if text.startswith("$"):
        raise UserError(f"{what} {text} is a variable that nothing has replaced: write the folder out, or use ~")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UserError(
            f"{what} {text} needs a home folder, and there is none: set HOME, or give the whole path"
        ) from None


_LFS_POINTER = b"version https://git-lfs"


def is_lfs_pointer(content: BinaryIO) -> bool:
    """Whether a file is a pointer of git-lfs in place of what it is called; reads its first bytes."""
    return content.read(len(_LFS_POINTER)) == _LFS_POINTER


def flush(path: Path) -> None:
    """Wait until what was written to a file is on the disk; of a folder, until its list of names is."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        # Some network file systems cannot do it for folders, and do not need it.
        if not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def flush_all(folder: Path) -> None:
    """Do so for a folder and everything in it."""
    for path in folder.rglob("*"):
        flush(path)
    flush(folder)


@contextmanager
def put_in_place(path: Path) -> Iterator[Path]:
    """Another name to write a file under, which gets its own at the end; nothing is left of one that fails.

    A reader, a crash, or a power cut leaves the old content or the new and nothing else.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.unfinished")
    try:
        yield unfinished
        flush(unfinished)
        os.replace(unfinished, path)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink()
        raise
