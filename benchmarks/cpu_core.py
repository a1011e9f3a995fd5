"""What training takes of a CPU core: the constants of `raysweep/sweep/cost.py`, by the cells that were trained on one.

    python -m benchmarks.cpu_core results/mini results/mini-2 ...

reads published results. It fits seconds = a x steps + b x bytes + c x FLOP to every cell that was trained on one core from
its beginning to its end in one go: a, b and c at least 0, with the smallest sum of absolute relative errors. Both cores of
the machine trained most of the time.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from scipy.optimize import linprog

from raysweep.exchange.published import read_published
from raysweep.space.cell import Cell
from raysweep.store.store import TRAIN
from raysweep.sweep.cost import CPU_CORE, DEVICES, Device, work

Trained = list[tuple[Cell, float]]
"""Cells, and the seconds that they took."""


def trained(folder: Path) -> Trained:
    """Those of one published study that count."""
    published = read_published(folder)
    train = published.space.resources.train
    if train.gpus or train.cpus * train.workers != 1:
        return []
    # One that diverged ended before its last step.
    done = {row["id"] for row in published.results.to_pylist() if row["status"] == "done"}
    seconds = {
        row["cell"]: row["seconds"]
        for row in published.timings.to_pylist()
        if row["stage"] == TRAIN and row["starts"] == 1 and row["cell"] in done
    }
    return [(cell, seconds[cell.id]) for cell in published.space.cells if cell.id in seconds]


def fitted(cells: Trained) -> Device:
    """The core's seconds for each step, byte and FLOP."""
    seconds = np.array([took for _, took in cells])
    of_cells = np.array([work(cell, float32=True) for cell, _ in cells]) / seconds[:, None]
    scale = of_cells.max(axis=0)
    count, terms = of_cells.shape
    # Of each cell the error above and below are variables, whose sum is minimized.
    found = linprog(
        np.r_[np.zeros(terms), np.ones(2 * count)],
        A_eq=np.hstack([of_cells / scale, np.eye(count), -np.eye(count)]),
        b_eq=np.ones(count),
    ).x[:terms]
    step, byte, flop = (found / scale).tolist()
    return Device(DEVICES[CPU_CORE].peak, byte, flop, "fitted", seconds_per_step=step, gpu=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    cells = [one for folder in parser.parse_args().folders for one in trained(folder)]
    device = fitted(cells)
    print(f"{len(cells)} cells")
    print(f"{device.seconds_per_step:.2g} s a step, {device.seconds_per_byte:.2g} s a byte", end=", ")
    print(f"{device.seconds_per_flop:.2g} s a FLOP")
    ratio = np.array([device.seconds(cell) / took for cell, took in cells])
    low, middle, high = np.quantile(ratio, [0.05, 0.5, 0.95])
    print(f"estimated over taken: median {middle:.2f}, nine of ten cells {low:.2f} to {high:.2f}")
    taken = sum(took for _, took in cells)
    print(f"all cells together: {sum(device.seconds(cell) for cell, _ in cells) / taken:.2f}")


if __name__ == "__main__":
    main()
