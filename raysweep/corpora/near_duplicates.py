"""Documents that repeat one another in part: found by MinHash over runs of words, and counted word by word.

Words are runs of letters, digits and underscores, in lower case. Two documents are near-duplicates where at least half of
their distinct runs of n words are in both (Jaccard; Broder 1997, "On the resemblance and containment of documents").
Candidates come from datasketch's locality-sensitive hashing, which misses a few; those that it finds are compared exactly.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from raysweep.corpora.contamination import hashes

_WORD = re.compile(r"\w+")

# Of the distinct runs of two documents, which are near-duplicates, this share is in both.
ALIKE = 0.5

# Numbers of a MinHash. At 32 two documents that have 70% in common are found in 98 of 100 cases.
_PERMUTATIONS = 32

# Of hashes of 64 bits.
_SCHEME: Literal["affine64"] = "affine64"


def runs(text: str, n: int) -> NDArray[np.uint64]:
    """The hash of every run of `n` words of a text, in its order."""
    return hashes(np.array([_number(word) for word in _WORD.findall(text.lower())], dtype=np.uint64), n)


def signature(run_hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The MinHash of a document's runs."""
    from datasketch import MinHash

    made = MinHash(num_perm=_PERMUTATIONS, hashfunc=int, scheme=_SCHEME)
    made.update_batch(np.unique(run_hashes))
    signature: NDArray[np.uint64] = made.hashvalues
    return signature


def groups(run_hashes: Sequence[NDArray[np.uint64]], signatures: Sequence[NDArray[np.uint64]]) -> list[list[int]]:
    """The groups of near-duplicates, each in ascending order: chains of documents each of which is near to another.

    Documents shorter than a run have no runs and are in none.
    """
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=ALIKE, num_perm=_PERMUTATIONS)
    leader = list(range(len(run_hashes)))

    def leads(document: int) -> int:
        while leader[document] != document:
            leader[document] = leader[leader[document]]
            document = leader[document]
        return document

    for i, values in enumerate(signatures):
        if len(run_hashes[i]):
            made: Any = MinHash(num_perm=_PERMUTATIONS, hashvalues=values, scheme=_SCHEME)
            for other in sorted(index.query(made)):
                one, two = leads(i), leads(other)
                if one != two and _jaccard(run_hashes[i], run_hashes[other]) >= ALIKE:
                    leader[max(one, two)] = min(one, two)
            index.insert(i, made, check_duplication=False)
    members: dict[int, list[int]] = {}
    for i in range(len(leader)):
        members.setdefault(leads(i), []).append(i)
    return [group for group in members.values() if len(group) > 1]


def covered(run_hashes: NDArray[np.uint64], known: NDArray[np.uint64], n: int) -> tuple[int, int]:
    """How many words of a document are in runs of `n` words that are among the `known` (sorted), and how many there are."""
    words = len(run_hashes) + n - 1 if len(run_hashes) else 0
    places = np.minimum(np.searchsorted(known, run_hashes), max(len(known) - 1, 0))
    hits = np.flatnonzero(known[places] == run_hashes) if len(known) else np.empty(0, np.int64)
    edges = np.zeros(words + 1, dtype=np.int64)
    np.add.at(edges, hits, 1)
    np.add.at(edges, hits + n, -1)
    return int((np.cumsum(edges)[:-1] > 0).sum()), words


def _jaccard(one: NDArray[np.uint64], two: NDArray[np.uint64]) -> float:
    one, two = np.unique(one), np.unique(two)
    both = len(np.intersect1d(one, two, assume_unique=True))
    return both / (len(one) + len(two) - both)


@lru_cache(1 << 20)
def _number(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
