"""The tables of many cells at once, for the price of a listing and one file where they were read before.

`<store>/index/<directory>-<schema>.parquet` keeps the rows of every file that was read and verified, under the file's
name, size and time of change; only what is new or has changed since is opened. Nothing depends on an index: one that lacks
something, is damaged or is deleted is rebuilt from the tables. A store that `remembers` keeps the rows in memory, too.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pyarrow as pa

from raysweep.errors import UserError
from raysweep.store.schemas import INDEX, SCHEMA_VERSION
from raysweep.store.store import Store

# An index is written again when so many files were not in it.
WORTH_WRITING = 64


Rows = list[dict[str, Any]]


def read_all(
    store: Store, directory: str, schema: pa.Schema, keep: Callable[[Rows], Rows] = list
) -> dict[str, Rows]:  # fmt: skip
    """The rows of every table under `directory` that can be read, by the cell that the file is named after.

    `keep` chooses those of each table that are kept, the same for a directory wherever it is read. Times of day come back
    as text.
    """
    path = f"index/{directory.replace('/', '-')}-{SCHEMA_VERSION}.parquet"
    files = {name: (size, changed) for name, size, changed in store.files(directory)}
    remembered = store.remembered.get(directory, {})
    found = {name: remembered[name] for name, about in files.items() if remembered.get(name, (None,))[0] == about}
    indexed = {}
    if len(files) - len(found) > WORTH_WRITING:
        with suppress(UserError):
            indexed = {row["file"]: row for row in store.read_rows(path, INDEX) or []}
    unread = []
    for name in [name for name in files if name not in found]:
        row = indexed.get(name)
        if row is not None and (row["size"], row["changed"]) == files[name]:
            found[name] = files[name], json.loads(row["rows"])
        else:
            unread.append(name)

    def read(name: str) -> Rows | None:
        content = store.read_rows(f"{directory}/{name}", schema)
        # Through JSON, so that it is the same as from an index.
        return None if content is None else json.loads(json.dumps(keep(content), default=str))

    with ThreadPoolExecutor(16) as threads:
        for name, content in zip(unread, threads.map(read, unread), strict=True):
            if content is not None:
                found[name] = files[name], content
    if len(unread) > WORTH_WRITING:
        index = [
            {"file": name, "size": size, "changed": changed, "rows": json.dumps(content)}
            for name, ((size, changed), content) in found.items()
        ]
        with suppress(UserError):  # Whoever may only read has it slower, no more.
            store.write_table(path, index, INDEX)
    if store.remembers:
        store.remembered[directory] = found
    # Whoever gets the rows may change them.
    return {name.removesuffix(".parquet"): [dict(row) for row in found[name][1]] for name in files if name in found}
