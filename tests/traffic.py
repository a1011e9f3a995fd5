"""The bytes that operations move, counted on tensors without data, with the loss as a GPU computes it."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from raysweep.model import loss


class Traffic(TorchDispatchMode):
    """Bytes that operations read and write; of `elements` only those of tensors with so many."""

    def __init__(self, elements: int | None = None) -> None:
        super().__init__()
        self.elements, self.bytes = elements, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        if function.namespace == "aten" and not function.is_view:
            tensors = [v for v in tree_leaves((args, kwargs, out)) if isinstance(v, torch.Tensor)]
            counted = [v for v in tensors if self.elements in (None, v.numel())]
            self.bytes += sum(v.numel() * v.element_size() for v in counted)
        return out


def as_on_a_gpu(traffic: Traffic, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the loss go a GPU's way on a CPU; what is compiled there counts as two reads and a write of the logits."""

    def one_kernel(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, ...]:
        assert logits.dtype == torch.bfloat16
        traffic.bytes += 3 * logits.numel() * logits.element_size()
        return logits, *torch.empty(3, len(logits))

    monkeypatch.setattr(loss, "_compiled", lambda: one_kernel)
    monkeypatch.setattr(loss, "_on_gpu", lambda tensor: True)
    monkeypatch.setitem(loss.CHUNK, "cpu", loss.CHUNK["cuda"])
