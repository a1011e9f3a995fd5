"""What one wants to see of a corpus before money is spent on it: its heaviest tokens, and a few documents."""

from __future__ import annotations

import numpy as np

from raysweep.corpora.token_counts import PIECE, token_counts
from raysweep.corpora.tokenized import TokenizedCorpus


def heaviest(corpus: TokenizedCorpus, shard: str, number: int = 15) -> list[tuple[str, float]]:
    """The commonest tokens of a shard, as text, with their share of its tokens."""
    counts = token_counts(corpus, shard)
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
