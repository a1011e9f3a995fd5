"""What the data of a step costs: against a torch `DataLoader`, as a share of the step, and in memory.

Both read the same memory-mapped shard in a random order and give batches of token ids; the `DataLoader` shuffles by a
permutation of all sequences and collates samples in the process itself, as ours does. The share is of the steps of
`benchmarks.training_step`. Memory is the peak of what Python and numpy allocate, opening the shard included, for a
shard and for one sixteen times as large.
"""

from __future__ import annotations

import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.harness import arguments, in_turn, ratios, show
from benchmarks.training_step import CASES, Text, cell_of, ours
from raysweep.corpora.loader import Order, Sequences

OURS, TORCH = "raysweep", "torch DataLoader"
LENGTH, BATCH, BATCHES = 256, 16, 200
SMALL = 8_000_000  # tokens


class Samples(Dataset[torch.Tensor]):
    def __init__(self, file: Path) -> None:
        self.tokens = np.memmap(file, dtype=np.uint16, mode="r")

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // LENGTH

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self.tokens[index * LENGTH : (index + 1) * LENGTH + 1].astype(np.int64))


def our_batches(file: Path) -> Iterator[torch.Tensor]:
    sequences = Sequences(np.memmap(file, dtype=np.uint16, mode="r"), LENGTH)
    order = Order(len(sequences), LENGTH, "", 0)
    for step in range(BATCHES):
        yield torch.from_numpy(sequences.read(order.at(np.arange(step * BATCH, (step + 1) * BATCH))))


def torch_batches(file: Path) -> Iterator[torch.Tensor]:
    for _, batch in zip(range(BATCHES), DataLoader(Samples(file), batch_size=BATCH, shuffle=True), strict=False):
        yield batch


def peak_mib(batches: Any, file: Path) -> float:
    tracemalloc.start()
    for _ in batches(file):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return float(peak / 2**20)


def share_of_step(case: str, rounds: int) -> float:
    """The time that reading takes, over the time of the step that reads."""
    cell, steps = cell_of(case), CASES[case][-1]
    text = Text(cell.shape.vocabulary, 1000, cell.sequence_length)
    turn = ours(cell, text, steps)
    sequences = text.sequences("", cell.sequence_length)
    order = Order(len(sequences), cell.sequence_length, "", 0)

    def read() -> None:
        for step in range(steps):
            sequences.read(order.at(np.arange(step * cell.batch_size, (step + 1) * cell.batch_size)))

    turn()
    seconds = in_turn({"read": read, "step": turn}, rounds)
    return sorted(r / s for r, s in zip(seconds["read"], seconds["step"], strict=True))[rounds // 2]


def main() -> None:
    options = arguments(__doc__, rounds=5).parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for size in (SMALL, 16 * SMALL):
            files.append(Path(folder) / f"{size}.bin")
            np.random.default_rng(0).integers(0, 50_000, size, dtype=np.uint16).tofile(files[-1])
        seconds = in_turn(
            {OURS: lambda: list(our_batches(files[1])), TORCH: lambda: list(torch_batches(files[1]))}, options.rounds
        )
        memory = {
            name: [round(peak_mib(batches, file), 2) for file in files]
            for name, batches in ((OURS, our_batches), (TORCH, torch_batches))
        }
    show(
        ratios(f"{BATCHES} batches of {BATCH} x {LENGTH}", OURS, seconds, "x time"),
        options.json,
        share_of_the_step={case: round(share_of_step(case, options.rounds), 5) for case in ("width 32", "OLMo-4M")},
        peak_MiB_of_16_and_256_MB_shards=memory,
    )


if __name__ == "__main__":
    main()
