"""Token files, memory-mapped and read as one array."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Of one process; Linux allows 65,530 by default.
MOST_MAPS = 8192


class ConcatenatedMemmap:
    """The tokens of several files, one after another, sliced as one array; each file is mapped when it is first needed."""

    def __init__(self, files: list[tuple[Path, int]], dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        self._files = [path for path, _ in files]
        self._ends = np.cumsum([tokens for _, tokens in files])
        self._mapped: dict[int, NDArray[Any]] = {}

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, items: slice) -> NDArray[Any]:
        start, stop, step = items.indices(len(self))
        if step != 1:
            raise ValueError("tokens of several files are read in steps of one")
        pieces = []
        part = int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            before = int(self._ends[part - 1]) if part else 0
            end = min(stop, int(self._ends[part]))
            pieces.append(self._map(part)[start - before : end - before])
            start, part = end, part + 1
        return pieces[0] if len(pieces) == 1 else np.concatenate([*pieces, np.empty(0, self.dtype)])

    def _map(self, part: int) -> NDArray[Any]:
        mapped = self._mapped.get(part)
        if mapped is None:
            if len(self._mapped) >= MOST_MAPS:
                self._mapped.pop(next(iter(self._mapped)))
            mapped = self._mapped[part] = np.memmap(self._files[part], dtype=self.dtype, mode="r")
        return mapped
