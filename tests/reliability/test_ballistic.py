"""Sweeps that are killed, at random moments and in random places, until they are done: the tables come out the same.

`make test-ballistic`. A sweep with evaluations runs once undisturbed. Then it is run into fresh stores with something killed
by SIGKILL again and again: the driver, the process of a Tune trial, of Ray Train's controller, of a training worker, of an
evaluation, the raylet, the GCS, or everything at once; whenever the driver ends it is run again, until it says that it is
done. Every table must equal the undisturbed one to the last bit, and no row of a finished cell may have been written twice.
Moments and victims come from a seed; what they hit depends on the machine's speed.
"""

import json
import random
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import yaml
from reliability.sweeps import Sweep, contents
from tiny import make_cell

from raysweep.corpora.loader import TokenizedCorpus

KILLS = 40
SEED = 0
SPACE: dict[str, Any] = {
    "name": "ballistic",
    "base": make_cell(tokens=204_800).model_dump(exclude={"seed"}) | {"batch_size": 4},
    "cross": {"seed": [1, 2, 3, 4]},
    "evaluations": [
        {"task": "in_distribution", "sequences": 8},
        {"task": "finetune_math", "tokens": 65_536, "batch_size": 4, "sequences": 8},
    ],
    "resources": {"train": {"cpus": 1}, "evaluate": {"cpus": 1}},
}
# Victim -> how its process is named; the driver and everything are handled apart.
VICTIMS = {
    "trial": "ray::ImplicitFunc",
    "controller": "ray::TrainController",
    "worker": "ray::RayTrainWorker",
    "evaluation": "ray::evaluate_cell",
    "raylet": "/raylet/raylet",
    "gcs": "/gcs/gcs_server",
}
# A driver that has lost its cluster must give up by itself.
PATIENCE = 300.0


def shoot(sweep: Sweep, rng: random.Random) -> str | None:
    """Kill one thing at random; what it was, or None where nothing of the kind was there."""
    victim = rng.choice(["driver", "everything", *VICTIMS, "worker", "evaluation", "trial"])
    if victim == "driver":
        sweep.processes()
        sweep.process.kill()
        return victim
    if victim == "everything":
        for process in sweep.processes():
            process.kill()
        return victim
    there = sweep.find(VICTIMS[victim])
    if not there:
        return None
    try:
        rng.choice(there).kill()
    except psutil.NoSuchProcess:
        return None
    return victim


@pytest.mark.ballistic
def test_whatever_is_killed_the_tables_are_the_same(tmp_path: Path, corpus: TokenizedCorpus) -> None:
    file, rng = tmp_path / "ballistic.yaml", random.Random(SEED)
    file.write_text(yaml.safe_dump(SPACE))
    calm = Sweep(file, tmp_path / "calm", tmp_path / "calm.log")
    assert calm.process.wait(600) == 0, (tmp_path / "calm.log").read_text()
    calm.sweep_up()
    expected = contents(tmp_path / "calm")
    assert len(expected) == 4 * 4

    kills: Counter[str] = Counter()
    restarts = sweeps = starts = 0
    begun = time.monotonic()
    while kills.total() < KILLS:
        sweeps += 1
        store, log = tmp_path / f"store{sweeps}", tmp_path / f"log{sweeps}"
        first_written: dict[str, int] = {}
        while True:
            sweep = Sweep(file, store, log)
            try:
                next_shot = time.monotonic() + rng.uniform(3, 30)
                deadline = time.monotonic() + 900
                while sweep.process.poll() is None:
                    assert time.monotonic() < deadline, f"hangs: {log.read_text()[-3000:]}"
                    if time.monotonic() > next_shot and kills.total() < KILLS:
                        victim = shoot(sweep, rng)
                        if victim is not None:
                            kills[victim] += 1
                            print(f"{time.monotonic() - begun:.0f} s: {kills.total()} {victim}", flush=True)
                            deadline = time.monotonic() + PATIENCE
                        next_shot = time.monotonic() + rng.uniform(2, 15)
                    sweep.processes()
                    for path in sorted((store / "cells").glob("*.parquet")) if store.exists() else []:
                        changed = path.stat().st_mtime_ns
                        assert first_written.setdefault(path.name, changed) == changed, f"{path.name} was trained again"
                    time.sleep(0.2)
            finally:
                status = sweep.process.poll()
                sweep.sweep_up()
            printed = log.read_text()
            assert "Traceback" not in printed, printed[-5000:]
            if status == 0:
                break
            restarts += 1
        found = contents(store)
        assert found == expected
        starts += sum(
            pq.read_table(path)["starts"].to_pylist()[0] for path in (store / "timings" / "train").glob("*.parquet")
        )
        shutil.rmtree(store)
    report = {
        "kills": kills,
        "sweeps": sweeps,
        "restarts of the driver": restarts,
        "cells": 4 * sweeps,
        "starts of their training": starts,
        "seconds": round(time.monotonic() - begun),
    }
    print(json.dumps(report))
