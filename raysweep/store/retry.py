"""Operations on a store that is out of reach for a moment: a file server restarts, a mount is lost, a network hiccups."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from typing import TypeVar

from raysweep.errors import StoreError

log = logging.getLogger("raysweep")

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


def with_retries(operation: Callable[[], _T], failure: Callable[[OSError], StoreError], patience: float) -> _T:
    """The operation's result; where it fails with an `OSError` that may pass it is tried again for `patience` seconds."""
    deadline = None
    while True:
        try:
            return operation()
        except OSError as error:
            now = time.monotonic()
            if deadline is None:
                deadline = now + patience
                if patience and not _lasting(error):
                    log.warning("%s: retrying for up to %.0f s", failure(error), patience)
            if now >= deadline or _lasting(error):
                raise failure(error) from None
        time.sleep(1.0)


def _lasting(error: OSError) -> bool:
    return error.errno in _LASTING or any(answer in str(error) for answer in _LASTING_ANSWERS)
