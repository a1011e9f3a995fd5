"""The corpora of a sweep, built before anything starts: here and now, where an error can be shown."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from raysweep.corpora.build import open_corpus
from raysweep.corpora.progress import Report
from raysweep.corpora.shared import obtain
from raysweep.corpora.tokenized import TokenizedCorpus
from raysweep.errors import UserError
from raysweep.space.corpus import Corpus
from raysweep.space.evaluations import Evaluation
from raysweep.store import Store, corpora_record
from raysweep.sweep.survey import CellState

log = logging.getLogger("raysweep")

# What training reads.
_TRAINING_SHARDS = ("pretraining/train", "pretraining/validation")


def prepare_corpora(
    left: list[CellState], evaluations: Iterable[Evaluation], store: Store, report: Report
) -> dict[Corpus, TokenizedCorpus]:
    """Build what the cells that are left train on, and record the fingerprints in the store.

    Every shard that training and the evaluations read must hold at least one sequence, or nothing is started. Raises
    `UserError`.
    """
    evaluations = list(evaluations)
    lengths: dict[Corpus, int] = {}
    for state in left:
        cell = state.cell
        lengths[cell.corpus] = max(cell.sequence_length, lengths.get(cell.corpus, 0))
    built = {}
    for corpus, length in lengths.items():
        opened = built[corpus] = _opened(corpus, store, report)
        for shard in required_shards(evaluations):
            opened.sequences(shard, length)
        for evaluation in evaluations:
            evaluation.check_corpus(opened, length)
    corpora_record.record(store, {corpus.key: opened.fingerprint for corpus, opened in built.items()})
    return built


def required_shards(evaluations: Iterable[Evaluation]) -> list[str]:
    """The shards that training and these evaluations read."""
    shards = [shard for evaluation in evaluations for shard in evaluation.shards]
    return list(dict.fromkeys([*_TRAINING_SHARDS, *shards]))


def _opened(corpus: Corpus, store: Store, report: Report) -> TokenizedCorpus:
    """The corpus, built if need be; where its text is gone, as it was built for this store."""
    try:
        return open_corpus(corpus, report=report)
    except UserError as error:
        recorded = corpora_record.fingerprints(store).get(corpus.key)
        if recorded is None:
            raise
        try:
            opened = obtain(corpus, recorded, store)
        except UserError:
            raise error from None
        log.warning("%s: using the copy built earlier, %s, instead", error, recorded)
        return opened
