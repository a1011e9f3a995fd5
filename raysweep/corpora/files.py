"""Documents out of files: JSON lines (plain, gzip, zstandard), Parquet and text, each with the place where it stands.

raysweep has its own reader because `datasets` gives no line number, silently converts missing or mixed text,
and accepts a truncated zstandard file as a whole one.
"""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from raysweep.files import is_lfs_pointer

# What is read of a folder: `.json.gz` and `.json.zst` are lines of JSON, as Dolma and C4 have them.
SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".txt", ".json.gz", ".json.zst")

# What can be read where it is asked for by name.
READABLE = (*SUFFIXES, ".json")

# A .txt file is one document, and one document is held in memory.
LONGEST_TEXT = 64 << 20

_CHUNK = 1 << 20
_ROWS = 64


@dataclass(frozen=True)
class Document:
    """A text, the place of it in its file (a line or a row, from 1), and the value of its domain field."""

    place: int
    text: str
    domain: str


@dataclass(frozen=True)
class Malformed:
    """What is at a place instead of a document. With `fatal` nothing after it can be read."""

    place: int
    reason: str
    fatal: bool = False


def unit(name: str) -> str:
    """What places in a file of this name count."""
    return "row" if name.endswith(".parquet") else "line"


def read(
    stream: BinaryIO, name: str, text: str | None, domain: str | None, start: int = 1
) -> Iterator[Document | Malformed]:
    """The documents of a file from place `start` on, in its order; `text` and `domain` are fields, dotted where nested.

    Where `text` is None the whole row is the document, as JSON. The file's format is that of its name. What cannot be read
    comes as `Malformed`, in its place.
    """
    if is_lfs_pointer(stream):
        reason = "a pointer of git-lfs, not the file itself: run `git lfs pull` in its folder"
        return iter([Malformed(1, reason, fatal=True)])
    stream.seek(0)
    if name.endswith(".parquet"):
        return _parquet(stream, text, domain, start)
    if name.endswith(".txt"):
        return _text(stream, start)
    if name.endswith(".json") and stream.read(_CHUNK).lstrip()[:1] == b"[":
        reason = "a JSON array, where one document a line is read; `jq -c '.[]'` makes lines of it"
        return iter([Malformed(1, reason, fatal=True)])
    stream.seek(0)
    if name.endswith((".json", ".jsonl")) and (encoding := _utf16(stream.read(_CHUNK))):
        return iter([Malformed(1, encoding, fatal=True)])
    stream.seek(0)
    return _json_lines(stream, name, text, domain, start)


def _json_lines(
    stream: BinaryIO, name: str, text: str | None, domain: str | None, start: int
) -> Iterator[Document | Malformed]:
    place = 0
    used = {part for field in (text, domain) if field is not None for part in (field, *field.split("."))}

    def unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if len(row) < len(pairs):  # Python would take the last of them.
            names = [name for name, _ in pairs]
            counted = [name for name in names if text is None or name in used]
            if twice := next((name for name in counted if names.count(name) > 1), None):
                raise ValueError(f"the field {twice!r} is there twice")
        return row

    try:
        for place, line in enumerate(_lines(_decompressed(stream, name)), 1):
            if place < start or not line.strip():
                continue
            try:
                row = json.loads(line, object_pairs_hook=unambiguous)
            except (ValueError, RecursionError) as error:
                yield Malformed(place, f"no JSON ({error})")
                continue
            yield _document(place, row, text, domain)
    except (OSError, EOFError, zlib.error) as error:
        if getattr(error, "errno", None) is not None:  # The disk's or the network's.
            raise
        if "requires too much memory" in str(error):
            reason = (
                "its zstandard frames need a window of more than 128 MiB (`zstd --long`): unpack it by `zstd -d --long=31` "
                "and pack it again without --long"
            )
            yield Malformed(place + 1, reason, fatal=True)
        else:
            yield Malformed(place + 1, f"the file is damaged or ends early ({error})", fatal=True)


def _document(place: int, row: Any, text: str | None, domain: str | None) -> Document | Malformed:
    if not isinstance(row, dict):
        return Malformed(place, f"no JSON object but {_kind(row)}")
    content = json.dumps(row, default=str) if text is None else _field(row, text)
    if content is None and text is not None:
        if _present(row, text):
            return Malformed(place, f"the field {text!r} is null")
        return Malformed(place, f"no field {text!r}; there is {', '.join(map(str, row)) or 'none'}")
    if not isinstance(content, str):
        return Malformed(place, f"the field {text!r} is {_kind(content)} and not text")
    value = None if domain is None else _field(row, domain)
    document = Document(place, content, "" if value is None else str(value))
    for field, said in ((text, document.text), (domain, document.domain)):
        try:
            said.encode()
        except UnicodeEncodeError:
            return Malformed(place, f"the field {field!r} holds half a character (an unpaired surrogate)")
    return document


