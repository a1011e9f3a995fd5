"""When a sweep was worked on, where, and under which versions.

Each `raysweep run` that has something to do writes `sessions/<start>-<process>.parquet`.

A session records every minute that it is still alive, so the time of a kill is known to the minute.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from raysweep.errors import StoreError
from raysweep.store import Store
from raysweep.store.schemas import SESSIONS

DIRECTORY = "sessions"
SEEN_EVERY = 60.0

# What decides the numbers, beside the code: the tokens of `installed` and the arithmetic.
_VERSIONS = ("raysweep", "torch", "ray", "ai2-olmo", "numpy", "tokenizers", "transformers", "auto-gptq")


@contextmanager
def recorded(store: Store, space: str) -> Iterator[None]:
    """Keep the record of this session on the search space of that name while in the context."""
    record: dict[str, Any] = {
        "space": space,
        "started": now(),
        "host": socket.gethostname(),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "job": f"slurm:{job}" if (job := os.environ.get("SLURM_JOB_ID")) else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": json.dumps({name: version(name) for name in _VERSIONS}),
    }
    path = file(record["started"], str(os.getpid()))

    def write(ended: bool = False) -> None:
        with suppress(StoreError):  # Out of reach for a moment; what matters is told where results are written.
            store.write_table(path, [record | {"seen": now(), "ended": ended}], SESSIONS, wait=False)

    over = threading.Event()

    def keep() -> None:
        while not over.wait(SEEN_EVERY):
            write()

    write()
    thread = threading.Thread(target=keep, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        write(ended=True)


def file(started: datetime.datetime, process: str) -> str:
    """Where in the store the record of a session is."""
    return f"{DIRECTORY}/{started:%Y%m%dT%H%M%S}-{process}.parquet"


def read(store: Store, space: str) -> list[dict[str, Any]]:
    """The sessions on a search space in their order; one that has not `ended` was killed, or is still there."""
    tables = [store.read_rows(f"{DIRECTORY}/{name}", SESSIONS) for name, _, _ in store.files(DIRECTORY)]
    return sorted(
        (row for rows in tables for row in rows or [] if row["space"] == space), key=lambda row: row["started"]
    )


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def now() -> datetime.datetime:
    """The time, in UTC and whole seconds, as tables have it."""
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)
