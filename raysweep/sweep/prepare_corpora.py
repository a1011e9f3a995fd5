"""The corpora of a sweep, built before anything starts: here and now, where an error can be shown."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from raysweep.corpora.build import open_corpus
from raysweep.corpora.progress import Report
from raysweep.corpora.shared import obtain, upload
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
    left: list[CellState], evaluations: Iterable[Evaluation], store: Store, shared: bool, report: Report
) -> dict[str, str]:
    """Build what the cells that are left train on; the fingerprint of each corpus by its specification.

    What training and the evaluations read must hold a sequence, or nothing is started. The nodes of a cluster that is
    `shared` find it in the store. Raises `UserError`.
    """
    evaluations = list(evaluations)
    lengths: dict[Corpus, int] = {}
    for state in left:
        cell = state.cell
        lengths[cell.corpus] = max(cell.sequence_length, lengths.get(cell.corpus, 0))
    built = {corpus: _opened(corpus, store, report) for corpus in lengths}
    for corpus, opened in built.items():
        for shard in required_shards(evaluations):
            opened.sequences(shard, lengths[corpus])
        for evaluation in evaluations:
            evaluation.check_corpus(opened, lengths[corpus])
    fingerprints = {corpus.key: opened.fingerprint for corpus, opened in built.items()}
    corpora_record.record(store, fingerprints)
    if shared:
        for opened in built.values():
            upload(opened, store, report)
    return fingerprints


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
        log.warning("%s: using the corpus as it was built before, %s", error, recorded)
        return opened
