"""The tokens of `installed`, which is deduplicated and ordered in memory."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raysweep.corpora import installed
from raysweep.corpora.progress import CorpusProgress, Report
from raysweep.corpora.split import TEST_SHARE, VALIDATION_SHARE, shard_of, share
from raysweep.corpora.tokenizer import END_OF_TEXT, encode, olmo, train_bpe
from raysweep.errors import UserError
from raysweep.space.corpus import Corpus

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from raysweep.corpora.installed import Document

BATCH = 2000

# A document found under two roles belongs to the first of these: what is held out is never trained on.
ROLES = ("finetune_python", "finetune_math", "out_of_distribution", "pretraining")


@dataclass
class _Shard:
    """The documents of one token file, in their final order."""

    name: str
    documents: list[Document]


def write(corpus: Corpus, folder: Path, report: Report) -> dict[str, Any]:
    """Write the tokens of `installed`; the shards' entries in the manifest."""
    shards = _split(_read(corpus, report))
    if "pretraining/train" not in [shard.name for shard in shards]:
        raise UserError(f"the corpus {corpus.name} has no document to train on")
    tokenizer = _tokenizer(corpus, shards, report)
    tokenizer.save(str(folder / "tokenizer.json"))
    total, done = sum(len(shard.documents) for shard in shards), 0
    entries = {}

    def advance(documents: int) -> None:
        nonlocal done
        done += documents
        report(CorpusProgress(corpus.name, "tokenize", done, total))

    for shard in shards:
        entries[shard.name] = _write_shard(shard, tokenizer, corpus, folder, advance)
    return {"shards": entries}


def _read(corpus: Corpus, report: Report) -> dict[bytes, Document]:
    """Every distinct document by its hash; sections are read on every core."""
    from joblib import Parallel, delayed

    sections = installed.sections()
    parts = Parallel(n_jobs=os.cpu_count() or 1, return_as="generator")(
        delayed(_read_section)(i) for i in range(len(sections))
    )

    def documents() -> Iterator[Document]:
        for done, part in enumerate(parts, 1):
            yield from part
            report(CorpusProgress(corpus.name, "read documents", done, len(sections)))

    return _distinct(documents(), corpus.fraction)


def _distinct(documents: Iterable[Document], fraction: float) -> dict[bytes, Document]:
    """Documents by the hash of their text, each under its first role, without those that `fraction` leaves out."""
    distinct: dict[bytes, Document] = {}
    for document in documents:
        key = hashlib.sha256(document.text.encode()).digest()
        if share(key[8:16]) < fraction:
            earlier = distinct.get(key)
            if earlier is None or ROLES.index(document.role) < ROLES.index(earlier.role):
                distinct[key] = document
    return distinct


def _read_section(section: int) -> list[Document]:
    return list(installed.documents(section))


def _split(documents: dict[bytes, Document]) -> list[_Shard]:
    """Documents to shards by their hash, which is also their order."""
    shards: dict[str, list[Document]] = {}
    for key in sorted(documents):
        document = documents[key]
        shards.setdefault(_shard_of(document, share(key[16:24])), []).append(document)
    return [_Shard(name, shards[name]) for name in sorted(shards)]


def _shard_of(document: Document, share: float) -> str:
    if document.role == "out_of_distribution":
        return f"out_of_distribution/{document.domain}"
    return shard_of(document.role, share, TEST_SHARE[document.role], VALIDATION_SHARE.get(document.role, 0.0))


def _tokenizer(corpus: Corpus, shards: list[_Shard], report: Report) -> Tokenizer:
    if corpus.tokenizer == "olmo":
        return olmo()
    train = next(shard for shard in shards if shard.name == "pretraining/train")
    phase = f"train a tokenizer of {corpus.vocabulary} entries"
    report(CorpusProgress(corpus.name, phase, 0, 1))
    tokenizer = train_bpe((document.text for document in train.documents), corpus.vocabulary)
    report(CorpusProgress(corpus.name, phase, 1, 1))
    return tokenizer


def _write_shard(
    shard: _Shard, tokenizer: Tokenizer, corpus: Corpus, folder: Path, advance: Callable[[int], None]
) -> dict[str, Any]:
    """Write one token file; returns its entry in the manifest."""
    path = folder / f"{shard.name}.bin"
    path.parent.mkdir(exist_ok=True)
    dtype = np.dtype("<u2" if corpus.vocabulary <= 2**16 else "<u4")
    end = tokenizer.token_to_id(END_OF_TEXT)
    domains: dict[str, Counter[str]] = {}
    checksum = hashlib.sha256()
    tokens = 0
    with path.open("wb") as file:
        for documents in _batches(shard.documents):
            for document, ids in zip(documents, encode([d.text for d in documents], tokenizer), strict=True):
                content = np.array([*ids, end], dtype=dtype).tobytes()
                file.write(content)
                checksum.update(content)
                counts = domains.setdefault(document.domain, Counter())
                counts.update(documents=1, bytes=len(document.text.encode()), tokens=len(ids) + 1)
                tokens += len(ids) + 1
            advance(len(documents))
        file.flush()
        os.fsync(file.fileno())
    return {
        "dtype": dtype.str,
        "tokens": tokens,
        "documents": len(shard.documents),
        "bytes": sum(counts["bytes"] for counts in domains.values()),
        "domains": {name: dict(counts) for name, counts in sorted(domains.items())},
        "sha256": checksum.hexdigest(),
    }


def _batches(documents: list[Document]) -> Iterator[list[Document]]:
    for start in range(0, len(documents), BATCH):
        yield documents[start : start + BATCH]
