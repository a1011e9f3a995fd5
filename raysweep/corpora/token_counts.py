"""How often each token occurs in a shard."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from raysweep.corpora.tokenized import TokenizedCorpus

# Tokens that are looked at: of a larger shard this many, in pieces from all over it.
LOOKED_AT = 20_000_000
PIECE = 100_000


def token_counts(corpus: TokenizedCorpus, shard: str) -> NDArray[np.int64]:
    """How often each token occurs, (vocabulary,), in a shard; in LOOKED_AT tokens from all over it, where it has more."""
    tokens = corpus.tokens(shard)
    starts = np.arange(0, len(tokens), PIECE)
    if len(tokens) > LOOKED_AT:
        starts = starts[np.linspace(0, len(starts) - 1, LOOKED_AT // PIECE).astype(int)]
    counts = np.zeros(corpus.manifest["corpus"]["vocabulary"], dtype=np.int64)
    for start in starts.tolist():
        counts += np.bincount(tokens[start : start + PIECE], minlength=len(counts))
    return counts
