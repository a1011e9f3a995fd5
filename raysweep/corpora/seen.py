"""How much of a text stands in the text that a corpus is trained on too: by runs of 13 tokens in a row."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from raysweep.corpora.contamination import Hashes, hashes
from raysweep.corpora.progress import CorpusProgress, Report
from raysweep.corpora.tokenized import TokenizedCorpus

RUN = 13
"""Tokens in a row that count as the same text, as in Brown et al. 2020, appendix C (there they are words)."""

# Training tokens that are looked at together, by one thread.
_PIECE = 1 << 21


def seen_runs(texts: Iterable[NDArray[np.int64]], corpus: TokenizedCorpus, report: Report) -> list[NDArray[np.bool_]]:
    """For each run of `RUN` tokens of each text, (len(text) - RUN + 1,), whether the training split has it too.

    Reads the whole training split once, on every core. A text of fewer tokens has no run.
    """
    of_text = [hashes(text, RUN) for text in texts]
    wanted = Hashes(np.unique(np.concatenate([*of_text, np.empty(0, np.uint64)])))
    found = np.zeros(len(wanted), dtype=bool)
    training = corpus.tokens("pretraining/train")

    def look(start: int) -> NDArray[np.int64]:
        return np.unique(wanted.places(hashes(training[start : start + _PIECE + RUN - 1], RUN)))

    starts = range(0, len(training), _PIECE) if len(wanted) else range(0)
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        for done, places in enumerate(pool.map(look, starts), 1):
            found[places] = True
            report(CorpusProgress(corpus.folder.name, "look for evaluation text in training text", done, len(starts)))
    finally:
        pool.shutdown(cancel_futures=True)
    return [found[np.searchsorted(wanted.values, runs)] for runs in of_text]


def seen_tokens(text: NDArray[np.int64], runs: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(len(text),) whether each token is in a run that training has too, of what `seen_runs` says of the text."""
    changes = np.zeros(len(text) + 1, dtype=np.int64)
    starts = np.flatnonzero(runs)
    np.add.at(changes, starts, 1)
    np.add.at(changes, starts + RUN, -1)
    return np.asarray(np.cumsum(changes[:-1]) > 0)
