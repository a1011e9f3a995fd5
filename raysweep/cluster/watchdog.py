"""Notices where the local Ray cluster that this process stands on has died; left to itself Ray waits, or hangs for ever."""

from __future__ import annotations

import _thread
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psutil

from raysweep.errors import UserError

LOST = (
    "a process of the local Ray cluster died (killed, or out of memory?); nothing that was finished is lost: run the same "
    "command again"
)

# Within so many seconds the main thread has noticed, unless it hangs in Ray.
GRACE_S = 10.0


@contextmanager
def watched(on_loss: Callable[[str], None] | None) -> Iterator[None]:
    """Watch the processes of the local cluster while in the context.

    Where one dies its remaining processes are killed, `on_loss` is called with the reason, from another thread, and the
    main thread raises `UserError`. Where that hangs in a call of Ray's, this process prints the reason and ends.
    """
    ending, lost = threading.Event(), threading.Event()
    threading.Thread(target=_watch, args=(ending, lost, on_loss), daemon=True).start()
    try:
        yield
    except BaseException:
        if lost.is_set():
            raise UserError(LOST) from None
        raise
    finally:
        ending.set()


def _watch(ending: threading.Event, lost: threading.Event, on_loss: Callable[[str], None] | None) -> None:
    own = psutil.Process()
    pillars = [process for process in own.children(recursive=True) if _name(process) in ("raylet", "gcs_server")]
    while not ending.wait(1.0):
        if all(map(_alive, pillars)) or ending.wait(1.0):
            continue
        for process in own.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        lost.set()
        if on_loss is not None:
            on_loss(LOST)
        _thread.interrupt_main()
        if not ending.wait(GRACE_S):
            end_process()
        return


def end_process() -> None:
    """Say why, and end this process at once: what it waits for will never come."""
    with suppress(Exception):
        sys.stdout.flush()
    print(f"raysweep: error: {LOST}", file=sys.stderr, flush=True)
    os._exit(1)


def _name(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.NoSuchProcess:  # It lived for a moment.
        return ""


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
