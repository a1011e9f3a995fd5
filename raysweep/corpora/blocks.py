"""What a task does: cuts a file into blocks of documents, or makes the tokens of a block.

Both are functions of their arguments alone, so that a task can be done again anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raysweep.corpora.contamination import Grams
from raysweep.corpora.files import Malformed, read, unit
from raysweep.corpora.source_files import File, Resolved, opened, reading
from raysweep.corpora.split import BY_DOMAIN, TEST_SHARE, domain_name, shard_of, share
from raysweep.corpora.tokenizer import END_OF_TEXT, encode
from raysweep.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa
    from tokenizers import Tokenizer

# Documents that the tokenizer is given at once, in characters.
BATCH = 1 << 20

# Of what is said of malformed documents; the rest is counted.
LISTED = 20

SHARDS = {"validation": "pretraining/validation", "in_distribution": "pretraining/test"}

_Kept = tuple[str, str, str, bytes]

HELD_OUT, TRAINING, EVERYTHING = "held-out", "train", "all"


@dataclass(frozen=True)
class Part:
    """One file of one source, as a task is given it."""

    key: str
    """`<source>-<file>`, both numbers."""
    role: str
    source: Resolved
    index: int
    """Of the file in its source."""
    test: float
    validation: float
    """Shares of its documents that are held out."""
    block: int
    """Characters of a block."""
    weight: float | None
    """Of its source, in a mixture."""
    skip_malformed: bool
    done: frozenset[int] = frozenset()
    """Blocks that need not be recomputed."""
    first: int = 0
    start: int = 1
    """The first block that is not done, and the place of its first document."""

    @property
    def file(self) -> File:
        return self.source.files[self.index]

    @property
    def name(self) -> str:
        return self.file.name

    def place(self, digest: bytes, domain: str, fraction: float) -> str | None:
        """The shard of a document, by the SHA-256 of its text; None where it is not of the `fraction` that is kept."""
        return self.shard(domain, digest[16:24]) if share(digest[8:16]) < fraction else None

    def shard(self, domain: str, digest: bytes) -> str:
        """The shard of a document, by its domain and its hash."""
        if self.role in BY_DOMAIN:
            return f"{self.role}/{domain_name(domain)}"
        return SHARDS.get(self.role) or shard_of(self.role, share(digest), self.test, self.validation)

    def trains(self, shard: str) -> bool:
        """Whether that shard of it is trained on."""
        return self.role in TEST_SHARE and shard.endswith("/train")


@dataclass(frozen=True)
class Settings:
    """What every task needs to know."""

    tokenizer: str
    """As JSON."""
    dtype: str
    fraction: float
    which: str
    """HELD_OUT, TRAINING or EVERYTHING."""
    stream: bool
    grams: Grams | None = None
    """Of evaluation text: training documents that share one are left out."""
    elsewhere: NDArray[np.uint64] | None = None
    """The sorted hashes of the documents of other roles, of which none may come again."""


@dataclass
class _Output:
    """The documents of a block in one shard."""

    arrays: list[Any] = field(default_factory=list)
    domains: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, tokens: Any, domain: str, size: int) -> None:
        self.arrays.append(tokens)
        self.domains.setdefault(domain, Counter()).update(documents=1, bytes=size, tokens=len(tokens))


def text_digest(text: str) -> bytes:
    """The SHA-256 of a document's text."""
    return hashlib.sha256(text.encode()).digest()


def document_hash(digest: bytes) -> int:
    """What tells documents apart: 64 bits of the SHA-256 of the text."""
    return int.from_bytes(digest[:8], "little")


def complaint(source: str, file: str, place: int, reason: str) -> str:
    """One line for a document that cannot be read."""
    return (
        f"{source}: {file}, {unit(file)} {place:,}: {reason}; fix it, or set skip_malformed: true for "
        "this source to skip such documents"
    )


