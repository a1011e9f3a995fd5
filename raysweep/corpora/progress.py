"""How far the build of a corpus is, told to whoever shows it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class CorpusProgress:
    """How far one phase of building or copying a corpus is.

    `done` of `total` are bytes, documents or files, as the phase has them. While text is tokenized there are also what it
    has become so far, the rate, and the time left in seconds (None where it is not known yet).
    """

    corpus: str
    phase: str
    done: float
    total: float
    documents: int = 0
    text_bytes: int = 0
    tokens: int = 0
    bytes_per_second: float = 0.0
    seconds_left: float | None = None
    dashboard: str = ""


Report = Callable[[CorpusProgress], None]


def ignore(progress: CorpusProgress) -> None:
    """The report of a build that nobody watches."""


class BuildProgress:
    """Follows one pass over `total` bytes of a corpus's files, some blocks of which may have been made before."""

    def __init__(self, corpus: str, phase: str, total: int, before: Iterable[dict[str, Any]], report: Report) -> None:
        self._corpus, self._phase, self._report = corpus, phase, report
        self._total = max(1, total)
        self._read: dict[str, int] = {}
        self._documents = self._bytes = self._tokens = 0
        for record in before:
            self._count(record)
        self._read_before, self._bytes_before = sum(self._read.values()), self._bytes
        self._begun = time.monotonic()
        self.dashboard = ""
        self.tell()

    def block(self, record: dict[str, Any]) -> None:
        """A block was made."""
        self._count(record)
        self.tell()

    def tell(self) -> None:
        """Report how far the pass is."""
        seconds = time.monotonic() - self._begun
        read = sum(self._read.values())
        advanced = read > self._read_before
        self._report(
            CorpusProgress(
                self._corpus,
                self._phase,
                read,
                self._total,
                self._documents,
                self._bytes,
                self._tokens,
                (self._bytes - self._bytes_before) / seconds if seconds else 0.0,
                (self._total - read) * seconds / (read - self._read_before) if advanced else None,
                self.dashboard,
            )
        )

    def _count(self, record: dict[str, Any]) -> None:
        part = record["part"]
        self._read[part] = max(self._read.get(part, 0), record["position"])
        for file in record["files"]:
            for counts in file["domains"].values():
                self._documents += counts["documents"]
                self._bytes += counts["bytes"]
                self._tokens += counts["tokens"]
