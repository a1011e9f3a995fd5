"""Hundreds of cells in one driver: nothing grows with the number of cells but the tables.

`make test-soak`. A sweep of trivial cells with one evaluation each runs in one driver while its processes are watched:
memory and open files of the driver, the GCS, the raylet and the dashboard, how many processes there are, and Ray's own
lists of living actors and of placement groups (a trial that does not give its own back starves the later ones, ray issue
54305). Every figure is printed; the last third of the sweep may not lie above the first by more than its margin.
"""

import json
import os
import re
import statistics
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from reliability.sweeps import Sweep
from tiny import make_cell

from raysweep.corpora.tokenized import TokenizedCorpus

CELLS = int(os.environ.get("SOAK_CELLS", "300"))
SPACE: dict[str, Any] = {
    "name": "soak",
    "base": make_cell(tokens=256).model_dump(exclude={"seed"}),
    "cross": {"seed": list(range(CELLS))},
    "evaluations": [{"task": "in_distribution", "sequences": 2}],
    "resources": {"train": {"cpus": 1}, "evaluate": {"cpus": 1}},
}
SAMPLE_EVERY = 20.0
WATCHED = {"driver": "raysweep", "gcs": "gcs_server", "raylet": "raylet", "dashboard": "ray-dashboard"}

# What the median of the last third may lie above that of the first: MiB, files, processes.
MARGINS = {"driver_mib": 100, "gcs_mib": 150, "raylet_mib": 100, "dashboard_mib": 150, "processes": 2, "groups": 1}


def ask(dashboard: str, what: str) -> list[dict[str, Any]]:
    """A list out of Ray's state API."""
    token = Path.home() / ".ray" / "auth_token"
    request = urllib.request.Request(f"{dashboard}/api/v0/{what}?limit=10000&detail=1")
    if token.exists():
        request.add_header("Authorization", f"Bearer {token.read_text().strip()}")
    with urllib.request.urlopen(request, timeout=30) as answer:
        found: list[dict[str, Any]] = json.load(answer)["data"]["result"]["result"]
    return found


def sample(sweep: Sweep, dashboard: str, store: Path) -> dict[str, float]:
    processes = sweep.processes()
    taken: dict[str, float] = {"cells": len(list((store / "cells").glob("*.parquet"))), "processes": len(processes)}
    for process in processes:
        try:
            command = process.name() + " " + " ".join(process.cmdline())[:60]
            for name, marker in WATCHED.items():
                if (process.pid == sweep.process.pid) if name == "driver" else (marker in command.split("--")[0]):
                    taken[f"{name}_mib"] = process.memory_info().rss / 2**20
                    taken[f"{name}_files"] = process.num_fds()
        except psutil.NoSuchProcess:
            continue
    taken["actors"] = sum(actor["state"] == "ALIVE" for actor in ask(dashboard, "actors"))
    taken["groups"] = sum(group["state"] != "REMOVED" for group in ask(dashboard, "placement_groups"))
    return taken


@pytest.mark.soak
def test_hundreds_of_cells_leave_nothing_behind(tmp_path: Path, corpus: TokenizedCorpus) -> None:
    file, store, log = tmp_path / "soak.yaml", tmp_path / "store", tmp_path / "log"
    file.write_text(yaml.safe_dump(SPACE))
    shared_before = set(os.listdir("/dev/shm"))
    samples: list[dict[str, float]] = []
    begun = time.monotonic()
    sweep = Sweep(file, store, log)
    try:
        while sweep.process.poll() is None:
            time.sleep(SAMPLE_EVERY)
            found = re.search(r"^dashboard (http\S+)", log.read_text(), re.MULTILINE)
            if found is None or sweep.process.poll() is not None:
                continue
            try:
                samples.append(sample(sweep, found[1], store))
            except OSError:
                continue  # It ends just now.
            if len(samples) % 15 == 1:
                print(f"{time.monotonic() - begun:.0f} s", json.dumps(samples[-1]), flush=True)
        left = [process for process in sweep.processes() if process.pid != sweep.process.pid]
        psutil.wait_procs(left, timeout=20)
        left = [process.name() for process in left if process.is_running() and process.status() != "zombie"]
    finally:
        sweep.sweep_up()
    assert sweep.process.returncode == 0, log.read_text()[-3000:]
    assert len(list((store / "cells").glob("*.parquet"))) == CELLS
    third = len(samples) // 3
    report = {}
    for name in sorted({name for taken in samples for name in taken} - {"cells"}):
        first, last = (
            statistics.median(taken[name] for taken in part if name in taken)
            for part in (samples[1:third], samples[-third:])
        )
        report[name] = {"first third": round(first, 1), "last third": round(last, 1)}
    files = sum(len(names) for _, _, names in os.walk(store))
    print(
        json.dumps({"cells": CELLS, "seconds": round(time.monotonic() - begun), "files in the store": files} | report)
    )
    for name, grown in report.items():
        margin = MARGINS.get(name, 5)
        if name.endswith("_files"):
            margin = 20
        assert grown["last third"] - grown["first third"] <= margin, f"{name} grows: {grown}"
    assert left == []
    assert set(os.listdir("/dev/shm")) <= shared_before
