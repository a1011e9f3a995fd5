"""corpus list, build, show, verify."""

from __future__ import annotations

import argparse
import logging

from raysweep.cli import corpus_messages
from raysweep.cli.options import load_space, print_json
from raysweep.cli.progress_bars import ProgressBars
from raysweep.corpora import show as sampling
from raysweep.corpora.build import open_corpus
from raysweep.corpora.tokenized import TokenizedCorpus
from raysweep.errors import UserError
from raysweep.space.corpus import Corpus
from raysweep.space.data_sets import DATA_SETS
from raysweep.space.space import Space

logger = logging.getLogger(__name__)


def list_data_sets(options: argparse.Namespace) -> int:
    """`raysweep corpus list`."""
    if options.json:
        shown = ("repository", "revision", "splits", "fields", "licence", "gated", "size", "documented", "note")
        print_json({name: {key: getattr(one, key) for key in shown} for name, one in DATA_SETS.items()})
    else:
        corpus_messages.show_data_sets(DATA_SETS)
    return 0


def build(options: argparse.Namespace) -> int:
    """`raysweep corpus build`."""
    for corpus in _opened(load_space(options), options.stream).values():
        tokens = sum(shard["tokens"] for shard in corpus.manifest["shards"].values())
        name = corpus.manifest["corpus"]["name"]
        print(f"{name}: {tokens:,} tokens, fingerprint {corpus.fingerprint}, in {corpus.folder}")
        corpus_messages.show_left_out(corpus)
    return 0


def show(options: argparse.Namespace) -> int:
    """`raysweep corpus show`."""
    if options.json and options.shard:
        raise UserError("--shard chooses the text that is printed, and --json prints none: leave one of them out")
    shard = options.shard or "pretraining/train"
    space = load_space(options)
    corpora = _opened(space)
    if options.json:
        print_json([corpus.manifest | {"folder": str(corpus.folder)} for corpus in corpora.values()])
        return 0
    for corpus in corpora.values():
        heaviest = sampling.heaviest(corpus, shard)
        corpus_messages.show_corpus(corpus, shard, heaviest, sampling.documents(corpus, shard))
    from raysweep.sweep.prepare_corpora import shortfalls  # With PyTorch.

    for one, corpus in corpora.items():
        try:
            for said in shortfalls(space.cells, space.evaluations, {one: corpus}):
                logger.warning("%s", said)
        except UserError as error:  # Which ends a sweep, and not this.
            logger.warning("%s", error)
    return 0


def verify(options: argparse.Namespace) -> int:
    """`raysweep corpus verify`."""
    for corpus in _opened(load_space(options)).values():
        with ProgressBars() as bars:
            corpus.verify(bars.step)
        print(f"{corpus.folder}: {len(corpus.files())} files as they were written, fingerprint {corpus.fingerprint}")
    return 0


def _opened(space: Space, stream: bool = False) -> dict[Corpus, TokenizedCorpus]:
    corpora = dict.fromkeys(cell.corpus for cell in space.cells)
    with ProgressBars() as bars:
        return {corpus: open_corpus(corpus, stream, bars.corpus) for corpus in corpora}
