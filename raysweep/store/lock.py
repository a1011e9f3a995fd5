"""One driver a store: `run.json` says who runs the sweep now, and beats while it does.

It works on any file system or bucket and does not trust clocks. Some buckets could create the file only where there is none,
but `pyarrow.fs` does not pass that on, and a second library would need credentials of its own: so who starts waits for a
moment and reads again what it wrote. A driver on this machine is alive if its process is; one
elsewhere is alive if its beat changes while we watch. So the lock of a killed driver is taken over automatically.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from raysweep.errors import StoreError, UserError
from raysweep.store import Store
from raysweep.store.schemas import SCHEMA_VERSION

logger = logging.getLogger(__name__)

FILE = "run.json"
BEAT = 3.0
SILENT = 60.0
"""Seconds without a beat after which a driver on another machine may be gone."""
# How long two drivers that start at once may take from reading the file to writing it.
SETTLE = 0.5


def machine() -> str:
    """This machine since its last boot, and which of its processes can be seen: a container has numbers of its own."""
    boot, processes = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    seen = os.readlink(processes) if os.path.lexists(processes) else ""
    return f"{socket.gethostname()}/{boot.read_text().strip() if boot.exists() else ''}/{seen}"


def holder(store: Store) -> dict[str, Any] | None:
    """What the driver that holds the store says of itself, as far as can be told without waiting; None without one."""
    record = _read(store)
    if record is None or (record["machine"] == machine() and not _process_alive(record)):
        return None
    return record


def silence(store: Store) -> float:
    """Seconds since a driver last said that it was there; above `SILENT` it may be gone."""
    return store.age(FILE) or 0.0


def stop_holder(store: Store) -> int | None:
    """End the driver on this machine that holds the store as Ctrl-C would, and wait for it; its process id.

    None where nobody holds it; raises `UserError` where the driver is on another machine.
    """
    record = holder(store)
    if record is None:
        return None
    pid = int(record["pid"])
    if record["machine"] != machine():
        raise UserError(
            f"the sweep runs on {record['host']} (process {pid}): stop it there, or with --cluster if it runs as a job"
        )
    os.kill(pid, signal.SIGTERM)
    while _process_alive(record):
        time.sleep(0.2)
    return pid


class Lock:
    """Holds a store while in its context; each beat says what `progress` returns. Raises `UserError` naming its holder."""

    def __init__(self, store: Store, progress: Callable[[], dict[str, Any]] = dict) -> None:
        self._store = store
        self._progress = progress
        self._record: dict[str, Any] = {
            "schema": SCHEMA_VERSION,
            "owner": uuid.uuid4().hex,
            "machine": machine(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "process_started": _started(os.getpid()),
            "started": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
            "beat": 0,
            "progress": {},
        }
        self.lost = ""
        """Who has taken the store over, as a message; empty while this driver holds it."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)

    def __enter__(self) -> Lock:
        other = holder(self._store)
        if other is not None and (other["machine"] == machine() or self._beats(other)):
            raise _refused(self._store, other)
        self._write()
        time.sleep(SETTLE)
        other = _read(self._store)
        if not self._mine(other):
            raise _refused(self._store, other or self._record)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        with suppress(StoreError):  # Out of reach; who comes next sees that nobody beats.
            if not self.lost and self._mine(_read(self._store, wait=False)):
                self._store.delete(FILE, wait=False)

    def _keep(self) -> None:
        while not self._stop.wait(BEAT):
            try:
                other = _read(self._store, wait=False)
                if other is not None and not self._mine(other):
                    # The store was out of reach for longer than others wait for a beat.
                    self.lost = str(_refused(self._store, other))
                    return
                self._write()
            except StoreError:
                continue  # A store that is away for a moment; what matters is told where results are written.

    def _mine(self, record: dict[str, Any] | None) -> bool:
        return record is not None and record["owner"] == self._record["owner"]

    def _write(self) -> None:
        self._record["beat"] += 1
        try:
            self._record["progress"] = self._progress()
        except Exception:  # Without a beat others would take the store over: no figure is worth that.
            logger.debug("the progress of the sweep could not be told", exc_info=True)
        self._store.write(FILE, json.dumps(self._record, default=str).encode(), wait=False)

    def _beats(self, other: dict[str, Any]) -> bool:
        deadline = time.monotonic() + 4 * BEAT
        while time.monotonic() < deadline:
            time.sleep(BEAT / 2)
            now = _read(self._store)
            if now is None:
                return False
            if (now["owner"], now["beat"]) != (other["owner"], other["beat"]):
                return True
        return False


def _refused(store: Store, other: dict[str, Any]) -> UserError:
    return UserError(
        f"the store {store.location} is in use by process {other['pid']} on {other['host']}, running since "
        f"{other['started']}: wait for it, stop it, or use another --store"
    )


def _read(store: Store, wait: bool = True) -> dict[str, Any] | None:
    content = store.read(FILE, wait)
    try:
        record = json.loads(content) if content else None
        if record is not None:
            _ = [record[key] for key in ("owner", "machine", "host", "pid", "process_started", "started", "beat")]
        return record
    except (ValueError, KeyError, TypeError):
        return None  # Not from a driver: nobody holds the store by it.


def _process_alive(record: dict[str, Any]) -> bool:
    try:
        pid = int(record["pid"])
        # One that ended may wait for its parent to ask how.
        ended = psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        return not ended and _started(pid) == float(record["process_started"])
    except (OSError, psutil.NoSuchProcess):
        return False


def _started(pid: int) -> float:
    """When a process started, by a clock that nobody sets: on Linux in ticks since the machine's boot."""
    stat = Path(f"/proc/{pid}/stat")
    if stat.parent.parent.joinpath("self").exists():
        return float(stat.read_text(encoding="utf-8").rpartition(")")[2].split()[19])
    return psutil.Process(pid).create_time()
