"""What the evaluations of a sweep read beside its corpora, built before anything starts."""

from __future__ import annotations

import logging

from raysweep.corpora.progress import Report
from raysweep.corpora.shared import obtain
from raysweep.corpora.texts import open_text
from raysweep.corpora.tokenized import TokenizedCorpus
from raysweep.errors import UserError
from raysweep.space.corpus import Corpus
from raysweep.space.evaluations import Evaluation
from raysweep.space.text import Text
from raysweep.store import Store, corpora_record
from raysweep.sweep.prepare_corpora import built_or_recorded
from raysweep.sweep.survey import CellState

log = logging.getLogger("raysweep")


def prepare_texts(
    left: list[CellState], evaluations: tuple[Evaluation, ...], corpora: dict[Corpus, TokenizedCorpus], store: Store,
    report: Report,
) -> dict[str, list[TokenizedCorpus]]:  # fmt: skip
    """Build what evaluations that are left read, for each corpus, and record the fingerprints; by the texts' names.

    What holds too little for the longest cell ends it, what holds less than was asked for is said. Raises `UserError`.
    """
    built: dict[str, list[TokenizedCorpus]] = {}
    fingerprints = {}
    on_record = corpora_record.fingerprints(store)
    for corpus, opened in corpora.items():
        for evaluation in evaluations:
            lacking = [s for s in left if s.cell.corpus == corpus and s.evaluations.get(evaluation.label) != "done"]
            text = evaluation.text
            if text is None or not lacking:
                continue
            read = _opened(text, corpus, opened, store, report)
            lengths = sorted({state.cell.sequence_length for state in lacking})
            if (malformed := read.manifest.get("malformed")) is not None:
                first = malformed["first"][0]
                log.warning(
                    "%s: %s documents or questions were skipped; the first is %s, line %s: %s", evaluation.label,
                    f"{malformed['documents']:,}", first["file"], f"{first['place']:,}", first["reason"],
                )  # fmt: skip
            evaluation.check_text(read, lengths[-1])
            for length in lengths:
                for said in evaluation.text_shortfalls(read, length):
                    log.warning("%s", said)
            built.setdefault(text.name, []).append(read)
            recorded = on_record.get(text.key(corpus), read.fingerprint)
            if recorded != read.fingerprint:
                raise UserError(
                    f"{evaluation.label}: its text was {recorded} when the store {store.location} was begun, and is "
                    f"{read.fingerprint} now: bring the text back, or give this evaluation another name"
                )
            fingerprints[text.key(corpus)] = read.fingerprint
    corpora_record.record(store, fingerprints)
    return built


def _opened(text: Text, corpus: Corpus, opened: TokenizedCorpus, store: Store, report: Report) -> TokenizedCorpus:
    """The text, built if need be; where its documents are gone, as it was built for this store."""

    def build() -> TokenizedCorpus:
        try:
            return open_text(text, opened, report)
        except UserError as error:
            raise UserError(f"{text.name}: {str(error).removeprefix(f'{text.name}: ')}") from None

    return built_or_recorded(build, text.name, text.key(corpus), store)


def prepared_text(evaluation: Evaluation, corpus: Corpus, store: Store) -> TokenizedCorpus | None:
    """The text of an evaluation on this node, as it was prepared for cells of that corpus; None where it reads none."""
    text = evaluation.text
    if text is None:
        return None
    fingerprint = corpora_record.fingerprints(store).get(text.key(corpus))
    if fingerprint is None:
        raise RuntimeError(f"the store has no record of the text of {evaluation.label}")
    return obtain(text.name, fingerprint, store)
