"""The tokens of `installed`, which is deduplicated and ordered in memory."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raysweep.corpora import installed, near_duplicates
from raysweep.corpora.progress import CorpusProgress, Report
from raysweep.corpora.split import TEST_SHARE, VALIDATION_SHARE, shard_of, share
from raysweep.corpora.tokenizer import END_OF_TEXT, encode, olmo, token_dtype, train_bpe
from raysweep.errors import UserError
from raysweep.space.corpus import Corpus

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from raysweep.corpora.installed import Document

BATCH = 2000

# Of a held-out document's words this share may stand in runs that the training text has too.
MOST_REPEATED = 0.1

# A document found under two roles belongs to the first of these: what is held out is never trained on.
ROLES = ("finetune_python", "finetune_math", "out_of_distribution", "pretraining")


@dataclass
class _Shard:
    """The documents of one token file, in their final order."""

    name: str
    documents: list[Document] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    """The hash of each document's text."""


@dataclass
class _Runs:
    """The hashes of every document's runs of words, and its MinHash, by the hash of its text."""

    runs: dict[bytes, Any]
    signatures: dict[bytes, Any]


def write(corpus: Corpus, folder: Path, report: Report) -> dict[str, Any]:
    """Write the tokens of `installed`; the shards' entries in the manifest."""
    distinct = _read(corpus, report)
    overlap = None
    found = None if corpus.decontaminate is None else _runs(distinct, corpus, report)
    placed = _together(distinct, found) if found else {key: (document, key) for key, document in distinct.items()}
    shards = _split(placed)
    if "pretraining/train" not in [shard.name for shard in shards]:
        raise UserError(f"the corpus {corpus.name} has no document to train on")
    if found and corpus.decontaminate is not None:
        shards, overlap = _without_overlap(shards, found, corpus.decontaminate)
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
    return {"shards": entries} | ({"overlap": overlap} if overlap is not None else {})


def _read(corpus: Corpus, report: Report) -> dict[bytes, Document]:
    """Every distinct document by its hash; sections are read on every core."""
    from joblib import Parallel, delayed

    sections = installed.sections()
    parts = Parallel(n_jobs=-1, return_as="generator")(delayed(_read_section)(i) for i in range(len(sections)))

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


def _runs(documents: dict[bytes, Document], corpus: Corpus, report: Report) -> _Runs:
    """The runs of words of every document, on every core."""
    from joblib import Parallel, delayed

    assert corpus.decontaminate is not None
    keys = sorted(documents)
    parts = [keys[start : start + BATCH] for start in range(0, len(keys), BATCH)]
    made = Parallel(n_jobs=-1, return_as="generator")(
        delayed(_runs_of)([documents[key].text for key in part], corpus.decontaminate) for part in parts
    )
    runs, signatures = {}, {}
    for done, (part, results) in enumerate(zip(parts, made, strict=True), 1):
        for key, (run_hashes, signature) in zip(part, results, strict=True):
            runs[key], signatures[key] = run_hashes, signature
        report(CorpusProgress(corpus.name, "look for repeated text", done, len(parts)))
    return _Runs(runs, signatures)


def _runs_of(texts: list[str], n: int) -> list[tuple[Any, Any]]:
    each = [near_duplicates.runs(text, n) for text in texts]
    return [(runs, near_duplicates.signature(runs)) for runs in each]


def _together(documents: dict[bytes, Document], found: _Runs) -> dict[bytes, tuple[Document, bytes]]:
    """Each document with the hash that decides its side: near-duplicates have one, and the first of their roles."""
    keys = sorted(documents)
    placed = {key: (documents[key], key) for key in keys}
    for group in near_duplicates.groups([found.runs[key] for key in keys], [found.signatures[key] for key in keys]):
        members = [keys[i] for i in group]
        first = min((documents[key] for key in members), key=lambda document: ROLES.index(document.role))
        for key in members:
            document = documents[key]
            own = document.role == first.role
            placed[key] = (document if own else replace(first, text=document.text), members[0])
    return placed


def _without_overlap(shards: list[_Shard], found: _Runs, n: int) -> tuple[list[_Shard], dict[str, Any]]:
    """The shards without held-out documents that repeat training text, and what the manifest says of that.

    Held-out documents are left out, and no training text: a licence at the head of a file would take most source code along.
    """
    # All of it: what is forgotten is measured after fine-tuning, too.
    trained = [shard for shard in shards if shard.name.endswith("/train")]
    known = np.unique(np.concatenate([found.runs[key] for shard in trained for key in shard.keys]))
    kept, said = [], {}
    for shard in shards:
        if shard.name.endswith("/train"):
            kept.append(shard)
            continue
        counts = [near_duplicates.covered(found.runs[key], known, n) for key in shard.keys]
        clean = [i for i, (repeated, words) in enumerate(counts) if repeated <= MOST_REPEATED * words]
        if clean:
            kept.append(_Shard(shard.name, [shard.documents[i] for i in clean], [shard.keys[i] for i in clean]))
        said[shard.name] = {
            "words": sum(counts[i][1] for i in clean),
            "repeated": sum(counts[i][0] for i in clean),
            "words_before": sum(words for _, words in counts),
            "repeated_before": sum(repeated for repeated, _ in counts),
            "documents_left_out": len(counts) - len(clean),
        }
    return kept, {"words_in_a_row": n, "shards": said}


def _split(documents: dict[bytes, tuple[Document, bytes]]) -> list[_Shard]:
    """Documents to shards by the hash beside each; their order is that of their own."""
    shards: dict[str, _Shard] = {}
    for key in sorted(documents):
        document, side = documents[key]
        shard = shards.setdefault(name := _shard_of(document, share(side[16:24])), _Shard(name))
        shard.documents.append(document)
        shard.keys.append(key)
    return [shards[name] for name in sorted(shards)]


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
    dtype = token_dtype(corpus.vocabulary)
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