def _field(row: dict[str, Any], path: str) -> Any:
    """The value of a field: of that very name, dots and all, or inside others."""
    if path in row:
        return row[path]
    parts = path.split(".")
    for length in range(len(parts) - 1, 0, -1):
        inner = row.get(".".join(parts[:length]))
        if isinstance(inner, dict) and (value := _field(inner, ".".join(parts[length:]))) is not None:
            return value
    return None


def _present(row: dict[str, Any], path: str) -> bool:
    """Whether a field is there, be it null."""
    head, _, last = path.rpartition(".")
    inner = _field(row, head) if head else None
    return path in row or (isinstance(inner, dict) and last in inner)


def _column(path: str, names: list[str]) -> str | None:
    """The column of a Parquet file that a field is, or is inside of."""
    parts = path.split(".")
    candidates = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((name for name in candidates if name in names), None)


def _kind(value: Any) -> str:
    kinds = {dict: "an object", bytes: "bytes", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def _decompressed(stream: BinaryIO, name: str) -> Any:
    if name.endswith((".gz", ".zst")):
        if not stream.read(1):
            raise EOFError("no byte in it")
        stream.seek(0)
    if name.endswith(".gz"):
        return gzip.GzipFile(fileobj=stream)
    if name.endswith(".zst"):
        import pyarrow as pa

        return pa.CompressedInputStream(pa.PythonFile(stream, "r"), "zstd")
    return stream


def _lines(stream: Any) -> Iterator[bytes]:
    begun: list[bytes] = []
    while chunk := stream.read(_CHUNK):
        first, *rest = chunk.split(b"\n")
        begun.append(first)
        if rest:
            yield b"".join(begun)
            *whole, last = rest
            yield from whole
            begun = [last]
    if any(begun):
        yield b"".join(begun)


def _parquet(stream: BinaryIO, text: str | None, domain: str | None, start: int) -> Iterator[Document | Malformed]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    place = 0
    try:
        file = pq.ParquetFile(stream)
        names = file.schema_arrow.names
        columns = [_column(field, names) for field in (text, domain) if field is not None]
        if text is not None and _column(text, names) is None:
            yield Malformed(1, f"no column {text!r}; there is {', '.join(file.schema_arrow.names)}", fatal=True)
            return
        if twice := next((c for c in (names if text is None else columns) if names.count(c) > 1), None):
            yield Malformed(1, f"two columns are called {twice!r}: rename one", fatal=True)
            return
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if place + rows < start:
                place += rows
                continue
            read = None if text is None else sorted({column for column in columns if column is not None})
            for batch in file.iter_batches(_ROWS, row_groups=[group], columns=read):
                for i in range(batch.num_rows):
                    place += 1
                    if place >= start:
                        try:
                            yield _document(place, batch.slice(i, 1).to_pylist()[0], text, domain)
                        except UnicodeDecodeError:
                            yield Malformed(place, "not UTF-8")
    except (pa.ArrowException, OSError) as error:
        if getattr(error, "errno", None) is not None:
            raise
        yield Malformed(place + 1, f"the file is damaged or ends early ({error})", fatal=True)


def _utf16(content: bytes) -> str | None:
    """What to say of text that has two bytes for each character, as Windows saves it; None of other text."""
    marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if marked or content.count(0) > len(content) // 4:
        return "not UTF-8 but UTF-16: `iconv -f UTF-16 -t UTF-8` converts it"
    return None


def _text(stream: BinaryIO, start: int) -> Iterator[Document | Malformed]:
    if start > 1:
        return
    content = stream.read(LONGEST_TEXT + 1)
    if len(content) > LONGEST_TEXT:
        yield Malformed(1, "one document of more than 64 MiB; as .jsonl give one document a line", fatal=True)
        return
    if reason := _utf16(content):
        yield Malformed(1, reason, fatal=True)
        return
    try:
        text = content.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        yield Malformed(1, f"not UTF-8 (byte {error.start + 1:,})", fatal=True)
        return
    if text:
        yield Document(1, text, "")