def cut(part: Part, stream: bool) -> Iterator[pa.Table]:
    """The blocks of a file that are not done, one row each: the texts, their domains, and what is known of the block."""
    import pyarrow as pa

    texts: list[str] = []
    domains: list[str] = []
    malformed: list[tuple[int, str]] = []
    skipped = without_domain = 0
    number, characters, last = part.first, 0, part.start - 1
    start = part.start

    def row(position: int, end: bool = False, error: str = "") -> pa.Table:
        about = {"part": part.key, "block": number, "start": start, "next": last + 1, "position": position, "end": end}
        about |= {"malformed": malformed, "skipped": skipped, "error": error}
        about["without_domain"] = without_domain
        return pa.table(
            {
                "about": pa.array([json.dumps(about)], pa.large_string()),
                "texts": pa.array([texts], pa.large_list(pa.large_string())),
                "domains": pa.array([domains], pa.large_list(pa.string())),
            }
        )

    size = part.file.size
    try:
        with reading(part.source.name, part.name), opened(part.file, stream) as content:
            for document in read(content, part.name, part.source.text, part.source.domain, part.start):
                last = document.place
                if isinstance(document, Malformed):
                    # A connection that breaks is not the file's fault, and must not cost the rest of it.
                    broken = document.fatal and stream and part.file.path.startswith("hf://")
                    if broken or not part.skip_malformed:
                        texts, domains = [], []
                        yield row(size, error=complaint(part.source.name, part.name, document.place, document.reason))
                        return
                    skipped += 1
                    characters += len(document.reason)
                    malformed += [(document.place, document.reason)][: LISTED - len(malformed)]
                elif document.text:
                    texts.append(document.text)
                    without_domain += part.source.domain is not None and not document.domain
                    domains.append(part.source.domain_of(part.name, document.domain))
                    characters += len(document.text)
                if characters >= part.block:
                    if number not in part.done:
                        # Parquet's reader goes to and fro.
                        yield row(min(content.tell(), size))
                    texts, domains, malformed, skipped, without_domain = [], [], [], 0, 0
                    number, characters, start = number + 1, 0, last + 1
        if number not in part.done:
            yield row(size, end=True)
    except UserError as error:
        texts, domains = [], []
        yield row(size, error=str(error))


def tokenize_block(row: dict[str, Any], part: Part, settings: Settings) -> pa.Table:
    """A block's tokens: one row with what is to be recorded of it, and the bytes of each of its files."""
    import pyarrow as pa

    record = json.loads(row["about"]) | {"dropped": {}, "files": [], "hashes": "", "repeated": None}
    outputs: dict[str, _Output] = {}
    dropped: dict[str, Counter[str]] = {}
    kept = [] if record["error"] else list(_kept(row, part, settings))
    if settings.which == EVERYTHING:
        hashes = np.array([document_hash(digest) for _, _, _, digest in kept], dtype="<u8")
        if settings.elsewhere is None:
            record["hashes"] = base64.b64encode(hashes.tobytes()).decode()
        elif len(settings.elsewhere):
            places = np.minimum(np.searchsorted(settings.elsewhere, hashes), len(settings.elsewhere) - 1)
            if len(repeated := hashes[settings.elsewhere[places] == hashes]):
                record["repeated"] = int(repeated[0])
                kept = []
    if kept:
        tokenizer = loaded(settings.tokenizer)
        end = tokenizer.token_to_id(END_OF_TEXT)
        for documents in _batches(kept):
            for (text, domain, shard, _), ids in zip(
                documents, encode([d[0] for d in documents], tokenizer), strict=True
            ):
                ids.append(end)
                tokens = np.array(ids, dtype=settings.dtype)
                shared_with = settings.grams.shared(tokens[:-1]) if settings.grams else None
                if shared_with is None:
                    outputs.setdefault(shard, _Output()).add(tokens, domain, len(text.encode()))
                else:
                    dropped.setdefault(shared_with, Counter()).update(documents=1, tokens=len(tokens))
    contents = []
    for shard, output in sorted(outputs.items()):
        content = np.concatenate(output.arrays).tobytes()
        contents.append(content)
        record["files"].append(
            {
                "shard": shard,
                "tokens": sum(counts["tokens"] for counts in output.domains.values()),
                "sha256": hashlib.sha256(content).hexdigest(),
                "domains": {name: dict(counts) for name, counts in sorted(output.domains.items())},
            }
        )
    record["dropped"] = {name: dict(counts) for name, counts in sorted(dropped.items())}
    return pa.table(
        {
            "record": pa.array([json.dumps(record)], pa.large_string()),
            "contents": pa.array([contents], pa.large_list(pa.large_binary())),
        }
    )


def _kept(row: dict[str, Any], part: Part, settings: Settings) -> Iterator[_Kept]:
    """(text, domain, shard, SHA-256) of the documents of a block that are kept in this pass."""
    for text, domain in zip(row["texts"], row["domains"], strict=True):
        domain = domain or part.source.name
        digest = text_digest(text)
        shard = part.place(digest, domain, settings.fraction)
        if shard and (settings.which == EVERYTHING or (settings.which == TRAINING) == part.trains(shard)):
            yield text, domain, shard, digest


def _batches(documents: Iterable[_Kept]) -> Iterator[list[_Kept]]:
    batch, size = [], 0
    for document in documents:
        batch.append(document)
        size += len(document[0])
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


@lru_cache(1)
def loaded(tokenizer: str) -> Tokenizer:
    # One core is what a task was given.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from tokenizers import Tokenizer

    return Tokenizer.from_str(tokenizer)
