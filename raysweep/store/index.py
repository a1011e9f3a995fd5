"""The tables of many cells at once, for the price of a listing and one file where they were read before.

`<store>/index/<directory>-<schema>.parquet` keeps the rows of every file that was read and verified, under the file's
name, size and time of change; only what is new or has changed since is opened. Nothing depends on an index: one that lacks
something, is damaged or is deleted is rebuilt from the tables.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pyarrow as pa

from raysweep.errors import UserError
from raysweep.store.schemas import INDEX, SCHEMA_VERSION
from raysweep.store.store import Store

# An index is written again when so many files were not in it.
WORTH_WRITING = 64


def read_all(store: Store, directory: str, schema: pa.Schema, rows: bool = True) -> dict[str, list[dict[str, Any]]]:
    """The rows of every table under `directory` that can be read, by the cell that the file is named after.

    Without `rows` only which there are: each with an empty list. Times of day come back as text.
    """
    path = f"index/{directory.replace('/', '-')}-{SCHEMA_VERSION}.parquet"
    indexed = {}
    files = store.files(directory)
    if len(files) > WORTH_WRITING:
        with suppress(UserError):
            indexed = {row["file"]: row for row in store.read_rows(path, INDEX) or []}
    rows_of: dict[str, str] = {}
    unread = []
    for name, size, changed in files:
        row = indexed.get(name)
        if row is not None and (row["size"], row["changed"]) == (size, changed):
            rows_of[name] = row["rows"]
        else:
            unread.append(name)

    def read(name: str) -> str | None:
        content = store.read_rows(f"{directory}/{name}", schema)
        return None if content is None else json.dumps(content if rows else [], default=str)

    with ThreadPoolExecutor(16) as threads:
        rows_of |= {
            name: text for name, text in zip(unread, threads.map(read, unread), strict=True) if text is not None
        }
    if len(unread) > WORTH_WRITING:
        index = [
            {"file": name, "size": size, "changed": changed, "rows": rows_of[name]}
            for name, size, changed in files
            if name in rows_of
        ]
        with suppress(UserError):  # Whoever may only read has it slower, no more.
            store.write_table(path, index, INDEX)
    return {name.removesuffix(".parquet"): json.loads(text) for name, text in rows_of.items()}
