"""A location, which is a path or a URI, -> the file system that it is on."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs

from raysweep.errors import UserError, reason


def open_filesystem(location: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a location, and the path there. Raises `UserError` where it names none."""
    if slip := re.match(r"(s3|gs|gcs|hdfs|file):/?(?!/)", location):
        raise UserError(f"the store {location} is not an address: write {slip[1]}://...")
    if "://" not in location:
        return pafs.LocalFileSystem(), str(Path(location).expanduser().absolute())
    if "@" in location.partition("://")[2].partition("/")[0]:
        kind = location.partition("://")[0]
        raise UserError(
            f"the address of the store, {kind}://..., holds credentials: leave them out and set them in the environment "
            "or in the cloud's own configuration file, so that no log shows them"
        )
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
