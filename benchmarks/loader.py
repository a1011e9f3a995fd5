"""What the data of a step costs: against a torch `DataLoader`, as a share of the step, and in memory.

Both read the same memory-mapped shard in a random order and give batches of token ids; the `DataLoader` shuffles by a
permutation of all sequences and collates samples in the process itself, as ours does. The share is of the steps of
`benchmarks.training_step`, read from a shard of a gigabyte in 64 files. Memory is the peak of what Python and numpy
allocate, opening the shard included, for a shard and for one sixteen times as large; and what two processes that have read
the whole gigabyte have each to themselves, beside what they map.
"""

from __future__ import annotations

import subprocess
import sys
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
from raysweep.corpora.memmap import ConcatenatedMemmap
from raysweep.corpora.sequences import Sequences

OURS, TORCH = "raysweep", "torch DataLoader"
LENGTH, BATCH, BATCHES = 256, 16, 200
SMALL = 8_000_000  # tokens
FILES, FILE = 64, 8_000_000  # of the gigabyte, in tokens

READER = """
import sys
import numpy as np, psutil
from benchmarks.loader import LENGTH, parts
from raysweep.corpora.sequences import Sequences
before = psutil.Process().memory_full_info()
sequences = Sequences(parts(sys.argv[1]), LENGTH)
for start in range(0, len(sequences) - 64, 64):
    sequences.read(np.arange(start, start + 64))
print("read", flush=True)
sys.stdin.readline()
after = psutil.Process().memory_full_info()
print((after.uss - before.uss) / 2**20, (after.rss - before.rss) / 2**20, flush=True)
sys.stdin.readline()
"""


class Samples(Dataset[torch.Tensor]):
    def __init__(self, file: Path) -> None:
        self.tokens = np.memmap(file, dtype=np.uint16, mode="r")

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // LENGTH

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self.tokens[index * LENGTH : (index + 1) * LENGTH + 1].astype(np.int64))


def our_batches(file: Path) -> Iterator[torch.Tensor]:
    sequences = Sequences(np.memmap(file, dtype=np.uint16, mode="r"), LENGTH)
    order = sequences.order("", 0)
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


def parts(folder: str) -> ConcatenatedMemmap:
    """The gigabyte, written first where it is not there."""
    files = [Path(folder) / f"{i:02}.bin" for i in range(FILES)]
    for i, file in enumerate(files):
        if not file.exists():
            np.random.default_rng(i).integers(0, 8_000, FILE, dtype=np.uint16).tofile(file)
    return ConcatenatedMemmap([(file, FILE) for file in files], np.dtype("<u2"))


def two_readers(folder: str) -> list[dict[str, float]]:
    """MiB that each of two processes has alone, and maps, once both have read everything."""
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", READER, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    for reader in readers:
        assert reader.stdout
        assert reader.stdout.readline() == "read\n"
    found = []
    for reader in readers:
        assert reader.stdin
        assert reader.stdout
        reader.stdin.write("\n")
        reader.stdin.flush()
        private, mapped = reader.stdout.readline().split()
        found.append({"private": round(float(private), 2), "resident": round(float(mapped), 1)})
    for reader in readers:
        reader.communicate("\n")
    return found


def share_of_step(case: str, rounds: int, folder: str) -> float:
    """The time that reading takes, over the time of the step that reads."""
    cell, steps = cell_of(case), CASES[case][-1]
    text = Text(cell.shape.vocabulary, 1000, cell.sequence_length)
    turn = ours(cell, text, steps)
    sequences = Sequences(parts(folder), cell.sequence_length)
    order = sequences.order("", 0)

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
        large = Path(folder) / "gigabyte"
        large.mkdir()
        share = {case: round(share_of_step(case, options.rounds, str(large)), 5) for case in ("width 32", "OLMo-4M")}
        readers = two_readers(str(large))
    show(
        ratios(f"{BATCHES} batches of {BATCH} x {LENGTH}", OURS, seconds, "x time"),
        options.json,
        share_of_the_step_from_1_GB=share,
        peak_MiB_of_16_and_256_MB_shards=memory,
        MiB_of_two_readers_of_1_GB=readers,
    )


if __name__ == "__main__":
    main()
