"""The loss of a model over held-out sequences, and how many of them fit in one forward pass."""

from __future__ import annotations

import torch

from raysweep.corpora.sequences import Sequences
from raysweep.model.language_model import LanguageModel
from raysweep.space.cell import Cell


def mean_loss(language_model: LanguageModel, sequences: Sequences, count: int, micro_batch_size: int) -> float:
    """Mean next-token loss in nats over a sample of `count` sequences (all of them where there are fewer)."""
    indices = sequences.sample(count)
    device = language_model.device
    total = torch.zeros((), dtype=torch.float64)
    with torch.no_grad(), language_model.autocast():
        for start in range(0, len(indices), micro_batch_size):
            tokens = torch.from_numpy(sequences.read(indices[start : start + micro_batch_size])).to(device)
            losses = language_model.token_losses(tokens[:, :-1], tokens[:, 1:])
            total += losses.sum(dtype=torch.float64).cpu()
    return float(total / (len(indices) * sequences.length))


def even_micro_batch(sequences: int, most: int) -> int:
    """The largest micro-batch of at most `most` sequences of which `sequences` are a whole number.

    Parts of one size are compiled once, and none is left over that would not fill a GPU.
    """
    return next(size for size in range(min(most, sequences), 0, -1) if sequences % size == 0)


def fitting_micro_batch(cell: Cell, device: torch.device, gpu_share: float = 1.0) -> int:
    """Sequences per forward pass whose activations fit: 1 GiB on a CPU, 40% of this cell's share of a GPU."""
    # Counted in units of the width per token and block; generous, since eager kernels keep copies.
    whole = device.type == "cpu" or cell.precision == "float32"
    per_token = cell.size.depth * cell.size.width * (18 + 3 * cell.mlp_ratio) * (4 if whole else 2)
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) < (8, 0):
            # No flash attention for bfloat16 there: each head keeps its scores.
            per_token += cell.size.depth * cell.size.heads * cell.sequence_length * 4
        budget = 0.4 * gpu_share * torch.cuda.get_device_properties(device).total_memory
        most_tokens = 2**17
    else:
        budget, most_tokens = 2.0**30, 2**13
    tokens = min(budget / per_token, most_tokens)
    return max(1, min(cell.batch_size, int(tokens // cell.sequence_length)))
