"""How long training stands still for a checkpoint: against writing it before going on, and `torch.save`.

Weights and AdamW's moments of a model, on a GPU where there is one. raysweep copies them and has a thread write the copy
(`raysweep.training.resume`); only the copy counts here. The peers write to a folder of this machine, and not to a bucket,
which takes longer; `torch.save` is without hashes.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.harness import arguments, in_turn, ratios, show
from raysweep.space.size import DEPTH, SIZES
from raysweep.store import Store
from raysweep.training import checkpoint

COPY, WAIT, TORCH = "raysweep", "written before going on", "torch.save"
VOCABULARY = 50_304


def of_size(width: int, depth: int, device: str) -> checkpoint.Checkpoint:
    """A checkpoint of as many numbers as a model has."""
    shapes = {"wte": (VOCABULARY, width), "ff_out": (VOCABULARY, width)}
    shapes |= {f"block{i}": (12, width, width) for i in range(depth)}
    model = {name: torch.randn(shape, device=device) for name, shape in shapes.items()}
    moments = {f"{name}:{key}": torch.randn_like(t) for name, t in model.items() for key in ("exp_avg", "exp_avg_sq")}
    return checkpoint.Checkpoint(checkpoint.TrainState("cell", "fingerprint"), model, moments)


def main() -> int:
    options = arguments(__doc__ or "", rounds=5).parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    results = []
    megabytes = {}
    for size in ("4M", "75M"):
        made = of_size(SIZES[size], DEPTH, device)
        tensors = [*made.model.values(), *made.optimizer.values()]
        megabytes[size] = round(sum(t.numel() * t.element_size() for t in tensors) / 1e6)
        with tempfile.TemporaryDirectory() as folder:
            store = Store(folder)

            def wait(made: checkpoint.Checkpoint = made, store: Store = store) -> None:
                checkpoint.append(made, store, "train/x", [], keep=1)

            def by_torch(made: checkpoint.Checkpoint = made, file: Path = Path(folder) / "torch") -> None:
                torch.save({"model": made.model, "optimizer": made.optimizer}, file)

            def copy(made: checkpoint.Checkpoint = made) -> None:
                checkpoint.copied(made)

            contestants: dict[str, Callable[[], object]] = {COPY: copy, WAIT: wait, TORCH: by_torch}
            costs = in_turn(contestants, options.rounds)
        results += ratios(size, COPY, costs, "times as fast")
    show(results, options.json, megabytes=megabytes, device=device)
    return 0


if __name__ == "__main__":
    sys.exit(main())
