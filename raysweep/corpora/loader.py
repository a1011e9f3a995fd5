"""A built corpus, read: memory-mapped shards, and the sequences of a run in a seeded order.

Sequence i of a shard at length L is its tokens i L ... i L + L, L inputs and the L targets after each of them. Which
sequence comes at position k of a run is a function of (fingerprint, L, seed, k) alone: epoch k // n, and in it a keyed
permutation of the n sequences that is evaluated where it is needed and never stored. Of a weighted mixture each source is
a stream of its own, with epochs of its own; which stream position k is of follows from the weights and k. So a run
continues anywhere, in any number of processes, at the exact sequence, with memory independent of the corpus.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysweep.corpora.build import build, checksum, fingerprint
from raysweep.errors import UserError
from raysweep.space.corpus import Corpus


class TokenizedCorpus:
    """The shards of a built corpus.

    Opening it checks every file against its checksum, where that file is new here or has changed since it was checked
    last, and raises `UserError` naming the file that is damaged.
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
            names = [*self.manifest["shards"], *self.files()]
            intact = intact and all(re.fullmatch(r"\w[\w.+#-]*(/\w[\w.+#-]*)*", name) for name in names)
        except (OSError, ValueError, KeyError, TypeError):
            intact = False
        if not intact:
            raise self._damaged(path)
        self._checked = Checked(folder)
        for file, sha256 in self.files().items():
            if not self._checked.matches(file, sha256):
                raise self._damaged(folder / file)
        self._checked.save()

    def files(self) -> dict[str, str]:
        """The tokenizer and every token file, by its path in the folder, with its SHA-256."""
        found = {"tokenizer.json": self.manifest["tokenizer_sha256"]}
        for name, shard in self.manifest["shards"].items():
            found |= {entry["file"]: entry["sha256"] for entry in _files(name, shard)}
        return found

    def verify(self, progress: Callable[[str, int, int], None]) -> None:
        """Read every file again and compare it with its checksum; `UserError` names the one that is damaged."""
        files = self.files()
        for done, (file, sha256) in enumerate(files.items()):
            progress("files verified", done, len(files))
            if not self._checked.matches(file, sha256, again=True):
                raise self._damaged(self.folder / file)
        progress("files verified", len(files), len(files))

    def _damaged(self, path: Path) -> UserError:
        return UserError(f"{path} is damaged or missing; delete the folder {self.folder} and run again to rebuild it")

    @property
    def shards(self) -> list[str]:
        return sorted(self.manifest["shards"])

    def tokens(self, shard: str) -> Any:
        """All tokens of a shard, memory-mapped and read-only: an array, or `Parts` that slices like one."""
        entry = self.manifest["shards"].get(shard)
        if entry is None:
            raise UserError(f"the corpus {self.folder.name} has no {shard}; it has {', '.join(self.shards)}")
        dtype = np.dtype(entry["dtype"])
        if "files" in entry:
            return Parts([(self.folder / part["file"], part["tokens"]) for part in entry["files"]], dtype)
        return np.memmap(self.folder / f"{shard}.bin", dtype=dtype, mode="r")

    def sequences(self, shard: str, length: int) -> Sequences:
        """The sequences of `length` tokens of a shard; `UserError` where it has not one."""
        tokens = self.tokens(shard)
        mixture = self.manifest["shards"][shard].get("mixture")
        streams = mixture and [(s["tokens"], s["weight"]) for s in mixture]
        sequences = Sequences(tokens, length, streams, in_order="files" in self.manifest["shards"][shard])
        for i, stream in enumerate(sequences.streams if mixture else ()):
            if not stream.sequences:
                raise UserError(
                    f"{mixture[i]['source']} has {mixture[i]['tokens']} tokens in {shard} of the corpus "
                    f"{self.folder.name}, too few for one sequence of {length}"
                )
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


def open_corpus(corpus: Corpus, stream: bool = False) -> TokenizedCorpus:
    """The corpus, built into the cache first if it is not there."""
    return TokenizedCorpus(build(corpus, stream))


def _files(name: str, shard: dict[str, Any]) -> list[dict[str, Any]]:
    """The token files of a shard; `installed` has one for each."""
    files: list[dict[str, Any]] = shard.get("files", [{"file": f"{name}.bin", "sha256": shard["sha256"]}])
    return files


class Checked:
    """Which files of a folder were found to have which checksum: `checked.json` there, by size and time of change.

    A corpus of terabytes is read once for this, not once for every process that opens it.
    """

    FILE = "checked.json"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, list[Any]] = {}
        self._new = False
        with suppress(OSError, ValueError):
            known = json.loads((folder / self.FILE).read_text(encoding="utf-8"))
            self._known = known if isinstance(known, dict) else {}

    def matches(self, file: str, sha256: str, again: bool = False) -> bool:
        """Whether a file has that checksum; read where it is not known, or has changed, or is to be read `again`."""
        path = self._folder / file
        try:
            about = path.stat()
            seen = [about.st_size, about.st_mtime_ns, sha256]
            if self._known.get(file) == seen and not again:
                return True
            with path.open("rb") as content:
                if hashlib.file_digest(content, "sha256").hexdigest() != sha256:
                    return False
        except OSError:
            return False
        self._new = self._new or self._known.get(file) != seen
        self._known[file] = seen
        return True

    def save(self) -> None:
        """Keep what was found, if anything new was; a folder that cannot be written is read again the next time."""
        if self._new:
            with suppress(OSError):
                unfinished = self._folder / f"{self.FILE}.{os.getpid()}.unfinished"
                unfinished.write_text(json.dumps(self._known), encoding="utf-8")
                unfinished.rename(self._folder / self.FILE)


# Of one process; Linux allows 65,530 by default.
MOST_MAPS = 8192


class Parts:
    """The tokens of several files, one after another, sliced as one array; each file is mapped when it is first needed."""

    def __init__(self, files: list[tuple[Path, int]], dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        self._files = [path for path, _ in files]
        self._ends = np.cumsum([tokens for _, tokens in files])
        self._mapped: dict[int, NDArray[Any]] = {}

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, wanted: slice) -> NDArray[Any]:
        start, stop, step = wanted.indices(len(self))
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
        found = self._mapped.get(part)
        if found is None:
            if len(self._mapped) >= MOST_MAPS:
                self._mapped.pop(next(iter(self._mapped)))
            found = self._mapped[part] = np.memmap(self._files[part], dtype=self.dtype, mode="r")
        return found


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
    documents are in the order of their files, where otherwise they are in one by chance.
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

    def order(self, fingerprint: str, seed: int) -> Order:
        """Which of them comes at each position of a run."""
        return Order(self.streams, self.length, fingerprint, seed)


# Weights count in these: no product of one and of a position below 9e9 leaves 64 bits.
_WEIGHT_UNITS = 1_000_000_000


# Positions whose sequences are computed together.
_WINDOW = 1024


class Order:
    """Which sequence comes at each position of a run: of each stream a fresh permutation of all n for every epoch.

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
            chosen = windows == window
            out[chosen] = self._indices[positions[chosen] - window * _WINDOW]
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
            chosen = epochs == epoch
            out[chosen] = permute(positions[chosen] % sequences, sequences, f"{key}/{epoch}")
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
