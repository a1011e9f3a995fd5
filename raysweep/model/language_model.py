"""An OLMo with its loss, as one module."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from raysweep.model import kernels
from raysweep.model.loss import unembedding_cross_entropy


class LanguageModel(nn.Module):
    """An OLMo with its loss, as one module: what DDP wraps, so that the gradient of W is averaged too."""

    def __init__(self, olmo: nn.Module) -> None:
        super().__init__()
        self.olmo = olmo

    def hidden(self, inputs: torch.Tensor) -> torch.Tensor:
        """Final states after the last norm, (batch, length, d), of token ids (batch, length)."""
        if self.olmo._compiled_call_impl is None and kernels.supports(self.olmo, inputs):
            return kernels.hidden(self.olmo, inputs)
        return self.olmo(inputs).logits  # type: ignore[no-any-return]

    @property
    def unembedding(self) -> torch.Tensor:
        """W, (V, d)."""
        return self.olmo.transformer.ff_out.weight  # type: ignore[union-attr, return-value]

    def forward(self, sequences: torch.Tensor) -> torch.Tensor:
        """Mean next-token loss in nats of sequences (batch, length + 1)."""
        return unembedding_cross_entropy(self.hidden(sequences[:, :-1]), self.unembedding, sequences[:, 1:])


def precision(device: torch.device) -> AbstractContextManager[Any]:
    """float32 on CPUs, bfloat16 autocast on GPUs."""
    return torch.autocast("cuda", dtype=torch.bfloat16) if device.type == "cuda" else nullcontext()
