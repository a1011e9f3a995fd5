"""What planning, status, results and the survey before a run take at 10,000 cells.

A store is filled with the rows of trivial cells, each with a trajectory of 26 rows and six evaluations, and the commands are
run on it as processes of their own: once before anything was read, then again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.harness import machine
from raysweep.space import read as spaces
from raysweep.space.cell import Cell
from raysweep.space.space import Space
from raysweep.store import Store
from raysweep.store.schemas import CELLS, EVALUATIONS, TIMINGS, TRAJECTORIES
from raysweep.store.store import TRAIN

EVALUATE = ("in_distribution", "out_of_distribution", "representation", "quantized", "finetune_python", "finetune_math")


def space_file(folder: Path, cells: int) -> Path:
    document = {
        "name": "scale",
        "base": {
            "size": "4M", "corpus": {"name": "installed", "tokenizer": "bpe", "vocabulary": 4096}, "tokens": 10_000_000,
            "batch_size": 8, "sequence_length": 128,
        },
        "cross": {"seed": list(range(cells // 10)), "weight_decay": [k / 10 for k in range(10)]},
        "evaluations": [{"task": task} for task in EVALUATE],
    }  # fmt: skip
    file = folder / "scale.yaml"
    file.write_text(json.dumps(document))
    return file


def fill(store: Store, space: Space) -> None:
    """The tables of every cell, numbers made up."""

    def one(cell: Cell) -> None:
        row = {"cell": cell.id, "step": 0, "tokens": 0, "train_loss": 1.0, "validation_loss": 1.0, "learning_rate": 1.0}
        row |= {name: 0.5 for name in TRAJECTORIES.names if name.endswith("_W")}
        store.write_table(store.trajectory_file(cell.id), [row] * 26, TRAJECTORIES)
        done = cell.describe() | {
            key: value for key, value in row.items() if key in CELLS.names and key not in ("tokens",)
        }
        store.write_table(store.cell_file(cell.id), [done | {"status": "done", "steps_trained": cell.steps}], CELLS)
        timing = {"cell": cell.id, "stage": TRAIN, "seconds": 1.0, "starts": 1}
        store.write_table(store.timing_file(cell.id, TRAIN), [timing], TIMINGS)
        for evaluation in space.evaluations:
            metrics = [
                {
                    "cell": cell.id,
                    "task": evaluation.label,
                    "metric": f"{evaluation.label}_{k}",
                    "value": 1.0,
                    "unit": "",
                }
                for k in range(4)
            ]
            store.write_table(
                store.evaluation_file(cell.id, evaluation.label, evaluation.identity), metrics, EVALUATIONS
            )

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(one, space.cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")
    parser.add_argument("--cells", type=int, default=10_000, help="cells of the sweep (default 10,000)")
    options = parser.parse_args()
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        file, store = space_file(Path(folder), options.cells), str(Path(folder) / "store")

        def timed(name: str, *arguments: str) -> None:
            begun = time.perf_counter()
            done = subprocess.run([sys.executable, "-m", "raysweep.cli", *arguments], capture_output=True, text=True)
            seconds[name] = round(time.perf_counter() - begun, 2)
            if done.returncode:
                raise SystemExit(done.stderr)

        timed("plan", "plan", str(file), "--json")
        space = spaces.load(str(file))
        begun = time.perf_counter()
        fill(Store(store), space)
        seconds["filling the store"] = round(time.perf_counter() - begun, 2)
        timed("status, nothing read before", "status", str(file), "--store", store, "--json")
        timed(
            "results, training times not read before",
            "results",
            str(file),
            "--store",
            store,
            "--output",
            f"{folder}/r.parquet",
        )
        timed("status", "status", str(file), "--store", store, "--json")
        timed("results", "results", str(file), "--store", store, "--output", f"{folder}/results.parquet")
        files = sum(1 for path in Path(store).rglob("*.parquet"))
        size = sum(path.stat().st_size for path in Path(store).rglob("*.parquet"))
        # Nothing is left to do: what `run` takes to find that out.
        timed("run, all done", "run", str(file), "--store", store)
    answer: dict[str, Any] = {"cells": options.cells, "files": files, "MB": round(size / 1e6), "seconds": seconds}
    if options.json:
        print(json.dumps(answer | {"machine": machine()}, indent=1))
    else:
        print(json.dumps(answer))


if __name__ == "__main__":
    main()
