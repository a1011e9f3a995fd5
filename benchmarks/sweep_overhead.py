"""Wall-clock of whole sweeps over the work in them, and what that means for 108 cells.

The work is the sum of the seconds that the rows under `timings/` record, training and evaluations, over the cores: what a
sweep would take if nothing were ever started, scheduled or waited for. `demo` is search_spaces/demo.yaml; `longer` has six
cells of a few minutes. What is left comes to so many core-seconds a cell, start and end of the sweep included, from which
follows what cells of other lengths would come to: 1 + core-seconds of overhead / core-seconds of work, each of a cell.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import yaml

from benchmarks.harness import machine
from raysweep.corpora.build import open_corpus
from raysweep.space import read as spaces

DEMO = Path(__file__).parent.parent / "search_spaces" / "demo.yaml"
# Width 32 for eight times the demo's tokens, each cell with an evaluation.
LONGER: dict[str, Any] = {
    "name": "longer",
    "cross": {"size": [{"width": 32}], "seed": [1, 2, 3, 4, 5, 6]},
    "ablate": [],
    "evaluations": [{"task": "in_distribution", "sequences": 256}],
}


def measure(document: dict[str, Any], folder: Path) -> dict[str, float]:
    file, store = folder / f"{document['name']}.yaml", folder / document["name"]
    file.write_text(yaml.safe_dump(document))
    space = spaces.load(str(file))
    for corpus in {cell.corpus for cell in space.cells}:
        open_corpus(corpus)
    begun = time.perf_counter()
    command = [sys.executable, "-m", "raysweep.cli", "run", str(file), "--store", str(store)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    wall = time.perf_counter() - begun
    work = sum(ds.dataset(store / "timings", format="parquet").to_table()["seconds"].to_pylist())
    cores = os.cpu_count() or 1
    return {
        "cells": len(space.cells),
        "wall": round(wall, 1),
        "work": round(work, 1),
        "ratio": round(wall * cores / work, 3),
        "core-seconds of overhead per cell": round((wall * cores - work) / len(space.cells), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="the answer is JSON with and without")
    parser.add_argument("sweep", nargs="*", default=["demo", "longer"], help="demo or longer (default: both)")
    options = parser.parse_args()
    demo = yaml.safe_load(DEMO.read_text())
    longer = demo | LONGER
    longer["base"] = demo["base"] | {"tokens": 8 * demo["base"]["tokens"]}
    answer: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for document in (demo, longer):
            if document["name"] in options.sweep:
                answer[document["name"]] = measure(document, Path(folder))
    if "longer" in answer:
        overhead = answer["longer"]["core-seconds of overhead per cell"]
        answer["108 cells, by the overhead of the longer"] = {
            f"{minutes} core-minutes each": round(1 + overhead / (60 * minutes), 3) for minutes in (2, 3, 5, 10, 60)
        }
    print(json.dumps(answer | {"machine": machine()}, indent=1))


if __name__ == "__main__":
    main()
