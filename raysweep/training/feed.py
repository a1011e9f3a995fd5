"""The batches of a run on a GPU, read ahead: while a step computes, a thread reads the next text into pinned memory."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch

Read = Callable[[int], npt.NDArray[np.int64]]


class Feed:
    """`feed(step)` gives the token ids of a step, (sequences, length + 1) of int64 on the device.

    `read(step)` reads them; it is called in one thread, a step ahead. What it raises is raised by the step that asks for
    it. Token ids travel as int32, half of the bytes. `ahead` is for GPUs, by default: on a CPU nothing travels, and reading
    ahead would only take a core.
    """

    def __init__(self, read: Read, device: torch.device, ahead: bool | None = None) -> None:
        self._read = read
        self._device = device
        ahead = device.type == "cuda" if ahead is None else ahead
        self._thread = ThreadPoolExecutor(1, "raysweep-feed") if ahead else None
        self._ahead: tuple[int, Future[torch.Tensor]] | None = None

    def __call__(self, step: int) -> torch.Tensor:
        if self._thread is None:
            return torch.from_numpy(self._read(step))
        asked, coming = self._ahead or (None, None)
        if coming is None or asked != step:
            coming = self._thread.submit(self._pinned, step)
        self._ahead = (step + 1, self._thread.submit(self._pinned, step + 1))
        # Memory that was pinned by PyTorch is not used again before the copy out of it is done.
        return coming.result().to(self._device, non_blocking=True).long()

    def _pinned(self, step: int) -> torch.Tensor:
        ids = torch.from_numpy(self._read(step).astype(np.int32))
        return ids.pin_memory() if torch.cuda.is_available() else ids
