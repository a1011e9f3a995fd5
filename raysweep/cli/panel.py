"""A sweep while it runs: on a terminal one live panel, elsewhere a line for every finished cell and every half minute."""

from __future__ import annotations

import time
from contextlib import suppress
from types import TracebackType

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from raysweep.cli import messages
from raysweep.cli.console import console, escape, say
from raysweep.cli.progress_bars import ProgressBars
from raysweep.cluster.watchdog import end_process
from raysweep.corpora.progress import CorpusProgress
from raysweep.sweep.events import (
    CellFailed,
    CellFinished,
    ClusterConnected,
    ClusterLost,
    Ending,
    Event,
    Heartbeat,
    NodesChanged,
    SweepSurveyed,
    Waiting,
    Warned,
)
from raysweep.sweep.state import RunState
from raysweep.text import abbreviate, duration, resources

LINE_EVERY = 30.0


class SweepView:
    """Shows the events of a sweep while in the context."""

    def __init__(self) -> None:
        self.state = RunState()
        self._bars = ProgressBars()
        self._live: Live | None = None
        self._line_at = 0.0

    def __enter__(self) -> SweepView:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bars.close()
        if self._live is not None:
            self._live.stop()

    def __call__(self, event: Event) -> None:
        """Show an event."""
        cell = dict(self.state.running.get(getattr(event, "cell", ""), {}))
        self.state.apply(event)
        match event:
            case SweepSurveyed():
                if event.survey.states:
                    messages.announce(event)
            case CorpusProgress():
                self._bars.corpus(event)
            case ClusterConnected():
                self._bars.close()
                say(f"dashboard {event.dashboard or 'off'}")
                self._line_at = time.monotonic()
                if console.is_terminal:
                    self._live = Live(self, console=console, refresh_per_second=2, transient=True)
                    self._live.start()
            case NodesChanged():
                what = "joined" if event.now > event.before else "[yellow]left[/]"
                say(f"nodes {what}: the cluster has {event.now} nodes with {resources(event.cpus, event.gpus)}")
            case Waiting():
                say(f"[yellow]waiting[/] {escape(event.reason)}" if event.reason else "there is room again")
            case Warned():
                say(f"[yellow]warning[/] {escape(event.message)}")
            case Ending():
                cells = "the cell in training writes" if event.cells == 1 else f"{event.cells} cells in training write"
                say(f"stopping: {cells} a checkpoint first; a second Ctrl-C ends at once")
            case CellFinished():
                seconds = event.at - cell.get("since", event.at)
                line = escape(messages.cell_line({"cell": event.cell} | cell, short=True))
                say(f"{self._number()} [green]done[/] {line} in {duration(seconds)}")
            case CellFailed():
                say(f"{self._number()} [red]failed[/] {event.cell}: {escape(event.errors[0])}")
            case Heartbeat():
                if not console.is_terminal and time.monotonic() - self._line_at > LINE_EVERY:
                    self._line_at = time.monotonic()
                    say(self._summary())
            case ClusterLost():
                if self._live is not None:
                    with suppress(Exception):
                        self._live.stop()
                # The main thread hangs in a call of Ray's, and may for a minute or for ever.
                end_process()

    def _number(self) -> str:
        before = self.state.complete_before
        return escape(f"[{before + self.state.ended}/{before + len(self.state.planned)}]")

    def _summary(self) -> str:
        pace = self.state.pace()
        if self.state.waiting:
            left = f"waiting: {self.state.waiting}"
        elif pace.share >= 1:
            left = "evaluating"
        else:
            left = f"about {duration(pace.seconds_left)} left" if pace.seconds_left is not None else "starting"
        counts = ", ".join(f"{number} {name}" for name, number in self.state.counts().items())
        done = f"{pace.share:.0%} of {abbreviate(self.state.tokens_planned)} tokens"
        return f"{counts} · {done} · {abbreviate(pace.tokens_per_second)} tokens/s · {left}"

    def __rich__(self) -> Group:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for heading in ("cell", "", "step", "tokens/s", "val. loss", "effective rank"):
            # On a narrow terminal an id is folded, never cut.
            table.add_column(
                heading,
                justify="left" if heading in ("cell", "") else "right",
                no_wrap=heading != "cell",
                overflow="fold",
            )
        for cell in list(self.state.running.values()):
            step, steps, trains = cell.get("step"), cell.get("steps"), messages.trains(cell)
            table.add_row(
                cell["cell"],
                ProgressBar(total=steps or 1, completed=step or 0, width=12),
                "starting" if cell.get("starting") else f"{step}/{steps}" if trains else "evaluating",
                abbreviate(cell["tokens_per_second"]) if trains and step else "",
                f"{cell['validation_loss']:.3f}" if "validation_loss" in cell else "",
                f"{cell['effective_rank_W']:.3f}" if "effective_rank_W" in cell else "",
            )
        bar = Table.grid()
        bar.add_row(ProgressBar(total=1.0, completed=self.state.pace().share, width=min(80, console.width)))
        return Group(bar, Text(self._summary()), table)
