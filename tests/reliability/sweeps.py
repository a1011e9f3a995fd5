"""Sweeps by the command line whose every process can be watched, and the tables they leave."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

TABLES = ("cells", "trajectories", "evaluations", "measures", "spectra")


class Sweep:
    """A driver and all that it starts, in a session of their own."""

    def __init__(self, file: Path, store: Path | str, log: Path, **environment: str) -> None:
        self.log = log.open("ab")
        self.before = self.log.tell()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "raysweep.cli", "run", str(file), "--store", str(store)],
            stdout=self.log, stderr=subprocess.STDOUT, env=os.environ | environment,
        )  # fmt: skip
        self.seen: dict[int, psutil.Process] = {}

    def processes(self) -> list[psutil.Process]:
        """Everything that was seen to belong to it and is alive, also what has lost its parent."""
        try:
            own = psutil.Process(self.process.pid)
            for process in [own, *own.children(recursive=True)]:
                self.seen.setdefault(process.pid, process)
        except psutil.NoSuchProcess:
            pass
        return [process for process in self.seen.values() if process.is_running()]

    def find(self, name: str) -> list[psutil.Process]:
        found = []
        for process in self.processes():
            try:
                if name in " ".join(process.cmdline())[:400]:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def printed(self) -> str:
        """What it has printed."""
        return Path(self.log.name).read_text()[self.before :]

    def wait_for(self, condition: Callable[[], Any], seconds: float = 180) -> Any:
        """What the condition says once that is true; fails where the driver ends before, or nothing comes of it."""
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert self.process.poll() is None, f"ended too early: {self.printed()}"
            assert time.monotonic() < deadline, f"did not come: {self.printed()}"
            time.sleep(0.05)
        return found

    def finish(self, seconds: float = 400) -> tuple[int, str]:
        """Its exit status and what it printed, in which there is no traceback."""
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"hangs: {self.printed()}") from None
        finally:
            self.sweep_up()
        printed = self.printed()
        assert "Traceback" not in printed, printed
        return status, printed

    def sweep_up(self) -> int:
        """Kill what is left of it; how many processes there were."""
        left = self.processes()
        for process in left:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(left, timeout=30)
        self.log.close()
        return len(left)


def contents(store: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(store)): path.read_bytes()
        for table in TABLES
        for path in sorted((store / table).rglob("*.parquet"))
    }
