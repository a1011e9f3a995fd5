"""Text that is there for two purposes: whole files, copies of them, and single documents. It is refused."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysweep.corpora.blocks import Part, document_hash, text_digest
from raysweep.corpora.files import Document, read, unit
from raysweep.corpora.progress import CorpusProgress, Report
from raysweep.corpora.source_files import opened, reading
from raysweep.corpora.split import TEST_SHARE
from raysweep.errors import UserError
from raysweep.space.corpus import Sourced


def check_files(corpus: Sourced, parts: list[Part], report: Report) -> None:
    """Raise `UserError` where a file is for two purposes, or the same field of it twice for one.

    A copy for two purposes is refused too, unless decontamination leaves it out of the training documents.
    """
    seen: dict[str, Part] = {}
    for part in parts:
        path = part.file.path
        name = path if path.startswith("hf://") else os.path.realpath(path)
        other = seen.setdefault(name, part)
        if other is part or (other.role == part.role and other.source.text != part.source.text):
            continue
        both = f"twice in {part.role}" if other.role == part.role else f"both in {other.role} and in {part.role}"
        raise UserError(f"the corpus {corpus.name} has {path} {both}: choose folders that do not overlap, or `files`")
    if corpus.decontaminate is None:
        _check_copies(corpus, parts, report)


def _check_copies(corpus: Sourced, parts: list[Part], report: Report) -> None:
    """Raise `UserError` where the content of a file is there for two purposes; only files of equal size are read."""
    here = [part for part in parts if part.file.size and not part.file.path.startswith("hf://")]
    roles_of_size: dict[int, set[str]] = {}
    for part in here:
        roles_of_size.setdefault(part.file.size, set()).add(part.role)
    alike = [part for part in here if len(roles_of_size[part.file.size]) > 1]
    total = sum(part.file.size for part in alike)
    done = 0
    seen: dict[str, Part] = {}
    for part in alike:
        with reading(part.source.name, part.file.path), open(part.file.path, "rb") as file:
            other = seen.setdefault(hashlib.file_digest(file, "sha256").hexdigest(), part)
        if other.role != part.role:
            raise UserError(
                f"the corpus {corpus.name} has {part.file.path} both in {other.role} and in {part.role}, there as "
                f"{other.file.path}: choose folders that do not overlap, or `files`, or set decontaminate"
            )
        done += part.file.size
        report(CorpusProgress(corpus.name, "look for copies of files", done, total))


def check_documents(corpus: Sourced, parts: list[Part], records: list[dict[str, Any]]) -> NDArray[np.uint64]:
    """The hashes of all documents of these records, sorted. Raises `UserError` where two roles share a document."""
    roles = {part.key: part.role for part in parts}
    by_role: dict[str, list[NDArray[np.uint64]]] = {}
    for record in records:
        by_role.setdefault(roles[record["part"]], []).append(_hashes(record))
    together = np.empty(0, np.uint64)
    for arrays in by_role.values():
        own = np.unique(np.concatenate(arrays))
        shared = np.intersect1d(own, together, assume_unique=True)
        if len(shared):
            raise refusal(corpus, parts, records, int(shared[0]))
        together = np.union1d(together, own)
    return together


def refusal(corpus: Sourced, parts: list[Part], records: Iterable[dict[str, Any]], document: int) -> UserError:
    """Says where two documents of this hash stand."""
    by_key = {part.key: part for part in parts}
    places: dict[str, str] = {}
    for record in records:
        part = by_key[record["part"]]
        if part.role not in places and (document == record.get("repeated") or document in _hashes(record)):
            places[part.role] = _place(part, record["start"], document)
    (one, here), (two, there) = list(places.items())[:2]
    trains = {one in TEST_SHARE, two in TEST_SHARE}
    hint = (
        ", or set decontaminate, which leaves out training documents that repeat an evaluation"
        if len(trains) > 1
        else ""
    )
    return UserError(
        f"the corpus {corpus.name} has the same document in {one} ({here}) and in {two} ({there}): take it out of one of "
        f"them{hint}"
    )


def _hashes(record: dict[str, Any]) -> NDArray[np.uint64]:
    return np.frombuffer(base64.b64decode(record["hashes"]), dtype="<u8")


def _place(part: Part, start: int, wanted: int) -> str:
    """File and line of the document of this hash, which stands at place `start` of its file or later."""
    with reading(part.source.name, part.name), opened(part.file, stream=True) as content:
        for document in read(content, part.name, part.source.text, part.source.domain, start):
            if isinstance(document, Document) and document_hash(text_digest(document.text)) == wanted:
                return f"{part.source.name}: {part.name}, {unit(part.name)} {document.place:,}"
    return f"{part.source.name}: {part.name}"
