"""Documents out of files in every format, and the place and reason of what is none."""

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysweep.corpora.files import Document, Malformed, read

ROWS = [{"text": f"document {i} ü", "meta": {"set": "ab"[i % 2]}} for i in range(1, 1001)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return bytes(sink.getvalue())


def parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=90)
    return sink.getvalue()


def all_of(content: bytes, name: str, text: str = "text", domain: str | None = "meta.set", start: int = 1) -> list[Any]:
    return list(read(io.BytesIO(content), name, text, domain, start))


@pytest.mark.parametrize("start", [1, 2, 90, 91, 1000, 1001])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", LINES),
        ("a.jsonl", LINES.rstrip(b"\n")),
        ("a.jsonl", LINES.replace(b"\n", b"\r\n")),
        ("a.jsonl.gz", gzip.compress(LINES)),
        ("a.jsonl.gz", gzip.compress(LINES[:5000]) + gzip.compress(LINES[5000:])),
        ("a.jsonl.zst", zstd(LINES)),
        ("a.jsonl.zst", zstd(LINES[:5000]) + zstd(LINES[5000:])),
        ("a.parquet", parquet(ROWS)),
    ],
)
def test_every_format_gives_the_documents_from_any_place_on(name: str, content: bytes, start: int) -> None:
    expected = [Document(i, row["text"], row["meta"]["set"]) for i, row in enumerate(ROWS, 1)]
    assert all_of(content, name, start=start) == expected[start - 1 :]


