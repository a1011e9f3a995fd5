"""What one wants to see of a corpus before money is spent on it: its heaviest tokens, and a few documents."""

from __future__ import annotations

import numpy as np

from raysweep.corpora.tokenized import TokenizedCorpus

# Tokens that are looked at: of a larger shard this many, in pieces from all over it.
LOOKED_AT = 20_000_000
PIECE = 100_000


def heaviest(corpus: TokenizedCorpus, shard: str, number: int = 15) -> list[tuple[str, float]]:
    """The commonest tokens of a shard, as text, with their share of its tokens."""
    tokens = corpus.tokens(shard)
    starts = np.arange(0, len(tokens), PIECE)
    if len(tokens) > LOOKED_AT:
        starts = starts[np.linspace(0, len(starts) - 1, LOOKED_AT // PIECE).astype(int)]
    counts = np.zeros(corpus.manifest["corpus"]["vocabulary"], dtype=np.int64)
    for start in starts.tolist():
        counts += np.bincount(tokens[start : start + PIECE], minlength=len(counts))
    order = np.argsort(-counts, kind="stable")[:number]
    return [(_spelt(corpus, int(token)), counts[token] / counts.sum()) for token in order if counts[token]]


def documents(corpus: TokenizedCorpus, shard: str, number: int = 3, longest: int = 400) -> list[str]:
    """The beginnings of documents from the start, the middle and the rest of a shard, decoded."""
    tokens = corpus.tokens(shard)
    end = corpus.manifest["end_of_text"]
    beginnings = []
    for start in (len(tokens) * np.arange(number) // number).tolist():
        piece = np.asarray(tokens[start : start + PIECE])
        ends = np.flatnonzero(piece == end)
        if start and len(ends):  # From where a document begins.
            piece = piece[ends[0] + 1 :]
            ends = ends[1:] - ends[0] - 1
        text = corpus.tokenizer.decode(piece[: ends[0] if len(ends) else None].tolist())
        beginnings.append(text[:longest] + ("..." if len(text) > longest else ""))
    return beginnings


def _spelt(corpus: TokenizedCorpus, token: int) -> str:
    if token == corpus.manifest["end_of_text"]:
        return "end of text"
    return repr(corpus.tokenizer.decode([token]))
