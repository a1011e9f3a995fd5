"""Notices when this process's local Ray cluster dies; without it Ray would wait or hang forever."""

from __future__ import annotations

import _thread
import logging
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from raysweep.errors import UserError

log = logging.getLogger("raysweep")

LOST = (
    "a process of the local Ray cluster died: was it killed, was memory short, or did a signal go to the whole process "
    "group (use `timeout --foreground`)? Nothing that was finished is lost: run the same command again"
)
DELETED = (
    "the folder of the local Ray cluster, {}, was deleted while it ran; nothing that was finished is lost: run the same "
    "command again"
)

# Within so many seconds the main thread has noticed, unless it hangs in Ray.
GRACE_S = 10.0


class Watchdog:
    """Watches the local cluster that this process has started, from the time it is made until `end`: processes and folder.

    Where a process dies or the folder of its session goes, the others are killed, `on_loss` is called with the reason, from
    another thread, and the thread that made this, if it is the main one, is interrupted. Where it does not come out of
    Ray even then, this process prints the reason and ends.
    """

    def __init__(self, session: Path, on_loss: Callable[[str], None] | None = None) -> None:
        self._session, self._on_loss, self._reason = session, on_loss, LOST
        self._lost, self._ended = threading.Event(), threading.Event()
        self._main = threading.current_thread() is threading.main_thread()
        threading.Thread(target=self._watch, daemon=True).start()

    def check(self) -> None:
        """Raise `UserError` where the cluster is lost."""
        if self._lost.is_set():
            raise UserError(self._reason) from None

    def end(self, shut_down: Callable[[], None]) -> None:
        """Shut the cluster down. That is watched only where it is lost, since it ends the processes."""
        if not self._lost.is_set():
            self._ended.set()
        shut_down()
        self._ended.set()

    def _watch(self) -> None:
        own = psutil.Process()
        pillars = [process for process in own.children(recursive=True) if _name(process) in ("raylet", "gcs_server")]
        while not self._ended.wait(1.0):
            whole = os.path.exists(self._session)
            if (whole and all(map(_alive, pillars))) or self._ended.wait(1.0):
                continue
            if not whole:
                self._reason = DELETED.format(self._session)
            for process in own.children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            self._lost.set()
            try:
                if self._on_loss is not None:
                    self._on_loss(self._reason)
            except Exception:
                log.exception("a subscriber of the sweep's events failed")
            if self._main:
                _thread.interrupt_main()
                if not self._ended.wait(GRACE_S):
                    end_process(self._reason)
            return


def end_process(reason: str = LOST) -> None:
    """Say why, and end this process at once: what it waits for will never come."""
    with suppress(Exception):
        sys.stdout.flush()
    print(f"raysweep: error: {reason}", file=sys.stderr, flush=True)
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
