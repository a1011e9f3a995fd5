"""What a build of a corpus shows while it goes on: how far it is, what it has made, how fast, and the time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from raysweep.cli.console import duration

if TYPE_CHECKING:
    from raysweep.corpora.blocks import Part

# Between two lines where there is no terminal to draw a bar on.
LINE_EVERY = 30.0

_WHAT = {"all": "tokenize", "held-out": "tokenize evaluation text", "train": "tokenize training text"}


class Watch:
    """Follows one pass over the files of a corpus, some blocks of which may have been made before."""

    def __init__(self, corpus: str, which: str, parts: list[Part], before: Iterable[dict[str, Any]]) -> None:
        self._title = f"{corpus}: {_WHAT[which]}"
        self._of = max(1, sum(part.file.size for part in parts))
        self._read: dict[str, int] = {}
        self.documents = self.bytes = self.tokens = 0
        for record in before:
            self._count(record)
        self._at_first = sum(self._read.values()), self.bytes
        self._begun = self._said = time.monotonic()
        self._drawn = sys.stderr.isatty()
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[said]}"),
            TimeElapsedColumn(), console=Console(stderr=True), disable=not self._drawn,
        )  # fmt: skip
        self._task = self._progress.add_task(self._title, total=self._of, said="")

    def __enter__(self) -> Watch:
        self._progress.start()
        self._draw()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._draw()
        self._progress.stop()
        if not self._drawn and time.monotonic() - self._begun > LINE_EVERY:
            print(self.line(), file=sys.stderr, flush=True)

    def block(self, record: dict[str, Any]) -> None:
        """A block was made."""
        self._count(record)
        self._draw()

    def say(self, text: str) -> None:
        """Show a line beside the bar."""
        if self._drawn:
            self._progress.console.print(text)
        else:
            print(text, file=sys.stderr, flush=True)

    def line(self) -> str:
        """All of it in one line."""
        done, bytes_before = self._at_first
        seconds = time.monotonic() - self._begun
        read = sum(self._read.values())
        rate = (self.bytes - bytes_before) / seconds if seconds else 0.0
        left = (self._of - read) * seconds / (read - done) if read > done else None
        said = f"{self.documents:,} documents · {self.bytes / 1e6:,.1f} MB of text · {self.tokens:,} tokens"
        if rate:
            said += f" · {rate / 1e6:.2f} MB/s"
        if left is not None and read < self._of:
            said += f" · about {duration(left)} left"
        return f"{self._title} {100 * read / self._of:.0f}% · {said}"

    def _count(self, record: dict[str, Any]) -> None:
        part = record["part"]
        self._read[part] = max(self._read.get(part, 0), record["position"])
        for file in record["files"]:
            for counts in file["domains"].values():
                self.documents += counts["documents"]
                self.bytes += counts["bytes"]
                self.tokens += counts["tokens"]

    def _draw(self) -> None:
        if self._drawn:
            said = self.line().partition("% · ")[2]
            self._progress.update(self._task, completed=sum(self._read.values()), said=said)
        elif time.monotonic() - self._said > LINE_EVERY:
            self._said = time.monotonic()
            print(self.line(), file=sys.stderr, flush=True)
