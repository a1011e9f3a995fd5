"""Bars on standard error for work that takes a while; where that is not a terminal, a line now and then."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from raysweep.cli.console import make_console
from raysweep.corpora.progress import CorpusProgress
from raysweep.text import duration

LINE_EVERY = 30.0


class ProgressBars:
    """A bar for each part of some work while in the context.

    Where standard error is no terminal there is a line when a part begins, unless it is the build of a corpus, and another
    every half minute.
    """

    def __init__(self) -> None:
        self._console = make_console(stderr=True)
        self._progress: Progress | None = None
        self._tasks: dict[str, Any] = {}
        self._said: dict[str, float] = {}
        self._dashboard = ""

    def __enter__(self) -> ProgressBars:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the bars away; the next step draws new ones."""
        if self._progress is not None:
            self._progress.stop()
            self._progress, self._tasks = None, {}

    def step(self, part: str, done: float, total: float, detail: str = "") -> None:
        """So much is `done` of the `total` of a part."""
        if not self._console.is_terminal:
            self._line(part, done, total, detail)
            return
        if self._progress is None:
            columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
            self._progress = Progress(*columns, TextColumn("{task.fields[detail]}"), console=self._console)
            self._progress.start()
        if part not in self._tasks:
            self._tasks[part] = self._progress.add_task(part, total=total, detail=detail)
        self._progress.update(self._tasks[part], completed=done, total=total, detail=detail)

    def corpus(self, progress: CorpusProgress) -> None:
        """Show how far the build of a corpus is."""
        if progress.dashboard != self._dashboard:
            self._dashboard = progress.dashboard
            self._console.print(f"dashboard {progress.dashboard}")
        part = f"{progress.corpus}: {progress.phase}"
        # Most builds take no time, and what follows should not have to be looked for.
        self._said.setdefault(part, time.monotonic())
        self.step(part, progress.done, progress.total, _detail(progress))

    def _line(self, part: str, done: float, total: float, detail: str) -> None:
        now = time.monotonic()
        if part not in self._said:
            self._said[part] = now
            self._console.print(f"{part} ...", soft_wrap=True)
        elif now - self._said[part] > LINE_EVERY:
            self._said[part] = now
            share = f"{100 * done / total:.0f}%" if total else ""
            self._console.print(" · ".join(filter(None, [f"{part} {share}", detail])), soft_wrap=True)


def _detail(progress: CorpusProgress) -> str:
    if not progress.documents:
        return ""
    text = (
        f"{progress.documents:,} documents · {progress.text_bytes / 1e6:,.1f} MB of text · {progress.tokens:,} tokens"
    )
    if progress.bytes_per_second:
        text += f" · {progress.bytes_per_second / 1e6:.2f} MB/s"
    if progress.seconds_left is not None and progress.done < progress.total:
        text += f" · about {duration(progress.seconds_left)} left"
    return text
