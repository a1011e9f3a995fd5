"""The corpora of a sweep, built before anything starts: here and now, where an error can be shown."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence

from raysweep.corpora.build import open_corpus
from raysweep.corpora.manifest import first_malformed
from raysweep.corpora.progress import Report
from raysweep.corpora.shared import obtain
from raysweep.corpora.tokenized import TokenizedCorpus
from raysweep.errors import UserError
from raysweep.evaluation import in_distribution
from raysweep.space.cell import Cell
from raysweep.space.corpus import Corpus
from raysweep.space.evaluations import Evaluation
from raysweep.space.measure import Measurement, check_sequences, wanted
from raysweep.store import Store, corpora_record
from raysweep.sweep.survey import CellState

log = logging.getLogger("raysweep")

# What training reads.
_TRAINING_SHARDS = ("pretraining/train", "pretraining/validation")


def prepare_corpora(
    left: list[CellState], evaluations: Iterable[Evaluation], store: Store, report: Report,
    measure: Iterable[Measurement] = (),
) -> dict[Corpus, TokenizedCorpus]:  # fmt: skip
    """Build what the cells that are left train on, and record the fingerprints in the store.

    Every shard that training and the evaluations read must hold at least one sequence, or nothing is started. Where one
    holds less than was asked for, that is said. Raises `UserError`.
    """
    evaluations = list(evaluations)
    measure = list(measure)
    lengths: dict[Corpus, int] = {}
    for state in left:
        cell = state.cell
        lengths[cell.corpus] = max(cell.sequence_length, lengths.get(cell.corpus, 0))
    built = {}
    for corpus, length in lengths.items():
        opened = built[corpus] = opened_corpus(corpus, store, report)
        cells = [state.cell for state in left if state.cell.corpus == corpus]
        fitting = [evaluation for evaluation in evaluations if evaluation.fits(cells[0])]
        for shard in required_shards(fitting):
            opened.sequences(shard, length)
        _check_states(cells, opened, measure)
        for evaluation in fitting:
            evaluation.check_corpus(opened, length)
    for corpus, opened in built.items():
        if malformed := opened.manifest.get("malformed"):
            log.warning(
                "corpus %s is without %s malformed documents (skip_malformed), the first in %s", corpus.name,
                f"{malformed['documents']:,}", first_malformed(opened.manifest),
            )  # fmt: skip
    for said in shortfalls([state.cell for state in left], evaluations, built):
        log.warning("%s", said)
    corpora_record.record(store, {corpus.key: opened.fingerprint for corpus, opened in built.items()})
    return built


def _check_states(cells: list[Cell], corpus: TokenizedCorpus, measure: list[Measurement]) -> None:
    """Raise `UserError` where hidden states are to be of more sequences than there are; say where they are of few."""
    few: dict[int, int] = {}
    for cell in cells if measure else ():
        for one in wanted(measure, cell):
            if not one.sequences:
                continue
            held = len(corpus.sequences(in_distribution.SHARD, cell.sequence_length))
            check_sequences(one.sequences, held, cell.sequence_length, corpus.folder.name)
            if one.positions == "last" and one.sequences < 4 * cell.size.width:
                few[cell.size.width] = one.sequences
    if few:
        width = max(few)
        log.warning(
            "measure takes hidden states of %s sequences at width %s: ranks and isotropy of so few rows are low by the "
            "sampling alone, more so in wide models; take four times the width or more", f"{few[width]:,}", f"{width:,}",
        )  # fmt: skip


def shortfalls(
    of_cells: Sequence[Cell], evaluations: Sequence[Evaluation], built: dict[Corpus, TokenizedCorpus]
) -> Iterator[str]:
    """What the corpora have less of than was asked for: training text, validation, evaluation text."""
    for corpus, opened in built.items():
        cells = [cell for cell in of_cells if cell.corpus == corpus]
        name = f"corpus {corpus.name}"
        without = [evaluation for evaluation in evaluations if not evaluation.fits(cells[0])]
        for evaluation in without:
            yield f"{name} has no {evaluation.corpus_role}: {evaluation.label} is left out for its cells"
        epochs = {
            cell.id: opened.sequences("pretraining/train", cell.sequence_length).epochs(cell.steps * cell.batch_size)
            for cell in cells
        }
        again = [number for number in epochs.values() if number > 1]
        if again:
            yield (
                f"{name}: {len(again)} of {len(cells)} cells read training text more than once, up to "
                f"{max(again):.1f} times: more text would end that, or fewer tokens"
            )
        for length in sorted({cell.sequence_length for cell in cells}):
            held = len(opened.sequences("pretraining/validation", length))
            asked = max(cell.validation_sequences for cell in cells if cell.sequence_length == length)
            if held < asked:
                yield (
                    f"{name}: validation reads {held:,} sequences and not {asked:,}: there are no more of {length:,} tokens"
                )
            for evaluation in [one for one in evaluations if one not in without]:
                yield from (f"{name}: {said}" for said in evaluation.shortfalls(opened, length))


def required_shards(evaluations: Iterable[Evaluation]) -> list[str]:
    """The shards that training and these evaluations read."""
    shards = [shard for evaluation in evaluations for shard in evaluation.shards]
    return list(dict.fromkeys([*_TRAINING_SHARDS, *shards]))


def opened_corpus(corpus: Corpus, store: Store, report: Report) -> TokenizedCorpus:
    """The corpus, built if need be; where its text is gone, as it was built for this store."""
    return built_or_recorded(lambda: open_corpus(corpus, report=report), corpus.name, corpus.key, store)


def built_or_recorded(build: Callable[[], TokenizedCorpus], name: str, key: str, store: Store) -> TokenizedCorpus:
    """What `build` opens; where it cannot, the copy of the fingerprint that the store has on record under the key."""
    try:
        return build()
    except UserError as error:
        recorded = corpora_record.fingerprints(store).get(key)
        if recorded is None:
            raise
        try:
            opened = obtain(name, recorded, store)
        except UserError:
            raise error from None
        log.warning("%s: using the copy built earlier, %s, instead", error, recorded)
        return opened
