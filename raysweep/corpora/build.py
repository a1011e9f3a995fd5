"""A corpus -> split, tokenized -> memory-mapped shards with a manifest, once, in a cache.

A built corpus is a folder of the cache (`raysweep.cache`):

    tokenizer.json
    pretraining/{train,validation,test}.bin    tokens, uint16 or uint32, each document followed by end-of-text
    out_of_distribution/<domain>.bin           never trained on
    finetune_<subject>/{train,test}.bin        never pretrained on
    manifest.json                              the specification, counts, checksums and the fingerprint

Where `tokenize.py` made it each shard is a folder of files instead. It is written under another name and renamed when it
is whole, under a lock: a killed build leaves nothing that counts as a corpus, and of two processes that build at once one
waits for the other.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from raysweep.cache import cache
from raysweep.corpora import build_installed, installed, manifest, source_files, tokenize
from raysweep.corpora.exclusive import made_once
from raysweep.corpora.progress import Report, ignore
from raysweep.corpora.tokenized import TokenizedCorpus
from raysweep.space.corpus import Corpus

# Increase with every change of the build that changes tokens; old caches are then left alone.
REVISION = 1

# Of the hash in the name of a corpus's folder.
KEY_DIGITS = 12


def open_corpus(corpus: Corpus, stream: bool = False, report: Report = ignore) -> TokenizedCorpus:
    """The corpus, built into the cache first if it is not there; see `build`."""
    return TokenizedCorpus(build(corpus, stream, report))


def build(corpus: Corpus, stream: bool = False, report: Report = ignore) -> Path:
    """The folder of `corpus` in the cache, built first if it is not there; `report` is told how far that is.

    With `stream` files of the hub are read as they come, and not kept. Raises `UserError` where a source is missing or the
    cache cannot be written.
    """
    folder, specification = place(corpus)
    installed_text = corpus.name == "installed"

    def make(unfinished: Path) -> None:
        if installed_text:
            content = build_installed.write(corpus, unfinished, report)
        else:
            content = tokenize.write(corpus, unfinished, stream, report)
        manifest.finish(specification | content, unfinished)

    # What an earlier build has done of other text stays.
    if made_once(folder, folder / manifest.FILE, make, resume=not installed_text):
        shutil.rmtree(folder / tokenize.BLOCKS, ignore_errors=True)
    return folder


def folders(name: str) -> list[Path]:
    """Where corpora of this name were built on this machine, of whatever text."""
    return sorted((cache() / "corpora").glob(f"{name}-{'?' * KEY_DIGITS}"))


def place(corpus: Corpus) -> tuple[Path, dict[str, Any]]:
    """Where `build` puts the corpus, and what decides that.

    Raises `UserError` where a folder of its text is not on this machine.
    """
    if corpus.name == "installed":
        source: Any = installed.signature()
    else:
        source = {"revision": tokenize.REVISION}
        source |= {role: [source_files.signature(one) for one in each] for role, each in corpus.sources().items()}
    specification = {"build": REVISION, "corpus": corpus.describe(), "source": source}
    key = hashlib.sha256(json.dumps(specification, sort_keys=True).encode()).hexdigest()[:KEY_DIGITS]
    return cache() / "corpora" / f"{corpus.name}-{key}", specification
