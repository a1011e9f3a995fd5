"""A built corpus, read: its manifest, its tokenizer and its memory-mapped shards."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysweep.corpora.checksums import ChecksumCache
from raysweep.corpora.manifest import checksum, fingerprint
from raysweep.corpora.memmap import ConcatenatedMemmap
from raysweep.corpora.sequences import Sequences
from raysweep.corpora.split import TEST_SHARE, VALIDATION_SHARE
from raysweep.corpora.tokenizer import bytes_of_tokens
from raysweep.errors import UserError


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
        self._checked = ChecksumCache(folder)
        for _ in self._verified(again=False):
            pass
        self._checked.save()

    def files(self) -> dict[str, str]:
        """The tokenizer and every token file, by its path in the folder, with its SHA-256."""
        files = {"tokenizer.json": self.manifest["tokenizer_sha256"]}
        for name, shard in self.manifest["shards"].items():
            files |= {entry["file"]: entry["sha256"] for entry in _files(name, shard)}
        return files

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum((self.folder / file).stat().st_size for file in self.files())

    def verify(self, progress: Callable[[str, int, int], None]) -> None:
        """Read every file again and compare it with its checksum; `UserError` names the one that is damaged."""
        total = len(self.files())
        progress("files verified", 0, total)
        for done in self._verified(again=True):
            progress("files verified", done, total)

    def _verified(self, again: bool) -> Iterator[int]:
        """Compare every file with its checksum, on all cores: how many are."""
        files = self.files()
        pool = ThreadPoolExecutor(os.cpu_count())
        try:
            matching = pool.map(lambda file: self._checked.matches(file, files[file], again), files)
            for done, (file, matches) in enumerate(zip(files, matching, strict=True), 1):
                if not matches:
                    raise self._damaged(self.folder / file)
                yield done
        finally:
            pool.shutdown(cancel_futures=True)

    def _damaged(self, path: Path) -> UserError:
        return UserError(f"{path} is damaged or missing; delete the folder {self.folder} and run again to rebuild it")

    @property
    def shards(self) -> list[str]:
        return sorted(self.manifest["shards"])

    def tokens(self, shard: str) -> Any:
        """All tokens of a shard, memory-mapped and read-only: an array, or `ConcatenatedMemmap` that slices like one."""
        entry = self.manifest["shards"].get(shard)
        if entry is None:
            raise UserError(
                f"the corpus {self.folder.name} has no {shard}; it has {', '.join(self.shards)}{self._none_held_out(shard)}"
            )
        dtype = np.dtype(entry["dtype"])
        if "files" in entry:
            return ConcatenatedMemmap([(self.folder / part["file"], part["tokens"]) for part in entry["files"]], dtype)
        return np.memmap(self.folder / f"{shard}.bin", dtype=dtype, mode="r")

    def _none_held_out(self, shard: str) -> str:
        """Why a split is empty whose documents the hash of their text chooses, and what to do; empty for any other shard."""
        role, _, split = shard.partition("/")
        share = {"validation": VALIDATION_SHARE, "test": TEST_SHARE}.get(split, {}).get(role)
        if share is None or f"{role}/train" not in self.shards:
            return ""
        own = {"pretraining/validation": "validation", "pretraining/test": "in_distribution"}.get(shard)
        return (
            f". {share:.0%} of its documents are held out for it, and it has too few for that: give it more documents, or "
            f"cut long ones into parts{f', or give the corpus documents of their own for it, as {own}:' if own else ''}"
        )

    def sequences(self, shard: str, length: int) -> Sequences:
        """The sequences of `length` tokens of a shard; raises `UserError` where it does not hold one."""
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
        return bytes_of_tokens(self.tokenizer, self.manifest["corpus"]["vocabulary"])


def _files(name: str, shard: dict[str, Any]) -> list[dict[str, Any]]:
    """The token files of a shard; `installed` has one for each."""
    files: list[dict[str, Any]] = shard.get("files", [{"file": f"{name}.bin", "sha256": shard["sha256"]}])
    return files
