"""Where corpora and compiled kernels are kept on this machine."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from raysweep.errors import UserError, reason
from raysweep.files import local_path

CACHE = "RAYSWEEP_CACHE"


def cache() -> Path:
    """The folder RAYSWEEP_CACHE, by default ~/.cache/raysweep. Raises `UserError` where nobody knows a home folder."""
    return local_path(os.environ.get(CACHE) or "~/.cache/raysweep", CACHE).absolute()


def unwritable(error: OSError) -> UserError:
    """What to do where the cache cannot be written."""
    return UserError(
        f"the corpus cache {cache()} on {socket.gethostname()} cannot be written: {reason(error)}; "
        "make room there or set RAYSWEEP_CACHE to another folder"
    )