def test_blank_lines_count_as_lines_and_are_no_documents() -> None:
    assert all_of(b'\n{"text": "a"}\n  \n{"text": "b"}', "a.jsonl") == [Document(2, "a", ""), Document(4, "b", "")]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{not json", "no JSON"),
        (b'{"text": "cut', "no JSON"),
        (b'{"text": "\xff"}', "no JSON"),
        (b"[1, 2]", "no JSON object but a list"),
        (b'{"content": "x", "id": 1}', "no field 'text'; there is content, id"),
        (b'{"text": null}', "the field 'text' is null"),
        (b'{"text": 3.5}', "the field 'text' is a number and not text"),
        (b'{"text": {"a": 1}}', "the field 'text' is an object and not text"),
        (b'{"text": "\\ud800"}', "half a character"),
        (b"[" * 100_000, "no JSON"),
        (b'{"text": "a", "meta": {"set": "\\udc00"}}', "half a character"),
    ],
)
def test_a_line_that_is_no_document_has_its_place_and_what_follows_is_read(line: bytes, reason: str) -> None:
    first, bad, last = all_of(b'{"text": "a"}\n' + line + b'\n{"text": "b"}\n', "a.jsonl")
    assert (first, last) == (Document(1, "a", ""), Document(3, "b", ""))
    assert (bad.place, bad.fatal) == (2, False)
    assert reason in bad.reason


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_a_file_that_ends_early_or_is_damaged_is_never_taken_for_a_whole_one(name: str) -> None:
    content = {"gz": gzip.compress(LINES), "zst": zstd(LINES), "parquet": parquet(ROWS)}[name.rpartition(".")[2]]
    for end in (0, 1, 10, len(content) // 3, len(content) // 2, len(content) - 9, len(content) - 1):
        *documents, last = all_of(content[:end], name)
        assert isinstance(last, Malformed), end
        assert last.fatal
        assert "ends early" in last.reason
        # Up to there the documents are right; where the cut is inside a line that line is none.
        whole = [found for found in documents if isinstance(found, Document)]
        assert [document.text for document in whole] == [row["text"] for row in ROWS[: len(whole)]]
        assert len(documents) - len(whole) <= 1


def test_parquet_without_the_column_names_those_there_are() -> None:
    (bad,) = all_of(parquet([{"content": "x", "id": 1}]), "a.parquet")
    assert bad == Malformed(1, "no column 'text'; there is content, id", fatal=True)
    assert all_of(parquet([{"content": "x"}]), "a.parquet", text="content", domain=None) == [Document(1, "x", "")]
    _, bad = all_of(parquet([{"text": "x"}, {"text": None}]), "a.parquet", domain=None)
    assert bad.place == 2


def test_parquet_that_is_not_utf_8_has_its_row() -> None:
    sink = io.BytesIO()
    buffers = pa.array([b"a", b"\xff", b"c"], pa.binary()).buffers()
    column = pa.StringArray.from_buffers(3, buffers[1], buffers[2])
    pq.write_table(pa.table({"text": column}), sink)
    first, bad, last = all_of(sink.getvalue(), "a.parquet", domain=None)
    assert (first.text, last.text) == ("a", "c")
    assert bad == Malformed(2, "not UTF-8")


def test_an_error_of_the_disk_is_not_the_file_s() -> None:
    class Disk(io.BytesIO):
        def read(self, *_: Any) -> bytes:
            raise OSError(5, "Input/output error")

    for name in ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst"):
        with pytest.raises(OSError, match="Input/output error"):
            list(read(Disk(), name, "text", None))


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    assert all_of("a\n\nb ü".encode(), "a.txt") == [Document(1, "a\n\nb ü", "")]
    assert all_of(b"", "a.txt") == []
    (bad,) = all_of(b"abc\xff", "a.txt")
    assert bad == Malformed(1, "not UTF-8 (byte 4)", fatal=True)


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_field_may_have_dots_in_its_name(name: str) -> None:
    def first(row: dict[str, Any], text: str, domain: str | None = None) -> Any:
        content = parquet([row]) if name == "a.parquet" else json.dumps(row).encode()
        return all_of(content, name, text, domain)[0]

    assert first({"meta.text": "whole", "meta": {"text": "inner"}}, "meta.text").text == "whole"
    assert first({"meta": {"text": "inner"}, "text": "other"}, "meta.text").text == "inner"
    assert first({"a.b": {"c": "mixed"}, "text": "x"}, "text", "a.b.c").domain == "mixed"
    assert first({"a": {"b.c": "mixed"}, "text": "x"}, "text", "a.b.c").domain == "mixed"
    assert "no " in first({"meta": {"texts": "x"}}, "meta.text").reason


def frame(content: bytes, window: int) -> bytes:
    """A zstandard frame of one raw block, with a window of 2**window bytes (RFC 8878, 3.1.1)."""
    header = b"\x28\xb5\x2f\xfd" + bytes([0, (window - 10) << 3])
    return header + (len(content) << 3 | 1).to_bytes(3, "little") + content


def test_a_zstandard_window_that_is_too_large_is_not_called_damage() -> None:
    skippable = bytes.fromhex("502a4d18") + (3).to_bytes(4, "little") + b"abc"
    for content in (frame(LINES, 27), skippable + frame(LINES[:5000], 20) + skippable + frame(LINES[5000:], 20)):
        assert [document.text for document in all_of(content, "a.jsonl.zst")] == [row["text"] for row in ROWS]
    (bad,) = all_of(frame(LINES, 28), "a.jsonl.zst")
    assert bad.fatal
    assert "zstd -d --long=31" in bad.reason
    assert "damaged" not in bad.reason


def test_a_field_that_is_there_twice_is_malformed_where_it_is_read() -> None:
    twice = b'{"text": "a", "text": "b"}\n{"text": "c", "id": 1, "id": 2}\n{"text": "d", "meta": {"set": "x", "set": "y"}}\n'
    first, second, third = all_of(twice, "a.jsonl")
    assert (first.place, first.reason) == (1, "no JSON (the field 'text' is there twice)")
    assert second == Document(2, "c", "")
    assert "'set' is there twice" in third.reason
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    sink = io.BytesIO()
    pq.write_table(table, sink)
    (refused,) = all_of(sink.getvalue(), "a.parquet")
    assert refused.fatal
    assert "two columns are called 'text'" in refused.reason
