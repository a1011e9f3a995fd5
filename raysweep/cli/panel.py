"""A sweep while it runs: on a terminal one live panel, elsewhere a line for every finished cell and every half minute."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from raysweep.cli.console import console, count, duration, escape, say
from raysweep.cluster import connection as cluster

if TYPE_CHECKING:
    from raysweep.store.lock import Lock
    from raysweep.sweep.gauges import Gauges
    from raysweep.sweep.runner import CellState, Survey

LINE_EVERY = 30.0

# Why a trial failed that could not say so itself.
LOST = "its process was lost again and again"

# Ray drops gauges that are not set for 20 s.
TELL_EVERY = 5.0

# Seconds of training after which what is done says how fast it goes.
SETTLED = 60.0


class Display:
    """The state of a running sweep, drawn."""

    def __init__(self, before: Survey, held: Lock, gauges: Gauges, dashboard: str) -> None:
        self._held = held
        self._gauges = gauges
        self._dashboard = f"http://{dashboard}" if dashboard else ""
        left = before.left
        self._complete = len(before.states) - len(left)
        every = {state.cell.id: state.cell.steps * state.cell.tokens_per_step for state in before.states}
        self._tokens_planned = sum(every.values())
        self._tokens_before = sum(every[state.cell.id] for state in before.states if _trained(state))
        self._planned = {state.cell.id: every[state.cell.id] for state in left}
        self._untrained = {state.cell.id for state in left if not _trained(state)}
        self._total = sum(self._planned[cell] for cell in self._untrained)
        # Tokens at the first and at the latest report of each cell: what this run has done is their difference.
        self._first: dict[str, int] = {}
        self._latest: dict[str, int] = {}
        self._running: dict[str, dict[str, Any]] = {}
        self._finished: set[str] = set()
        self._failed: dict[str, str] = {}
        # Every cell may have the same to say.
        self._warned = {""}
        self._unreachable = ""
        self.waiting = ""
        """Why nothing can start at present."""
        self._nodes = 0
        self._line = self._told = time.monotonic()
        self._begun: float | None = None
        """When the first cell reported; starting a cluster says nothing about how fast it trains."""

    @property
    def interrupted(self) -> bool:
        """Whether the run ended while cells had not."""
        return len(self._finished) + len(self._failed) < len(self._planned)

    @property
    def stopped(self) -> str:
        """Why this run cannot go on; empty while it can."""
        return self._unreachable or self._held.lost

    @property
    def lost(self) -> list[str]:
        """The cells whose process was."""
        return [cell for cell, error in self._failed.items() if error == LOST]

    # What happens, as Tune tells it.

    def started(self, cell: str) -> None:
        known = self._running.setdefault(cell, {"cell": cell, "since": time.time()})
        # Until its first report: one more than can train is started, and waits for a place.
        if cell in self._untrained and cell not in self._latest:
            known["starting"] = True
        self._share()

    def reported(self, result: dict[str, Any]) -> None:
        cell = result["cell"]
        if result.get("finished"):
            return self._end(cell, result["failed"])
        if "unreachable" in result:
            self._unreachable = result["unreachable"]
            return None
        if result.get("warning", "") not in self._warned:
            self._warned.add(result["warning"])
            say(f"[yellow]warning[/] {escape(result['warning'])}")
        known = self._running.setdefault(cell, {"cell": cell, "since": time.time()})
        known |= {key: result[key] for key in _SHOWN if key in result}
        if known.pop("starting", False):
            known["since"] = time.time()
        tokens = result["tokens"]
        if self._begun is None:
            self._begun = time.monotonic()
        self._first.setdefault(cell, tokens)
        self._latest[cell] = tokens
        self._gauges.cell(cell, result)
        return self._share()

    def crashed(self, cell: str) -> None:
        self._end(cell, [LOST])

    def _end(self, cell: str, errors: list[str]) -> None:
        last = self._running.pop(cell, {"cell": cell})
        self._gauges.ended(cell)
        seconds = time.time() - last.get("since", time.time())
        done = sum(len(group) for group in (self._finished, self._failed)) + 1
        where = f"[{done}/{len(self._planned)}]"
        if errors:
            self._failed[cell] = errors[0]
            say(f"{escape(where)} [red]failed[/] {cell}: {escape(errors[0])}")
        else:
            self._finished.add(cell)
            say(f"{escape(where)} [green]done[/] {escape(cell_line(last, short=True))} in {duration(seconds)}")
        self._share()

    def _share(self) -> None:
        """Tell who asks by `raysweep status`, and Prometheus."""
        pace = self._pace()
        self._held.progress(
            {
                "dashboard": self._dashboard,
                "waiting": self.waiting,
                "running": self._running,
                "finished": len(self._finished),
            }
            | pace
        )
        counts = self._counts()
        tokens = self._tokens_before + sum(self._latest.values())
        self._gauges.sweep(
            counts | {"done": self._complete + counts["done"]},
            tokens, self._tokens_planned, pace["tokens_per_second"], pace["seconds_left"],
        )  # fmt: skip

    def _counts(self) -> dict[str, int]:
        """The cells that this run is to complete, by state."""
        starting = sum(cell.get("starting", False) for cell in list(self._running.values()))
        ended = len(self._finished) + len(self._failed)
        return {
            "done": len(self._finished),
            "running": len(self._running) - starting,
            "starting": starting,
            "failed": len(self._failed),
            "waiting": len(self._planned) - ended - len(self._running),
        }

    def runs_on(self, nodes: list[dict[str, float]]) -> None:
        """Say that nodes, given by their resources, have joined or left."""
        if self._nodes and len(nodes) != self._nodes:
            what = "joined" if len(nodes) > self._nodes else "[yellow]left[/]"
            cpus, gpus = (sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU"))
            say(f"nodes {what}: the cluster has {len(nodes)} nodes with {cluster.amount(cpus, gpus)}")
        self._nodes = len(nodes)

    def waits(self, why: str) -> None:
        """Say why nothing can start, once for each reason; an empty one ends the wait."""
        if why == self.waiting:
            return
        self.waiting = why
        say(f"[yellow]waiting[/] {escape(why)}" if why else "there is room again")
        self._share()

    # The drawing.

    @contextmanager
    def live(self) -> Iterator[Display]:
        say(f"dashboard {self._dashboard or 'off'}")
        if console.is_terminal:
            with Live(self, console=console, refresh_per_second=2, transient=True):
                yield self
        else:
            yield self

    def tick(self) -> None:
        """Called often; prints a line now and then where there is no live panel."""
        if time.monotonic() - self._told > TELL_EVERY:
            self._told = time.monotonic()
            self._share()
            self._gauges.keep()
        if not console.is_terminal and time.monotonic() - self._line > LINE_EVERY:
            self._line = time.monotonic()
            say(self._summary())

    def _pace(self) -> dict[str, Any]:
        elapsed = 0.0 if self._begun is None else time.monotonic() - self._begun
        done = sum(tokens - self._first[cell] for cell, tokens in list(self._latest.items()))
        position = sum(list(self._latest.values()))
        if elapsed < SETTLED:
            # The first reports come after few tokens and a long start; what the workers measure tells more.
            rate = sum(cell.get("tokens_per_second", 0.0) for cell in list(self._running.values()))
        else:
            rate = done / elapsed
        left = (self._total - position) / rate if rate > 0 else None
        return {
            "tokens_per_second": rate,
            "seconds_left": left,
            "share": position / self._total if self._total else 1.0,
        }

    def _summary(self) -> str:
        pace = self._pace()
        if pace["share"] >= 1:
            left = "evaluating"
        else:
            left = f"about {duration(pace['seconds_left'])} left" if pace["seconds_left"] is not None else "starting"
        if self.waiting:
            left = f"waiting: {self.waiting}"
        counts = ", ".join(f"{number} {state}" for state, number in self._counts().items())
        done = f"{pace['share']:.0%} of {count(self._total)} tokens"
        return f"{counts} · {done} · {count(pace['tokens_per_second'])} tokens/s · {left}"

    def __rich__(self) -> Group:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for heading in ("cell", "", "step", "tokens/s", "loss", "effective rank"):
            table.add_column(heading, justify="left" if heading in ("cell", "") else "right", no_wrap=True)
        for cell in list(self._running.values()):
            step, steps = cell.get("step"), cell.get("steps")
            table.add_row(
                cell["cell"],
                ProgressBar(total=steps or 1, completed=step or 0, width=12),
                f"{step}/{steps}" if steps else "starting",
                count(cell["tokens_per_second"]) if step else "",
                f"{cell['validation_loss']:.3f}" if "validation_loss" in cell else "",
                f"{cell['effective_rank_W']:.3f}" if "effective_rank_W" in cell else "",
            )
        bar = Table.grid()
        bar.add_row(ProgressBar(total=1.0, completed=self._pace()["share"], width=min(80, console.width)))
        return Group(bar, Text(self._summary()), table)


_SHOWN = ("step", "steps", "tokens_per_second", "validation_loss", "effective_rank_W")


def _trained(state: CellState) -> bool:
    return state.training in ("done", "diverged")


def cell_line(cell: dict[str, Any], short: bool = False) -> str:
    line = str(cell["cell"])
    if cell.get("starting"):
        line += "  starting"
    elif not short and "steps" in cell:
        line += f"  step {cell['step']}/{cell['steps']}  {count(cell['tokens_per_second'])} tokens/s"
    if "validation_loss" in cell:
        line += f"  loss {cell['validation_loss']:.3f}  effective rank {cell['effective_rank_W']:.3f}"
    return line


@contextmanager
def bars() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on standard error for each part of a job: call with the part's name, how much is done and of how much.

    Where standard error is no terminal, a line when a part begins.
    """
    errors = Console(stderr=True, highlight=False)
    parts: dict[str, Any] = {}
    if not errors.is_terminal:

        def line(part: str, done: int, of: int) -> None:
            if part not in parts:
                parts[part] = None
                errors.print(f"{part}: {of}")

        yield line
        return
    columns = (
        TextColumn("{task.description:12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=errors) as progress:

        def step(part: str, done: int, of: int) -> None:
            if part not in parts:
                parts[part] = progress.add_task(part, total=of)
            progress.update(parts[part], completed=done, total=of)

        yield step
