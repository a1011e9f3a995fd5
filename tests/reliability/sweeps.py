"""Sweeps by the command line whose every process can be watched, and the tables they leave."""

import os
import subprocess
import sys
from pathlib import Path

import psutil

TABLES = ("cells", "trajectories", "evaluations")


class Sweep:
    """A driver and all that it starts, in a session of their own."""

    def __init__(self, file: Path, store: Path | str, log: Path, **environment: str) -> None:
        self.log = log.open("ab")
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
