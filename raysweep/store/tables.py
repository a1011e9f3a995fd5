"""Tables as the bytes of Parquet files: under checksums, and in every version of the schemas that can be read."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raysweep.errors import reason
from raysweep.store.schemas import READABLE, SCHEMA_VERSION, defaults

_CHECKSUM = b"raysweep_rows_sha256"


class Damaged(Exception):
    """A table is not what was written; the message says why."""


class OtherVersion(Exception):
    """A table was written under a version of the schemas that this raysweep cannot read; the message is the version."""


def encode(rows: list[dict[str, Any]], schema: pa.Schema) -> bytes:
    """The Parquet file of rows, with the checksum of the rows in it."""
    table = pa.Table.from_pylist(rows, schema=schema)
    table = table.replace_schema_metadata({**schema.metadata, _CHECKSUM: checksum(table.to_pylist())})
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, write_page_checksum=True)
    content: bytes = buffer.getvalue().to_pybytes()
    return content


def decode(content: bytes, schema: pa.Schema) -> pa.Table:
    """The table in a Parquet file, as `schema` has it now. Raises `Damaged` and `OtherVersion`."""
    try:
        table = read_parquet(pa.BufferReader(content))
        metadata = table.schema.metadata or {}
        version = metadata.get(b"raysweep_schema", b"").decode()
        if version not in READABLE:
            raise OtherVersion(version)
        present = [name for name in schema.names if name not in defaults(version)]
        table = table.select(present)
        table = table.cast(pa.schema([schema.field(name) for name in present], schema.metadata))
        # The checksums of Parquet's pages leave out what describes the pages.
        if version != "1" and metadata.get(_CHECKSUM, b"").decode() != checksum(table.to_pylist()):
            raise ValueError("its rows are not what was written")
        return with_defaults(table, schema, version).select(schema.names).cast(schema)
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise Damaged(reason(error)) from None


def with_defaults(table: pa.Table, schema: pa.Schema, version: str) -> pa.Table:
    """A table of a version, and the columns of `schema` that this version did not have yet, as every cell had them then."""
    for name, value in defaults(version).items():
        if name in schema.names:
            table = table.append_column(schema.field(name), pa.array([value] * len(table), schema.field(name).type))
    return table


def read_parquet(source: Any) -> pa.Table:
    """A Parquet file's table, whose pages are what their checksums say.

    On this thread alone: `pq.read_table` leaves it to threads of Arrow's, and one that still holds a Python object when the
    interpreter ends aborts the process (apache/arrow issues 34314, 50482; here once in 150 commands on a busy machine).
    """
    with pq.ParquetFile(source, page_checksum_verification=True, pre_buffer=False) as file:
        return file.read(use_threads=False)


def sealed(body: dict[str, Any]) -> bytes:
    """A record of the store as JSON, with its schema and the checksum of it all."""
    body = {"schema": SCHEMA_VERSION, **body}
    return json.dumps(body | {"sha256": checksum(body)}, indent=1, sort_keys=True).encode()


def checksum(content: Any) -> str:
    """SHA-256 of rows, or of anything else that JSON can hold: floats count to the last bit."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
