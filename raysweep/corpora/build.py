"""A corpus -> split, tokenized -> memory-mapped shards with a manifest, once, in a cache.

A built corpus is a folder of the cache (RAYSWEEP_CACHE, by default ~/.cache/raysweep):

    tokenizer.json
    pretraining/{train,validation,test}.bin    tokens, uint16 or uint32, each document followed by end-of-text
    out_of_distribution/<domain>.bin           never trained on
    finetune_<subject>/{train,test}.bin        never pretrained on
    manifest.json                              the specification, counts, checksums and the fingerprint

Where `tokenize.py` made it each shard is a folder of files instead. It is written under another name and renamed when it
is whole, under a lock: a killed build leaves nothing that counts as a corpus, and of two processes that build at once one
waits for the other. This module also writes `installed`, which is deduplicated and ordered in memory.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from raysweep.corpora import installed, published, tokenize
from raysweep.corpora.split import TEST_SHARE, VALIDATION_SHARE, shard_of, share
from raysweep.corpora.tokenizer import END_OF_TEXT, encode, olmo, train_bpe
from raysweep.errors import UserError
from raysweep.space.corpus import Corpus

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from raysweep.corpora.installed import Document

# Of what this module does to documents; a change that changes tokens changes it, and so leaves old caches alone.
REVISION = 1

BATCH = 2000

# Of the hash in the name of a corpus's folder.
KEY_DIGITS = 12

# A document found under two roles belongs to the first of these: what is held out is never trained on.
ROLES = ("finetune_python", "finetune_math", "out_of_distribution", "pretraining")


def cache() -> Path:
    """Where corpora are kept on this machine."""
    return Path(os.environ.get("RAYSWEEP_CACHE") or Path.home() / ".cache" / "raysweep").expanduser().absolute()


def build(corpus: Corpus, stream: bool = False) -> Path:
    """The folder of `corpus` in the cache, built first if it is not there. Progress goes to standard error.

    With `stream` files of the hub are read as they come, and not kept. Raises `UserError` where a source is missing or the
    cache cannot be written.
    """
    folder, specification = _place(corpus)
    if (folder / "manifest.json").exists():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not (folder / "manifest.json").exists():
                unfinished = folder.with_name(f"{folder.name}.unfinished")
                if corpus.name == "installed":
                    shutil.rmtree(unfinished, ignore_errors=True)
                    unfinished.mkdir()
                    content = _write(corpus, unfinished)
                else:  # What an earlier build has done of it stays.
                    unfinished.mkdir(exist_ok=True)
                    content = tokenize.write(corpus, unfinished, stream)
                _finish(specification | content, unfinished)
                unfinished.rename(folder)
                shutil.rmtree(folder / tokenize.BLOCKS, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"the corpus cache {cache()} cannot be written: {error.strerror or error}; "
            "make room there or set RAYSWEEP_CACHE to another folder"
        ) from None
    return folder


def folders(name: str) -> list[Path]:
    """Where corpora of this name were built on this machine, of whatever text."""
    return sorted((cache() / "corpora").glob(f"{name}-{'?' * KEY_DIGITS}"))


def _place(corpus: Corpus) -> tuple[Path, dict[str, Any]]:
    """Where `build` puts the corpus, and what decides that; `UserError` where a folder of its text is not here."""
    if corpus.name == "installed":
        source: Any = installed.signature()
    else:
        source = {"revision": tokenize.REVISION}
        source |= {role: [published.signature(one) for one in each] for role, each in corpus.sources().items()}
    specification = {"build": REVISION, "corpus": corpus.describe(), "source": source}
    key = hashlib.sha256(json.dumps(specification, sort_keys=True).encode()).hexdigest()[:KEY_DIGITS]
    return cache() / "corpora" / f"{corpus.name}-{key}", specification


def _finish(manifest: dict[str, Any], folder: Path) -> None:
    """Write the manifest of a folder whose token files and tokenizer are there."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    manifest |= {
        "end_of_text": tokenizer.token_to_id(END_OF_TEXT),
        "tokenizer_entries": tokenizer.get_vocab_size(),
        "tokenizer_sha256": hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest(),
    }
    manifest["fingerprint"] = fingerprint(manifest)
    manifest["sha256"] = checksum(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


@dataclass
class _Shard:
    """The documents of one token file, in their final order."""

    name: str
    documents: list[Document]


def _write(corpus: Corpus, folder: Path) -> dict[str, Any]:
    """Write the tokens of `installed`; the shards' entries in the manifest."""
    with _progress() as progress:
        shards = _split(_read(corpus, progress))
        if "pretraining/train" not in [shard.name for shard in shards]:
            raise UserError(f"the corpus {corpus.name} has no document to train on")
        tokenizer = _tokenizer(corpus, shards, progress)
        tokenizer.save(str(folder / "tokenizer.json"))
        task = progress.add_task(f"{corpus.name}: tokenize", total=sum(len(shard.documents) for shard in shards))
        entries = {}
        for shard in shards:
            entries[shard.name] = _write_shard(shard, tokenizer, corpus, folder, lambda n: progress.advance(task, n))
    return {"shards": entries}


def fingerprint(manifest: dict[str, Any]) -> str:
    """16 hex digits that change when any token, or the tokenizer, does."""
    content = [manifest["tokenizer_sha256"], manifest["end_of_text"]]
    content += [[name, shard["tokens"], shard["sha256"]] for name, shard in sorted(manifest["shards"].items())]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def checksum(manifest: dict[str, Any]) -> str:
    """SHA-256 of all that a manifest says, but for this."""
    body = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _read(corpus: Corpus, progress: Progress) -> dict[bytes, Document]:
    """Every distinct document by its hash; sections are read on every core."""
    from joblib import Parallel, delayed

    sections = installed.sections()
    task = progress.add_task(f"{corpus.name}: read documents", total=len(sections))
    parts = Parallel(n_jobs=os.cpu_count() or 1, return_as="generator")(
        delayed(_read_section)(i) for i in range(len(sections))
    )

    def documents() -> Iterator[Document]:
        for part in parts:
            yield from part
            progress.advance(task)

    return _distinct(documents(), corpus.fraction)


def _distinct(documents: Iterable[Document], fraction: float) -> dict[bytes, Document]:
    """Documents by the hash of their text, each under its first role, without those that `fraction` leaves out."""
    distinct: dict[bytes, Document] = {}
    for document in documents:
        key = hashlib.sha256(document.text.encode()).digest()
        if share(key[8:16]) < fraction:
            held = distinct.get(key)
            if held is None or ROLES.index(document.role) < ROLES.index(held.role):
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


def _tokenizer(corpus: Corpus, shards: list[_Shard], progress: Progress) -> Tokenizer:
    if corpus.tokenizer == "olmo":
        return olmo()
    train = next(shard for shard in shards if shard.name == "pretraining/train")
    task = progress.add_task(f"{corpus.name}: train a tokenizer of {corpus.vocabulary} entries", total=None)
    tokenizer = train_bpe((document.text for document in train.documents), corpus.vocabulary)
    progress.update(task, total=1, completed=1)
    return tokenizer


def _write_shard(shard: _Shard, tokenizer: Tokenizer, corpus: Corpus, folder: Path, advance: Any) -> dict[str, Any]:
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


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )
