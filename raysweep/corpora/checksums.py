"""Which files were found to be what their checksums say, so that a corpus of terabytes is read once for it."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from raysweep.files import put_in_place


class ChecksumCache:
    """Which files of a folder were found to have which checksum: `checked.json` there, by size and time of change.

    A corpus of terabytes is read once for this, not once for every process that opens it.
    """

    FILE = "checked.json"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, list[Any]] = {}
        self._new = False
        with suppress(OSError, ValueError):
            content = json.loads((folder / self.FILE).read_text(encoding="utf-8"))
            self._known = content if isinstance(content, dict) else {}

    def matches(self, file: str, sha256: str, again: bool = False) -> bool:
        """Whether a file has that checksum; read where it is not known, or has changed, or is to be read `again`."""
        path = self._folder / file
        try:
            about = path.stat()
            seen = [about.st_size, about.st_mtime_ns, sha256]
            if self._known.get(file) == seen and not again:
                return True
            with path.open("rb") as content:
                if hashlib.file_digest(content, "sha256").hexdigest() != sha256:
                    return False
        except OSError:
            return False
        self._new = self._new or self._known.get(file) != seen
        self._known[file] = seen
        return True

    def save(self) -> None:
        """Keep what was found, if anything new was; a folder that cannot be written is read again the next time."""
        if self._new:
            with suppress(OSError), put_in_place(self._folder / self.FILE) as unfinished:
                unfinished.write_text(json.dumps(self._known), encoding="utf-8")
