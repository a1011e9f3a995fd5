"""A location, which is a path or a URI, -> the file system that it is on."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl

import pyarrow as pa
import pyarrow.fs as pafs

from raysweep.errors import UserError, allowed, reason
from raysweep.files import local_path

_KINDS = ("file", "s3", "gs", "gcs", "hdfs", "abfs", "abfss")


def open_filesystem(location: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a location, and the path there. Raises `UserError` where it names none."""
    if slip := re.match(r"(s3|gs|gcs|hdfs|file):/?(?!/)", location):
        raise UserError(f"the store {location} is not an address: write {slip[1]}://...")
    if "://" not in location:
        return pafs.LocalFileSystem(), str(local_path(location, "the store").absolute())
    if (kind := location.partition("://")[0]) not in _KINDS:
        raise UserError(f"the store {location} is of a kind that raysweep does not know; {allowed(kind, _KINDS)}")
    if "@" in location.partition("://")[2].partition("/")[0]:
        kind = location.partition("://")[0]
        raise UserError(
            f"the address of the store, {kind}://..., holds credentials: leave them out and set them in the environment "
            "or in the cloud's own configuration file, so that no log shows them"
        )
    _check_address(location)
    if location.startswith("gs://") and "retry_limit_seconds" not in location:
        # By itself Google's client tries for a quarter of an hour, and a sweep waits in its own way (PATIENCE).
        location += f"{'&' if '?' in location else '?'}retry_limit_seconds=10"
    try:
        fs, root = pafs.FileSystem.from_uri(location)
    except (pa.ArrowException, ValueError) as error:
        raise UserError(f"the store {location} cannot be opened: {reason(error)}") from None
    if not root.strip("/"):
        raise UserError(f"the store {location} names no bucket or folder")
    return fs, root.rstrip("/")


def _check_address(location: str) -> None:
    """Raise `UserError` where an address says something that the file system would leave out without a word."""
    kind, _, address = location.partition("://")
    names = [name for name, _ in parse_qsl(address.partition("?")[2], keep_blank_values=True)]
    if "#" in address:
        said = "what follows '#' is no part of an address: write %23 where the name has a '#'"
    elif "?" in address and kind == "file":
        said = "a folder takes no options: write %3F where the name has a '?'"
    elif twice := [name for name in names if names.count(name) > 1]:
        said = f"the option {twice[0]} is there twice"
    else:
        return
    raise UserError(f"the store {location}: {said}")
