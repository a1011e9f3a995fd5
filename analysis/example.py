"""A simulated sweep of the paper's 108 cells, as a store like any other: `python -m raysweep.analysis.example DIR`.

Nothing is trained; every number is drawn from the formulas below, which follow what the paper reports. It shows what a
full report looks like, and gives tests a sweep whose truth is known.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from raysweep.space import read as spaces
from raysweep.space.cell import Cell
from raysweep.space.space import Space
from raysweep.store import Store
from raysweep.store.schemas import CELLS, EVALUATIONS, PLAN, TIMINGS, TRAJECTORIES
from raysweep.store.store import TRAIN

SIMULATED = "simulated"
"""Stands in the simulated cells' rows for the corpus's fingerprint and the versions."""

LAW = {"E": 1.7, "A": 250.0, "B": 600.0, "alpha": 0.34, "beta": 0.28}
"""The planted scaling law of the in-distribution loss at the base settings."""

_NOISE = 0.01
"""Standard deviation of the log loss between seeds."""


def space() -> Space:
    """The paper's search space under the name `simulated`."""
    return _load(_space_text())


def write(folder: Path, seed: int = 0) -> Space:
    """Write `simulated.yaml` and the store `store` into a folder; the space is returned."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "simulated.yaml").write_text(_space_text())
    simulated = space()
    fill(Store(str(folder / "store")), simulated, seed)
    return simulated


def fill(store: Store, simulated: Space, seed: int = 0) -> None:
    """Write simulated results of every cell of a search space to a store."""
    rng = np.random.default_rng(seed)
    store.write_table("plan.parquet", [cell.describe() for cell in simulated.cells], PLAN)
    for cell in simulated.cells:
        _write_cell(store, simulated, cell, simulate(cell, rng), rng)


def simulate(cell: Cell, rng: np.random.Generator) -> dict[str, float]:
    """Every metric and loss of a cell, by column of `raysweep results`."""
    N, D = cell.shape.parameters, cell.tokens
    size = math.log(N / 16.8e6) / math.log(4.6)  # -1 for the smallest, 1 for the largest
    batch = math.log2(cell.batch_size / 128)  # -2 ... 2
    decay = math.log10(cell.weight_decay / 0.1)  # -1 ... 0.7
    rate = math.log10(cell.learning_rate_factor)  # -1, 0, 1
    final = cell.final_learning_rate_fraction / 0.1  # 0 ... 1
    budget = math.log2(D / 32e9)  # -2 ... 2

    def noise(scale: float) -> float:
        return float(scale * rng.standard_normal())

    law = LAW["E"] + LAW["A"] / N ** LAW["alpha"] + LAW["B"] / D ** LAW["beta"]
    # More steps at the same tokens help until the batch is too small: a U in the batch size.
    tuning = 0.008 * (batch + 0.5 - 0.25 * budget) ** 2 + 0.03 * rate**2 + 0.03 * (final - 1) + 0.025 * decay * -size
    loss = law * math.exp(tuning + noise(_NOISE))

    rank = 0.52 + 0.075 * batch + 0.1 * decay + 0.04 * budget + 0.03 * (final - 1) + 0.05 * size + 0.01 * rate * size
    rank = _squash(rank + noise(0.02))
    cosine = 0.06 + 0.75 * (0.85 - rank) ** 2 + 0.02 * size - 0.03 * decay + noise(0.012)
    isotropy = _squash(0.5 - 0.22 * max(0.0, -decay) + 0.03 * decay + 0.006 * budget + noise(0.01))
    rank_H = _squash(0.78 - 0.06 * size + 0.01 * decay + noise(0.015))
    cosine_H = 0.12 - 0.03 * size - 0.02 * max(0.0, -decay) + noise(0.02)

    out = 0.35 + 1.05 * loss + noise(0.02)
    collapse = math.exp(-6 * (rank - 0.45)) * math.exp(-1.2 * size)
    row = {
        "train_loss": loss - 0.05 + noise(0.005),
        "validation_loss": loss + 0.02 + noise(0.005),
        "effective_rank_W": rank,
        "cosine_W": cosine,
        "isotropy_W": isotropy,
        "isotropy_symmetric_W": 0.7 * isotropy + noise(0.005),
        "spectral_norm_W": math.exp(3 - 1.5 * rank - 0.3 * decay + noise(0.05)),
        "in_distribution_loss": loss,
        "out_of_distribution_loss": out,
        "effective_rank_H": rank_H,
        "cosine_H": cosine_H,
    }
    for bits, damage in ((4, 0.02), (3, 0.15)):
        hurt = damage * (collapse * math.exp(noise(0.3)) + 0.3 * abs(noise(1.0)))
        for name, before in (("in_distribution_loss", loss), ("out_of_distribution_loss", out)):
            row[f"quantized_{bits}bit_{name}"] = before + hurt
            row[f"quantized_{bits}bit_{name}_change"] = hurt
    for subject, offset in (("python", -1.2), ("math", -0.4)):
        tuned = 2.9 + offset - 0.35 * size + 0.25 * (loss - law) + noise(0.04)
        after = 3.6 - 0.4 * size + 0.1 * (loss - law) + 0.1 * max(decay, -0.5) + noise(0.03)
        row |= {
            f"finetune_{subject}_loss_before": out - 0.3,
            f"finetune_{subject}_loss": tuned,
            f"finetune_{subject}_loss_change": tuned - out + 0.3,
            f"forgetting_{subject}_loss": after,
            f"forgetting_{subject}_loss_change": after - loss,
        }
    return row


def _squash(value: float) -> float:
    """Keep a ratio inside (0, 1)."""
    return min(max(value, 0.02), 0.98)


def _write_cell(store: Store, simulated: Space, cell: Cell, row: dict[str, float], rng: np.random.Generator) -> None:
    seconds = cell.flops / 2e14
    settings = cell.describe()
    versions = {"corpus_fingerprint": SIMULATED, "raysweep_version": SIMULATED, "torch_version": SIMULATED}
    finished = {"status": "done", "steps_trained": cell.steps, "tokens_trained": cell.steps * cell.tokens_per_step}
    results = {name: row[name] for name in CELLS.names if name in row}
    store.write_table(store.trajectory_file(cell.id), _trajectory(cell, row, rng), TRAJECTORIES)
    timing = {
        "cell": cell.id, "stage": TRAIN, "seconds": seconds, "tokens_per_second": cell.tokens / seconds, "starts": 1,
        "host": SIMULATED, "finished": None,
    }  # fmt: skip
    store.write_table(store.timing_file(cell.id, TRAIN), [timing], TIMINGS)
    store.write_table(store.cell_file(cell.id), [settings | finished | results | versions], CELLS)
    for evaluation in simulated.evaluations:
        settings_of = evaluation.model_dump()
        rows = [
            {"cell": cell.id, "task": evaluation.task, "settings": json.dumps(settings_of, sort_keys=True), "metric": metric,
             "value": row[metric], "unit": "nats per token" if "loss" in metric else ""}
            for metric in _metrics_of(evaluation.task, row)
        ]  # fmt: skip
        store.write_table(store.evaluation_file(cell.id, evaluation.task, settings_of), rows, EVALUATIONS)


def _metrics_of(task: str, row: dict[str, float]) -> list[str]:
    if task == "representation":
        return ["effective_rank_H", "cosine_H"]
    prefixes = (task, task.replace("finetune", "forgetting"))
    return [name for name in row if name.startswith(prefixes)]


def _trajectory(cell: Cell, row: dict[str, float], rng: np.random.Generator) -> list[dict[str, Any]]:
    """Losses that fall as a power of the step to the final one, and a rank that falls as fast as the batch is small."""
    steps = np.unique(np.geomspace(max(1, cell.steps / 1000), cell.steps, 24).astype(int))
    start = math.log(cell.corpus.vocabulary)
    rows = []
    for step in steps:
        done = float(step / cell.steps)
        left = (done**-0.25 - 1) / (1000**0.25 - 1)
        loss = row["validation_loss"] + (start - row["validation_loss"]) * left
        kept = {name: row[name] for name in TRAJECTORIES.names if name.endswith("_W")}
        kept["effective_rank_W"] = row["effective_rank_W"] + (0.95 - row["effective_rank_W"]) * (1 - done**0.3)
        kept["spectral_norm_W"] = row["spectral_norm_W"] * (0.2 + 0.8 * done**0.5)
        warm = min(1.0, done / cell.warmup_fraction) if cell.warmup_fraction else 1.0
        cosine = 0.5 * (1 + math.cos(math.pi * max(0.0, done - cell.warmup_fraction) / (1 - cell.warmup_fraction)))
        final = cell.final_learning_rate_fraction
        rows.append(
            {
                "cell": cell.id, "step": int(step), "tokens": int(step) * cell.tokens_per_step,
                "train_loss": loss - 0.05 + float(0.005 * rng.standard_normal()), "validation_loss": loss,
                "learning_rate": cell.peak_learning_rate * warm * (final + (1 - final) * cosine),
                "gradient_norm": 0.3 + left, **kept,
            }
        )  # fmt: skip
    return rows


def _space_text() -> str:
    paper = files("raysweep.space").joinpath("paper.yaml").read_text(encoding="utf-8")
    return paper.replace("name: paper", "name: simulated")


def _load(text: str) -> Space:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "simulated.yaml"
        path.write_text(text)
        return spaces.load(path)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m raysweep.analysis.example", description=__doc__.splitlines()[0])
    parser.add_argument("folder", metavar="DIR", type=Path)
    folder = parser.parse_args().folder
    simulated = write(folder)
    print(
        f"{len(simulated.cells)} simulated cells written to {folder}/store, their search space to {folder}/simulated.yaml"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
