"""Training documents that share a run of tokens with an evaluation document, found by hashed n-grams.

Every n-th n-gram of an evaluation document is kept, and every n-gram of a training document is looked up. So every run
of 2 n - 1 shared tokens is found, no run shorter than n counts, and the memory is one hash for every n tokens of
evaluation text. (GPT-3's and most later reports take n = 13: Brown et al. 2020, appendix C, there in words.)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BASE = np.uint64(0x9E3779B97F4A7C15)
# Bits of a hash that say where in the first, coarse table it is looked up: one bit each, 8 MiB in all.
_COARSE = np.uint64((1 << 26) - 1)


def hashes(tokens: NDArray[Any], n: int) -> NDArray[np.uint64]:
    """The hash of every run of `n` tokens, (len(tokens) - n + 1,): a polynomial modulo 2^64, and splitmix64's finalizer."""
    values = np.asarray(tokens).astype(np.uint64) + np.uint64(1)
    count = max(0, len(values) - n + 1)
    total = np.zeros(count, dtype=np.uint64)
    for i in range(n):
        total *= _BASE
        total += values[i : i + count]
    total = (total ^ (total >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    total = (total ^ (total >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(total ^ (total >> np.uint64(31)))


class Hashes:
    """Sorted hashes, among which many are looked up: a coarse table of bits tells nearly all others apart at once."""

    def __init__(self, values: NDArray[np.uint64]) -> None:
        """`values` are sorted, each once."""
        self.values = values
        self._bits = np.zeros((int(_COARSE) + 1) // 8, dtype=np.uint8)
        at = values & _COARSE
        np.bitwise_or.at(self._bits, at >> np.uint64(3), np.uint8(1) << (at & np.uint64(7)).astype(np.uint8))

    def __len__(self) -> int:
        return len(self.values)

    def places(self, looked_up: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Where in `values` those are that are there, in the order in which they are looked up."""
        at = looked_up & _COARSE
        likely = looked_up[(self._bits[at >> np.uint64(3)] >> (at & np.uint64(7)).astype(np.uint8)) & 1 == 1]
        if not len(likely):
            return np.empty(0, np.int64)
        places = np.minimum(np.searchsorted(self.values, likely), len(self.values) - 1)
        return np.asarray(places[self.values[places] == likely])


class Grams:
    """The n-grams of evaluation shards, given as (name, its token arrays, each document ended by `end`)."""

    def __init__(self, shards: Iterable[tuple[str, Iterable[NDArray[Any]]]], end: int, n: int) -> None:
        self.n = n
        self.names: list[str] = []
        hashes_by_shard, owners = [], []
        for name, arrays in shards:
            self.names.append(name)
            for tokens in arrays:
                every = hashes(tokens, n)
                kept = every[_starts(np.asarray(tokens), end, n)]
                hashes_by_shard.append(kept)
                owners.append(np.full(len(kept), len(self.names) - 1, dtype=np.uint32))
        together = np.concatenate([*hashes_by_shard, np.empty(0, np.uint64)])
        values, first = np.unique(together, return_index=True)
        self._hashes = Hashes(values)
        self._owners = np.concatenate([*owners, np.empty(0, np.uint32)])[first]

    def __len__(self) -> int:
        return len(self._hashes)

    def shared(self, tokens: NDArray[Any]) -> str | None:
        """The evaluation shard with which a document shares an n-gram, the first in the document; None without one."""
        hits = self._hashes.places(hashes(tokens, self.n))
        return self.names[self._owners[hits[0]]] if len(hits) else None


def _starts(tokens: NDArray[Any], end: int, n: int) -> NDArray[np.int64]:
    """Where every n-th n-gram of each document begins."""
    ends = np.flatnonzero(tokens == end)
    begins = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else np.empty(0, np.int64)
    starts = [np.arange(begin, stop - n + 1, n) for begin, stop in zip(begins, ends, strict=True)]
    return np.asarray(np.concatenate([*starts, np.empty(0, np.int64)]), dtype=np.int64)
