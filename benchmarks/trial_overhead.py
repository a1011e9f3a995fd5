"""What a trial that trains nothing costs: raysweep's whole path against stock Ray Tune around Ray Train.

Each contestant is a process of its own with a local cluster of its own, and runs its trials one at a time. The cost of a
trial is the time from the end of the one before it to its own end, so that starting the cluster is in neither; the first
trial, which has nothing to hand, is left out. raysweep's trial takes one optimizer step of a model of width 8, two
reports with geometry and two checkpoints, and writes its tables; the stock trial reports once and does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness import Result, arguments, show

OURS, STOCK = "raysweep", "stock Tune + Train"


def ours(trials: int, at_once: int, folder: Path) -> list[float]:
    """Times at which the trials' rows were complete."""
    from raysweep.space.read import load
    from raysweep.sweep.runner import run

    document = {
        "name": "trivial",
        "base": {
            "size": {"width": 8}, "corpus": {"name": "installed", "tokenizer": "bpe", "vocabulary": 512, "fraction": 0.02},
            "tokens": 128, "batch_size": 4, "sequence_length": 32, "validation_sequences": 4,
        },
        "cross": {"seed": list(range(1, trials + 1))},
        "resources": {"train": {"cpus": max(1, (os.cpu_count() or 1) // at_once)}},
    }  # fmt: skip
    file = folder / "trivial.yaml"
    file.write_text(json.dumps(document))
    store = folder / "store"
    if not run(load(file), store).complete:
        raise RuntimeError("the sweep failed")
    return sorted(row.stat().st_mtime for row in (store / "cells").glob("*.parquet"))


def stock(trials: int, at_once: int, folder: Path) -> list[float]:
    """Times at which the trials' functions were done."""
    import ray
    import ray.train
    from ray import tune
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    ends = folder / "ends"

    def nothing(config: dict[str, object]) -> None:
        ray.train.report({"loss": 0.0})

    def trial(config: dict[str, int]) -> None:
        TorchTrainer(
            nothing,
            scaling_config=ray.train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
            run_config=ray.train.RunConfig(
                name=f"trial-{config['seed']}", storage_path=str(folder), callbacks=[TuneReportCallback()]
            ),
        ).fit()
        with ends.open("a") as file:
            file.write(f"{time.time()}\n")

    ray.init()
    tune.Tuner(
        tune.with_resources(trial, {"CPU": 0.01}),
        param_space={"seed": tune.grid_search(list(range(trials)))},
        tune_config=tune.TuneConfig(max_concurrent_trials=at_once),
        run_config=tune.RunConfig(name="tune", storage_path=str(folder), verbose=0),
    ).fit()
    ray.shutdown()
    return sorted(float(line) for line in ends.read_text().splitlines())


def costs(contestant: str, trials: int, at_once: int) -> list[float]:
    """Seconds of wall-clock of every trial but the first ones, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.trial_overhead", "--only", contestant]
    command += ["--trials", str(trials), "--at-once", str(at_once)]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([*command, "--folder", folder], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    ends = json.loads(done.stdout.splitlines()[-1])
    return [(later - earlier) / at_once for earlier, later in zip(ends, ends[at_once:], strict=False)]


def main() -> None:
    parser = arguments(__doc__, rounds=6)
    parser.add_argument("--at-once", type=int, default=1, help="trials at a time (default 1)")
    parser.add_argument("--trials", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--only", choices=[OURS, STOCK], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder:
        run = ours if options.only == OURS else stock
        print(json.dumps(run(options.trials, options.at_once, options.folder)))
        return
    names = [options.only] if options.only else [OURS, STOCK]
    # Half of the trials of each contestant first, then the other half, so that both see the same machine.
    half = options.rounds // 2 + options.at_once
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for name in names + names:
        seconds[name] += costs(name, half, options.at_once)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    results = []
    if len(names) == 2:
        each = sorted(t / median[OURS] for t in seconds[STOCK])
        results = [Result("a trial", OURS, STOCK, statistics.median(each), each[0], each[-1], "x time of a trial")]
    detail = {name: [round(value, 2) for value in values] for name, values in seconds.items()}
    show(results, options.json, seconds_of_a_trial=detail, medians={k: round(v, 2) for k, v in median.items()})


if __name__ == "__main__":
    main()
