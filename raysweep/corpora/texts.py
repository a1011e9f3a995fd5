"""What an evaluation reads beside a corpus: built once for that corpus, under its tokenizer, in the cache.

It has the form of a built corpus (`TokenizedCorpus`), so that it is verified and handed to the nodes of a cluster in the
same way:

    evaluation/<domain>                       documents, by domain
    finetune/{train,test}                     documents to fine-tune on, and the tenth that is held out
    questions/<set>, questions/<set>/requests  see `raysweep.corpora.questions`

Its manifest says in `seen` how much of it stands in the corpus's training text too.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysweep.cache import cache
from raysweep.corpora import manifest, questions, source_files, tokenize
from raysweep.corpora.build import KEY_DIGITS
from raysweep.corpora.exclusive import made_once
from raysweep.corpora.memmap import ConcatenatedMemmap
from raysweep.corpora.progress import Report
from raysweep.corpora.seen import seen_runs, seen_tokens
from raysweep.corpora.tokenized import TokenizedCorpus
from raysweep.space.corpus import Source
from raysweep.space.text import Text

# Increase with every change here that changes tokens or what is said to be seen.
REVISION = 1

# Tokens of each shard, from its start, that are looked for in the training text.
LOOKED_FOR = 20_000_000


@dataclass(frozen=True)
class _Documents:
    """The documents of a text, as the build of a corpus takes them."""

    name: str
    vocabulary: int
    role: str
    on: tuple[Source, ...]
    tokenizer: str = "of the corpus"
    fraction: float = 1.0
    decontaminate: int | None = None

    def sources(self) -> dict[str, tuple[Source, ...]]:
        return {self.role: self.on}


def open_text(text: Text, corpus: TokenizedCorpus, report: Report) -> TokenizedCorpus:
    """The text under the tokenizer of the corpus, built first if it is not in the cache.

    Raises `UserError` where its documents or questions cannot be read.
    """
    folder, built_of = _place(text, corpus)

    def make(unfinished: Path) -> None:
        shutil.copyfile(corpus.folder / "tokenizer.json", unfinished / "tokenizer.json")
        manifest.finish(built_of | _content(text, corpus, unfinished, report), unfinished)

    if made_once(folder, folder / manifest.FILE, make, resume=True):
        shutil.rmtree(folder / tokenize.BLOCKS, ignore_errors=True)
    return TokenizedCorpus(folder)


def _place(text: Text, corpus: TokenizedCorpus) -> tuple[Path, dict[str, Any]]:
    """Where the cache has it, and what decides that."""
    built_of = {
        "build": [REVISION, tokenize.REVISION, questions.REVISION],
        "corpus": {"name": text.name, "vocabulary": corpus.manifest["corpus"]["vocabulary"]},
        "seen_by": corpus.fingerprint,
        "text": text.model_dump(mode="json"),
        "source": [source_files.signature(source) for source in text.on],
    }
    key = hashlib.sha256(json.dumps(built_of, sort_keys=True).encode()).hexdigest()[:KEY_DIGITS]
    return cache() / "corpora" / f"{text.name}-{key}", built_of


def _content(text: Text, corpus: TokenizedCorpus, folder: Path, report: Report) -> dict[str, Any]:
    """Write the token files; what the manifest says of them."""
    if text.role == "questions":
        return questions.write(text, corpus, folder, report)
    documents = _Documents(text.name, corpus.manifest["corpus"]["vocabulary"], text.role, text.on)
    about = tokenize.write(documents, folder, stream=False, report=report)
    end = corpus.manifest["end_of_text"]
    held_out = {name: _tokens(shard, folder) for name, shard in about["shards"].items() if name != "finetune/train"}
    runs = seen_runs((_without_ends(tokens, end) for tokens in held_out.values()), corpus, report)
    seen = {
        name: float(seen_tokens(tokens, of_shard)[tokens != end].mean())
        for (name, tokens), of_shard in zip(held_out.items(), runs, strict=True)
    }
    return about | {"seen": seen}


def _tokens(shard: dict[str, Any], folder: Path) -> NDArray[np.int64]:
    """The first tokens of a shard."""
    files = [(folder / file["file"], file["tokens"]) for file in shard["files"]]
    return ConcatenatedMemmap(files, np.dtype(shard["dtype"]))[:LOOKED_FOR].astype(np.int64)


def _without_ends(tokens: NDArray[np.int64], end: int) -> NDArray[np.int64]:
    """The tokens with what no text has in place of the end of each document: no run goes from one into the next."""
    return np.where(tokens == end, np.int64(-1), tokens)
