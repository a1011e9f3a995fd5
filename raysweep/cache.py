"""Where corpora and compiled kernels are kept on this machine."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from raysweep.errors import UserError, reason


def cache() -> Path:
    """The folder RAYSWEEP_CACHE, by default ~/.cache/raysweep. Raises `UserError` where nobody knows a home folder."""
    folder = os.environ.get("RAYSWEEP_CACHE") or "~/.cache/raysweep"
    try:
        return Path(folder).expanduser().absolute()
    except RuntimeError:
        raise UserError(
            f"the corpus cache {folder} needs a home folder, and this user has none: set HOME, or RAYSWEEP_CACHE"
        ) from None


def unwritable(error: OSError) -> UserError:
    """What to do where the cache cannot be written."""
    return UserError(
        f"the corpus cache {cache()} on {socket.gethostname()} cannot be written: {reason(error)}; "
        "make room there or set RAYSWEEP_CACHE to another folder"
    )
