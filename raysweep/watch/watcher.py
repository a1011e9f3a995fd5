"""Reads a sweep again and again in one thread, and has its verdicts computed in a process of their own."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import uuid
from typing import Any, Protocol

import pandas as pd

from raysweep.errors import StoreError, UserError, one_line
from raysweep.space.space import Space
from raysweep.watch.snapshot import Snapshot

# Seconds from one reading to the next. At most a tenth of the time is spent on it, but once a minute it is read.
READ_EVERY = 2.0
_SELDOM = 60.0
_SHARE_OF_READING = 0.1

# Verdicts are computed anew when so much more is finished, and at most a fifth of the time is spent on it.
_WORTH_COMPUTING = 1.1
_SHARE_OF_VERDICTS = 0.2
_AGAIN_AFTER = 60.0

# A page shows so many failures, and so much of each.
_MOST_FAILURES = 200
_MOST_LETTERS = 1000


class Source(Protocol):
    """What a page shows: `snapshot.Reader`, `published.PublishedReader`."""

    space: Space
    curve_columns: list[str]

    def planned(self) -> Snapshot: ...
    def read(self) -> Snapshot: ...
    def curves(self, column: str, rows: list[int]) -> pd.DataFrame: ...


class Watcher:
    """While in its context it has the newest snapshot of a sweep."""

    def __init__(self, source: Source, fixed: bool, place: str, verdict_arguments: list[str], again: str) -> None:
        self.source = source
        self.fixed = fixed
        """Whether nothing will change."""
        self.place = place
        """The folder or URI of what is shown."""
        self.again = again
        """The command that goes on with the sweep, and tries again what failed."""
        self.epoch = uuid.uuid4().hex
        """Of this process: versions count from its start."""
        self.snapshot = source.planned()
        self.read_at: float | None = None
        self.problem = ""
        """Why the store cannot be read; empty while it can."""
        self._lost_since = ""
        self.verdicts = Verdicts(verdict_arguments)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self.verdicts.end()

    def _keep(self) -> None:
        pause, first = 0.0, True
        while not self._over.wait(pause):
            began = time.monotonic()
            try:
                self.snapshot = self.source.read()
                self.read_at, self.problem = time.time(), ""
            except (UserError, OSError) as error:
                self._lost(str(error))
            except Exception as error:  # The page goes on with what it has, and says so.
                self._lost(f"{type(error).__name__}: {one_line(error)}")
            if self.read_at is not None and not self.problem:
                self.verdicts.consider(self.snapshot.finished, len(self.source.space.cells))
            # The first reading opens every file; those after it are another matter.
            spent = time.monotonic() - began if first is False else 0.0
            first = first and self.read_at is None
            pause = min(max(READ_EVERY, spent / _SHARE_OF_READING), _SELDOM)

    def _lost(self, why: str) -> None:
        if not self.problem:
            self._lost_since = time.strftime("%H:%M:%S")
        self.problem = f"since {self._lost_since} the store cannot be read: {why}. What was read before is shown."

    def state(self, version: str) -> dict[str, Any]:
        """What the page asks for every few seconds; what the columns are only where it does not have this version."""
        now = self.snapshot
        described = {}
        if version != f"{self.epoch}-{now.version}":
            failures = [[cell, stage, abbreviated(error)] for cell, stage, error in now.failures[:_MOST_FAILURES]]
            described = now.content.described() | {"failures": failures, "failed": len(now.failures)}
        return described | {
            "count": len(now.content.cells), "epoch": self.epoch, "version": now.version, "fixed": self.fixed,
            "name": self.source.space.name, "now": time.time(), "read_at": self.read_at, "problem": self.problem,
            "counts": now.counts, "evaluations": now.evaluations, "pace": now.pace, "dashboard": now.dashboard,
            "retry": self.again,
            "verdicts": {"said": self.verdicts.said, "stamp": self.verdicts.stamp},
        }  # fmt: skip

    def curves(self, column: str, rows: list[int]) -> pd.DataFrame:
        """See `snapshot.Reader.curves`. Raises `UserError` for a column that is none."""
        if column not in self.source.curve_columns:
            raise UserError(f"{column} is not logged over training")
        try:
            return self.source.curves(column, rows)
        except OSError as error:
            raise StoreError(str(error)) from None


class Verdicts:
    """The newest scorecard, and when to compute another."""

    def __init__(self, arguments: list[str]) -> None:
        self._arguments = arguments
        self.html = ""
        self._said_of_html = ""
        self.said = "Nothing is finished yet."
        self.stamp = 0
        """Grows with every result."""
        self._of = 0
        self._not_before = 0.0
        self._process: subprocess.Popen[str] | None = None

    def consider(self, finished: int, planned: int) -> None:
        """Begin to compute where enough more is finished than at the last time."""
        more = finished > self._of and (finished >= self._of * _WORTH_COMPUTING or finished == planned)
        if self._process is not None or not more or time.monotonic() < self._not_before:
            return
        began = time.monotonic()
        try:
            self._process = process = subprocess.Popen(  # noqa: S603 (this Python, without a shell)
                [sys.executable, "-m", "raysweep.watch.verdicts", *self._arguments],
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            )  # fmt: skip
            self.said = f"Computed now from {_cells(finished)}, which takes a minute or more.{self._shown()}"
            threading.Thread(target=self._collect, args=(process, finished, began), daemon=True).start()
        except (OSError, RuntimeError) as error:  # Too many processes, or threads.
            self.said = f"They cannot be computed now: {one_line(error)}.{self._shown()}"
            self._not_before, self._process = began + _AGAIN_AFTER, None

    def _shown(self) -> str:
        """Which verdicts are on the page, if any."""
        return f" Shown: {self._said_of_html[0].lower()}{self._said_of_html[1:]}" if self.html else ""

    def _collect(self, process: subprocess.Popen[str], finished: int, began: float) -> None:
        printed, _ = process.communicate()
        try:
            found = json.loads(printed)
        except ValueError:
            found = {"reason": f"the process that computes it ended with status {process.returncode}"}
        if "html" in found:
            self.html = found["html"]
            final = found["analysed"] == found["planned"]
            so_far = "" if final else " so far: they may change with the cells that are not finished"
            self.said = (
                f"From {found['analysed']} of {found['planned']} cells{so_far}. Computed {time.strftime('%H:%M')}."
            )
            self._said_of_html, self._of = self.said, finished
        else:
            self.said = f"From {_cells(finished)} nothing can be said yet: {found['reason']}.{self._shown()}"
        self.stamp += 1
        # What came to nothing is tried again later, with as many cells.
        taken = time.monotonic() - began
        self._not_before = time.monotonic() + max(taken / _SHARE_OF_VERDICTS, 0 if "html" in found else _AGAIN_AFTER)
        self._process = None

    def end(self) -> None:
        """Stop what computes."""
        process = self._process
        if process is not None:
            process.kill()


def abbreviated(text: str) -> str:
    """A text of bounded length."""
    return text if len(text) <= _MOST_LETTERS else f"{text[:_MOST_LETTERS]}… ({len(text):,} letters)"


def _cells(number: int) -> str:
    return f"{number} finished cell{'s' if number != 1 else ''}"
