"""An OLMo with its loss, as one module."""

from __future__ import annotations

import os
import socket
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from raysweep.errors import UserError
from raysweep.model import kernels
from raysweep.model.loss import unembedding_cross_entropy
from raysweep.store.sessions import processor


class LanguageModel(nn.Module):
    """An OLMo with its loss, as one module: what DDP wraps, so that the gradient of W is averaged too."""

    def __init__(self, olmo: nn.Module) -> None:
        super().__init__()
        self.olmo = olmo

    def hidden(self, inputs: torch.Tensor) -> torch.Tensor:
        """Final states after the last norm, (batch, length, d), of token ids (batch, length)."""
        if _by_kernels(self.olmo, inputs):
            return kernels.hidden(self.olmo, inputs)
        return self.olmo(inputs).logits  # type: ignore[no-any-return]

    def states(self, inputs: torch.Tensor) -> list[torch.Tensor]:
        """What `hidden` passes through, each (batch, length, d): after the embedding, each block, and the last norm."""
        if _by_kernels(self.olmo, inputs):
            return list(kernels.states(self.olmo, inputs))
        transformer: Any = self.olmo.transformer
        seen: list[torch.Tensor] = []
        hooks = [
            module.register_forward_hook(
                lambda module, given, out: seen.append(out[0] if isinstance(out, tuple) else out)
            )
            for module in (transformer.wte, *transformer.blocks, transformer.ln_f)
        ]
        try:
            self.olmo.forward(inputs)  # Not what was compiled, which knows no hooks.
        finally:
            for hook in hooks:
                hook.remove()
        return seen

    @property
    def unembedding(self) -> torch.Tensor:
        """W, (V, d)."""
        return self.olmo.transformer.ff_out.weight  # type: ignore[union-attr, return-value]

    def forward(self, sequences: torch.Tensor) -> torch.Tensor:
        """Mean next-token loss in nats of sequences (batch, length + 1)."""
        return unembedding_cross_entropy(self.hidden(sequences[:, :-1]), self.unembedding, sequences[:, 1:])


def gpu(share: float, asked_by: str) -> torch.device:
    """The GPU of this process, of which it may use `share`. `asked_by` is the setting that asked for it.

    Raises `UserError` where there is none: a number that was to come from a GPU is not quietly one of a CPU.
    """
    if not torch.cuda.is_available():
        build = "" if torch.version.cuda else " (built without CUDA)"
        raise UserError(
            f"{asked_by} is {share:g}, and PyTorch {torch.__version__}{build} finds no GPU on {socket.gethostname()}: "
            f"set {asked_by} to 0, or install a CUDA build of PyTorch and its driver there"
        )
    device = torch.device("cuda", torch.cuda.current_device())
    if share < 1:
        # Two that share a GPU must not take each other's memory.
        torch.cuda.set_per_process_memory_fraction(share, device)
    return device


def use_deterministic_operations() -> None:
    """From here on this process uses operations that give the same bits each time, or raises. Call it before any other."""
    # cuBLAS reads this when it starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # It would hide reads of memory that nobody wrote, at the price of writing all memory twice.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def computed_by(olmo: Any, device: torch.device) -> dict[str, str]:
    """What computes the numbers of a model on a device, under the columns of the store's timings."""
    return {
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "precision": "bfloat16 autocast" if device.type == "cuda" else "float32",
        "kernels": "raysweep" if _by_kernels(olmo, olmo.transformer.wte.weight) else "ai2-olmo",
        "compiled": "yes" if _compiled(olmo) else "no",
    }


def _compiled(olmo: Any) -> bool:
    return olmo._compiled_call_impl is not None


def _by_kernels(olmo: Any, inputs: torch.Tensor) -> bool:
    """Whether raysweep's own code computes the blocks, on the device of `inputs`."""
    return not _compiled(olmo) and kernels.supports(olmo, inputs)


def precision(device: torch.device) -> AbstractContextManager[Any]:
    """float32 on CPUs, bfloat16 autocast on GPUs."""
    return torch.autocast("cuda", dtype=torch.bfloat16) if device.type == "cuda" else nullcontext()
