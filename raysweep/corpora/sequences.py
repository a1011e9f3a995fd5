"""The sequences of a run in a seeded order.

Sequence i of a shard at length L is its tokens i L ... i L + L, L inputs and the L targets after each of them. Which
sequence comes at position k of a run is a function of (fingerprint, L, seed, k) alone: epoch k // n, and in it a keyed
permutation of the n sequences, evaluated when needed and never stored. Each source of a weighted mixture is
a stream of its own, with its own epochs; the stream of position k follows from the weights and k. So a run
resumes at the exact sequence in any number of processes, with memory independent of the corpus.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Stream:
    """Sequences that follow one another: from the token `offset` on, and from the index `first` on."""

    offset: int
    first: int
    sequences: int
    weight: float


class Sequences:
    """Random access to the non-overlapping sequences of one shard.

    `mixture` has the (tokens, weight) of each stream in it; by default the shard is one stream. `in_order` says that its
    documents are in the order of their files; otherwise their order is random.
    """

    def __init__(
        self, tokens: Any, length: int, mixture: list[tuple[int, float]] | None = None, in_order: bool = False
    ) -> None:
        self.tokens = tokens
        self.length = length
        self._in_order = in_order
        self.streams: list[Stream] = []
        offset = first = 0
        for count, weight in mixture or [(len(tokens), 1.0)]:
            # The last sequence ends a token before the end, which is its last target.
            sequences = max(0, (count - 1) // length)
            self.streams.append(Stream(offset, first, sequences, weight))
            offset, first = offset + count, first + sequences
        self._count = first

    def __len__(self) -> int:
        return self._count

    def read(self, indices: NDArray[Any]) -> NDArray[Any]:
        """The sequences `indices` with the token after each, int64, shape (len(indices), length + 1)."""
        out = np.empty((len(indices), self.length + 1), dtype=np.int64)
        for row, index in enumerate(indices):
            stream = next(stream for stream in reversed(self.streams) if int(index) >= stream.first)
            start = stream.offset + (int(index) - stream.first) * self.length
            out[row] = self.tokens[start : start + self.length + 1]
        return out

    def sample(self, count: int) -> NDArray[Any]:
        """Indices of `count` sequences that stand for all of them (of all, where there are fewer), int64, ascending.

        The first ones; of a shard that is in the order of its files, some from all over it.
        """
        count = min(count, len(self))
        return np.arange(count) * len(self) // max(count, 1) if self._in_order else np.arange(count)

    def epochs(self, positions: int) -> float:
        """How often a run of so many positions reads them; of a mixture, the stream that is read most often."""
        weights = sum(stream.weight for stream in self.streams)
        return max(positions * stream.weight / weights / stream.sequences for stream in self.streams)

    def order(self, fingerprint: str, seed: int) -> Order:
        """Which of them comes at each position of a run."""
        return Order(self.streams, self.length, fingerprint, seed)


# Weights count in these: no product of one and of a position below 9e9 leaves 64 bits.
_WEIGHT_UNITS = 1_000_000_000


# Positions whose sequences are computed together.
_WINDOW = 1024


class Order:
    """Which sequence comes at each position of a run: each stream has a new permutation for every epoch.

    `seed` and `fingerprint` key the permutations; so does the sequence length, through n and by name. Positions are dealt
    out to the streams by their weights, evenly: of the first k a stream has its share of k, to within one for itself and
    for each stream before it.
    """

    def __init__(self, streams: list[Stream], length: int, fingerprint: str, seed: int) -> None:
        self.streams = streams
        self.key = f"{fingerprint}/{length}/{seed}"
        # A permutation costs as much for a few values as for a thousand, and positions are asked for one after another.
        self._window, self._indices = -1, np.empty(0, np.int64)

    def at(self, positions: NDArray[Any]) -> NDArray[Any]:
        """Indices of the sequences at `positions` (counted from the start of training), int64, same shape."""
        positions = np.asarray(positions, dtype=np.int64)
        out = np.empty_like(positions)
        windows = positions // _WINDOW
        for window in np.unique(windows):
            if window != self._window:
                self._window, self._indices = window, self._compute(np.arange(window * _WINDOW, (window + 1) * _WINDOW))
            in_window = windows == window
            out[in_window] = self._indices[positions[in_window] - window * _WINDOW]
        return out

    def _compute(self, positions: NDArray[Any]) -> NDArray[Any]:
        out = np.empty_like(positions)
        # The first stream takes its share of the positions, and those that follow share the rest.
        left = np.ones(positions.shape, dtype=bool)
        rest = positions.copy()
        weights = [stream.weight for stream in self.streams]
        for i, stream in enumerate(self.streams):
            share = round(_WEIGHT_UNITS * weights[i] / sum(weights[i:]))
            before = rest * share // _WEIGHT_UNITS
            mine = left & ((rest + 1) * share // _WEIGHT_UNITS > before)
            key = self.key if len(self.streams) == 1 else f"{self.key}/{i}"
            out[mine] = stream.first + self._permuted(before[mine], stream.sequences, key)
            left &= ~mine
            rest -= before
        return out

    def _permuted(self, positions: NDArray[Any], sequences: int, key: str) -> NDArray[Any]:
        out = np.empty_like(positions)
        epochs = positions // sequences
        for epoch in np.unique(epochs):
            in_epoch = epochs == epoch
            out[in_epoch] = permute(positions[in_epoch] % sequences, sequences, f"{key}/{epoch}")
        return out


_ROUNDS = 8


def permute(values: NDArray[Any], size: int, key: str) -> NDArray[Any]:
    """A pseudo-random permutation of range(size), evaluated at `values`, in constant memory.

    A Feistel network over the smallest even number of bits that holds `size`, walked along its cycles until the value
    falls below `size` (Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains"; the domain is at most 4 times as
    large, so about 4 walks at the worst). Round keys come from SHA-512 of `key`; the round function is splitmix64's
    finalizer.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half) - 1)
    shift = np.uint64(half)
    digest = hashlib.sha512(key.encode()).digest()
    keys = np.frombuffer(digest, dtype="<u8")[:_ROUNDS]

    out = np.asarray(values).astype(np.uint64)
    walking = np.ones(out.shape, dtype=bool)
    while walking.any():
        left, right = out[walking] >> shift, out[walking] & mask
        for round_key in keys:
            left, right = right, left ^ (_mix(right ^ round_key) & mask)
        out[walking] = (left << shift) | right
        walking = out >= np.uint64(size)
    return out.astype(np.int64)


def _mix(x: NDArray[Any]) -> NDArray[Any]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[Any] = x ^ (x >> np.uint64(31))
    return mixed
