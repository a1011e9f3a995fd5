"""Documents that a user's own function yields, written once into the cache as lines of JSON.

There they are read as a folder is. A function that is interrupted begins again; one whose code has changed is another
source.
"""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from raysweep.cache import cache
from raysweep.corpora.exclusive import made_once
from raysweep.corpora.progress import CorpusProgress, Report
from raysweep.errors import UserError, first_line
from raysweep.space import plugins
from raysweep.space.plugins import SOURCES

# Characters of one file: several are tokenized at the same time.
FILE = 64 << 20

# Seconds between two reports.
_EVERY = 0.5


def version(name: str) -> str:
    """What tells one version of the function from another. Raises `UserError` where it cannot be imported."""
    try:
        plugins.load_function(name, SOURCES)
        return plugins.version(name, SOURCES)
    except ValueError as error:
        raise UserError(str(error)) from None


def written(name: str, report: Report) -> Path:
    """The folder of what the function yields; it is called first where that is not there.

    Raises `UserError` where it raises, or yields something else than documents.
    """
    key = re.sub(r"[^\w.-]+", "-", f"{name}-{version(name)}")
    folder = cache() / "sources" / key
    made_once(folder, folder, lambda unfinished: _write(name, unfinished, report), resume=False)
    return folder


def documents(name: str) -> Iterator[str]:
    """What the function yields, each as a line of JSON. Raises `UserError` with the number of the document."""
    function = plugins.load_function(name, SOURCES)
    number = 0
    try:
        yielded = function()
        if not isinstance(yielded, Iterable) or isinstance(yielded, str | dict):
            raise UserError(f"{name} returned {type(yielded).__name__}: it must yield documents")
        for number, document in enumerate(yielded, 1):
            yield _line(name, number, document)
    except UserError:
        raise
    except Exception as error:  # Of any kind: it is the user's code.
        raise UserError(
            f"{name}: {plugins.place(error)}{type(error).__name__}: {first_line(error)} (after {number:,} documents)"
        ) from None


def _line(name: str, number: int, document: Any) -> str:
    row = {"text": document} if isinstance(document, str) else document
    if not isinstance(row, dict):
        raise UserError(
            f"{name}: document {number:,} is {type(document).__name__}: a text is asked for, or a dict of fields such as "
            "text and domain"
        )
    try:
        return json.dumps(row)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name}: document {number:,} is no JSON: {error}") from None


def _write(name: str, folder: Path, report: Report) -> None:
    lines = documents(name)
    told, count = 0.0, 0
    for part in itertools.count():
        size = 0
        with (folder / f"{part:05}.jsonl").open("w", encoding="utf-8") as file:
            for line in lines:
                file.write(line + "\n")
                size, count = size + len(line), count + 1
                if time.monotonic() - told > _EVERY:
                    told = time.monotonic()
                    report(CorpusProgress(name, f"write what it yields: {count:,} documents so far", 0, 1))
                if size >= FILE:
                    break
            else:
                break
    if not count:
        raise UserError(f"{name} yields no document")
