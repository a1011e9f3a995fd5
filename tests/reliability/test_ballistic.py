"""Sweeps that are killed and frozen, at random moments and in random places, until they are done: the tables are the same.

`make test-ballistic`, of 40 shots, or as many as the variable SHOTS says. A sweep with evaluations runs undisturbed. Then
it is run into fresh stores with something killed by SIGKILL, or stopped by SIGSTOP for half a minute, again and again: the
driver, the process of a Tune trial, of Ray Train's controller, of a training worker, of an evaluation, the raylet, the GCS,
two of them at once, or everything; whenever the driver ends it is run again, until it says that it is done. Every table must
equal the undisturbed one to the last bit, and no row of a finished cell may have been written twice.
Moments and victims come from a seed; what they hit depends on the machine's speed.
"""

import itertools
import json
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import yaml
from reliability.sweeps import Sweep, contents
from tiny import make_cell

from raysweep.corpora.tokenized import TokenizedCorpus

SHOTS = int(os.environ.get("SHOTS", "40"))
SEED = 0
FROZEN = 30.0
"""Seconds."""
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


# For so many seconds a victim that is not there is waited for, since evaluations are short.
HUNT = 40.0


@dataclass(frozen=True)
class Shot:
    """What is to be hit, and how."""

    victims: tuple[str, ...]
    freeze: bool

    def __str__(self) -> str:
        return f"{' and '.join(self.victims)}{' frozen' if self.freeze else ''}"


def choose(rng: random.Random) -> Shot:
    kinds = ["driver", "everything", *VICTIMS, "worker", "evaluation", "trial"]
    return Shot(
        tuple(rng.sample(sorted(set(kinds)), 2)) if rng.random() < 0.25 else (rng.choice(kinds),), rng.random() < 0.3
    )


class Thaw:
    """Processes that were stopped, and when each goes on."""

    def __init__(self) -> None:
        self.stopped: list[tuple[float, psutil.Process]] = []

    def stop(self, process: psutil.Process) -> None:
        process.suspend()
        self.stopped.append((time.monotonic() + FROZEN, process))

    def due(self) -> None:
        """Let those go on whose time has come."""
        for moment, process in list(self.stopped):
            if time.monotonic() >= moment:
                self.stopped.remove((moment, process))
                with suppress(psutil.NoSuchProcess):
                    process.resume()


def shoot(sweep: Sweep, rng: random.Random, shot: Shot, thaw: Thaw) -> bool:
    """Hit one thing of each kind; whether there was one of any."""
    how = thaw.stop if shot.freeze else psutil.Process.kill
    hits = [_hit(sweep, rng, victim, how) for victim in shot.victims]
    return any(hits)


def _hit(sweep: Sweep, rng: random.Random, victim: str, how: Callable[[psutil.Process], None]) -> bool:
    if victim == "driver":
        there = sweep.processes()[:1]
    elif victim == "everything":
        there = sweep.processes()
    else:
        there = sweep.find(VICTIMS[victim])
        there = [rng.choice(there)] if there else []
    for process in there:
        try:
            how(process)
        except psutil.NoSuchProcess:
            if victim != "everything":
                return False
    return bool(there)


@pytest.mark.ballistic
def test_whatever_is_killed_the_tables_are_the_same(tmp_path: Path, corpus: TokenizedCorpus) -> None:
    file, rng = tmp_path / "ballistic.yaml", random.Random(SEED)
    file.write_text(yaml.safe_dump(SPACE))
    calm = Sweep(file, tmp_path / "calm", tmp_path / "calm.log")
    assert calm.process.wait(600) == 0, (tmp_path / "calm.log").read_text()
    calm.sweep_up()
    expected = contents(tmp_path / "calm")
    assert len(expected) == 4 * 5

    shots: Counter[str] = Counter()
    restarts = sweeps = starts = trained = wasted = 0
    begun = time.monotonic()
    while shots.total() < SHOTS:
        sweeps += 1
        store, log = tmp_path / f"store{sweeps}", tmp_path / f"log{sweeps}"
        first_written: dict[str, int] = {}
        while True:
            sweep, thaw = Sweep(file, store, log), Thaw()
            try:
                next_shot, shot = time.monotonic() + rng.uniform(3, 30), choose(rng)
                deadline = time.monotonic() + 900
                while sweep.process.poll() is None:
                    assert time.monotonic() < deadline, f"hangs: {log.read_text()[-3000:]}"
                    thaw.due()
                    if time.monotonic() > next_shot and shots.total() < SHOTS:
                        hit = shoot(sweep, rng, shot, thaw)
                        if hit:
                            shots[str(shot)] += 1
                            print(f"{time.monotonic() - begun:.0f} s: {shots.total()} {shot}", flush=True)
                            deadline = time.monotonic() + PATIENCE
                        if hit or time.monotonic() > next_shot + HUNT:
                            next_shot, shot = time.monotonic() + rng.uniform(2, 15), choose(rng)
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
        for path in (store / "timings" / "train").glob("*.parquet"):
            began = pq.read_table(path)["starts"].to_pylist()[0]
            reports = pq.read_table(store / "trajectories" / path.name)["step"].to_pylist()
            starts += began
            trained += reports[-1]
            # Each time it was begun again it had come no further than the next report after the last.
            wasted += (began - 1) * max(b - a for a, b in itertools.pairwise(reports))
        shutil.rmtree(store)
    report = {
        "shots": shots,
        "sweeps": sweeps,
        "restarts of the driver": restarts,
        "cells": 4 * sweeps,
        "starts of their training": starts,
        "steps that count": trained,
        "steps taken in vain, at most": wasted,
        "seconds": round(time.monotonic() - begun),
    }
    print(json.dumps(report))
