"""A built corpus, read: memory-mapped shards, and the sequences of a run in a seeded order.

Sequence i of a shard at length L is its tokens i L ... i L + L, L inputs and the L targets after each of them. Which
sequence comes at position k of a run is a function of (fingerprint, L, seed, k) alone: epoch k // n, and in it a keyed
permutation of the n sequences that is evaluated where it is needed and never stored. So a run continues anywhere, in any
number of processes, at the exact sequence, with memory independent of the corpus.
"""

from __future__ import annotations

import hashlib
import json
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysweep.corpora import Corpus
from raysweep.corpora.build import build, checksum, fingerprint
from raysweep.errors import UserError


class TokenizedCorpus:
    """The shards of a built corpus.

    Opening it checks every shard against its checksum and raises `UserError` naming the file that is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / "manifest.json"
        try:
            self.manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            self.fingerprint: str = self.manifest["fingerprint"]
            # Corpora of earlier versions have no checksum of the whole manifest.
            intact = self.manifest.get("sha256", checksum(self.manifest)) == checksum(self.manifest)
            intact = intact and fingerprint(self.manifest) == self.fingerprint
            # A name is a path in the corpus's own folder.
            intact = intact and all(
                re.fullmatch(r"\w[\w.+#-]*(/\w[\w.+#-]*)*", name) for name in self.manifest["shards"]
            )
        except (OSError, ValueError, KeyError, TypeError):
            intact = False
        if not intact:
            raise self._damaged(path)
        self._check("tokenizer.json", self.manifest["tokenizer_sha256"])
        for name, shard in self.manifest["shards"].items():
            self._check(f"{name}.bin", shard["sha256"])

    def _check(self, file: str, sha256: str) -> None:
        path = self.folder / file
        try:
            with path.open("rb") as content:
                found = hashlib.file_digest(content, "sha256").hexdigest()
        except OSError:
            found = ""
        if found != sha256:
            raise self._damaged(path)

    def _damaged(self, path: Path) -> UserError:
        return UserError(f"{path} is damaged or missing; delete the folder {self.folder} and run again to rebuild it")

    @property
    def shards(self) -> list[str]:
        return sorted(self.manifest["shards"])

    def tokens(self, shard: str) -> NDArray[Any]:
        """All tokens of a shard, memory-mapped and read-only."""
        entry = self.manifest["shards"].get(shard)
        if entry is None:
            raise UserError(f"the corpus {self.folder.name} has no {shard}; it has {', '.join(self.shards)}")
        return np.memmap(self.folder / f"{shard}.bin", dtype=np.dtype(entry["dtype"]), mode="r")

    def sequences(self, shard: str, length: int) -> Sequences:
        """The sequences of `length` tokens of a shard; `UserError` where it has not one."""
        sequences = Sequences(self.tokens(shard), length)
        if not len(sequences):
            raise UserError(
                f"{shard} of the corpus {self.folder.name} has {len(sequences.tokens)} tokens, "
                f"too few for one sequence of {length}"
            )
        return sequences

    @cached_property
    def tokenizer(self) -> Any:
        """The `tokenizers.Tokenizer` of the shards."""
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(self.folder / "tokenizer.json"))

    @cached_property
    def token_bytes(self) -> NDArray[Any]:
        """Bytes of text that each token stands for, (vocabulary,) of int64; 0 for end-of-text and its like."""
        # A byte-level vocabulary spells one byte by one character; what was added to it is text as it stands.
        lengths = np.zeros(self.manifest["corpus"]["vocabulary"], dtype=np.int64)
        for token, index in self.tokenizer.get_vocab(with_added_tokens=False).items():
            lengths[index] = len(token)
        for index, added in self.tokenizer.get_added_tokens_decoder().items():
            lengths[index] = 0 if added.special else len(added.content.encode())
        return lengths


def open_corpus(corpus: Corpus) -> TokenizedCorpus:
    """The corpus, built into the cache first if it is not there."""
    return TokenizedCorpus(build(corpus))


class Sequences:
    """Random access to the non-overlapping sequences of one shard."""

    def __init__(self, tokens: NDArray[Any], length: int) -> None:
        self.tokens = tokens
        self.length = length

    def __len__(self) -> int:
        return max(0, (len(self.tokens) - 1) // self.length)

    def read(self, indices: NDArray[Any]) -> NDArray[Any]:
        """The sequences `indices` with the token after each, int64, shape (len(indices), length + 1)."""
        out = np.empty((len(indices), self.length + 1), dtype=np.int64)
        for row, index in enumerate(indices):
            start = int(index) * self.length
            out[row] = self.tokens[start : start + self.length + 1]
        return out


class Order:
    """Which sequence comes at each position of a run: a fresh permutation of all n for every epoch.

    `seed` and `fingerprint` key the permutation; so does the sequence length, through n and by name.
    """

    def __init__(self, sequences: int, length: int, fingerprint: str, seed: int) -> None:
        self.sequences = sequences
        self.key = f"{fingerprint}/{length}/{seed}"

    def at(self, positions: NDArray[Any]) -> NDArray[Any]:
        """Indices of the sequences at `positions` (counted from the start of training), int64, same shape."""
        positions = np.asarray(positions, dtype=np.int64)
        out = np.empty_like(positions)
        epochs = positions // self.sequences
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            out[chosen] = permute(positions[chosen] % self.sequences, self.sequences, f"{self.key}/{epoch}")
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
