"""What a person sees of a sweep: before it starts, while it runs, when it ends, and by `raysweep status`.

On a terminal a running sweep is one live panel; elsewhere it is a line for every finished cell and every half minute.
"""

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

from raysweep import cluster, tables

if TYPE_CHECKING:
    from pathlib import Path

    from raysweep.corpora.loader import TokenizedCorpus
    from raysweep.corpora.published import Preset
    from raysweep.gauges import Gauges
    from raysweep.lock import Lock
    from raysweep.publish import Account
    from raysweep.reproduce import Difference
    from raysweep.space import Space
    from raysweep.store import Store
    from raysweep.sweep import CellState, Survey

console = Console(highlight=False)
if not console.is_terminal:
    console = Console(highlight=False, width=160)  # A file or a pipe has no width to keep to.

LINE_EVERY = 30.0
# Ray drops gauges that are not set for 20 s.
TELL_EVERY = 5.0

# Seconds of training after which what is done says how fast it goes.
SETTLED = 60.0

# What the table on the screen shows of the many columns there are.
MEASURED = (
    "validation_loss",
    "in_distribution_loss",
    "out_of_distribution_loss",
    "effective_rank_W",
    "effective_rank_H",
    "cosine_W",
    "isotropy_W",
)

# More rows than this are for `raysweep results`.
LONGEST_TABLE = 120


def announce(space: Space, store: Store, before: Survey) -> None:
    """Say what is done and what is going to happen, before it does."""
    counts = before.counts()["cells"]
    parts = [f"{counts['planned']} cells"]
    if before.count("done", "diverged"):
        parts.append(f"{before.count('done', 'diverged')} trained")
    if before.count("started"):
        parts.append(f"{before.count('started')} to continue from a checkpoint")
    if before.count("failed"):
        parts.append(f"{before.count('failed')} to retry")
    if before.count("new"):
        parts.append(f"{before.count('new')} to start")
    missing = sum(outcome != "done" for state in before.states for outcome in state.evaluations.values())
    parts.append(f"{missing} evaluations to do" if missing else "every evaluation done")
    _print(f"[bold]{space.name}[/]: {', '.join(parts)}")
    _print(f"store {store.location}")


def conclude(space: Space, store: Store, after: Survey) -> None:
    """The results as a table, then what failed."""
    show_results(store, space)
    show_versions(after)
    failed = [(state.cell.id, stage, error) for state in after.states for stage, error in state.errors.items()]
    for cell, stage, error in failed:
        _print(f"[red]failed[/] {stage} of {cell}: {_escape(error)}")
    counts = after.counts()
    cells, evaluations = counts["cells"], counts["evaluations"]
    line = f"{cells['done']} of {cells['planned']} cells done"
    if cells["diverged"]:
        line += f", {cells['diverged']} diverged"
    line += f", {evaluations['done']} of {evaluations['planned']} evaluations done"
    _print(f"[bold]{line}[/]" + ("" if not after.left else "; run the same command again to retry what failed"))


def interrupted(after: Survey, resume_command: str) -> None:
    cells = after.counts()["cells"]
    _print(
        f"stopped: {cells['done'] + cells['diverged']} of {cells['planned']} cells trained, nothing is lost. "
        f"Go on with:\n  [bold]{_escape(resume_command)}[/]"
    )


def show_status(space: Space, store: Store, now: Survey, counts: dict[str, Any], driver: dict[str, Any] | None) -> None:
    """`raysweep status` for a person."""
    cells, evaluations = counts["cells"], counts["evaluations"]
    _print(f"[bold]{space.name}[/] in {store.location}")
    _print("cells        " + ", ".join(f"{number} {name}" for name, number in cells.items()))
    _print("evaluations  " + ", ".join(f"{number} {name}" for name, number in evaluations.items()))
    show_versions(now)
    if driver is None:
        _print("nothing is running" + ("" if not now.left else "; `raysweep run` goes on"))
    else:
        live = driver.get("progress", {})
        _print(f"running on {driver['host']} (process {driver['pid']}) since {driver['started']}")
        if live.get("dashboard"):
            _print(f"dashboard {live['dashboard']}")
        if live.get("waiting"):
            _print(f"[yellow]waiting[/] {_escape(live['waiting'])}")
        for cell in live.get("running", {}).values():
            _print("  " + _cell_line(cell))
    for state in now.states:
        for stage, error in state.errors.items():
            _print(f"[red]failed[/] {stage} of {state.cell.id}: {_escape(error)}")


def show_versions(now: Survey) -> None:
    """A warning where cells were trained under different versions, whose numbers are then not strictly comparable."""
    versions = now.versions()
    if len(versions) > 1:
        counts = ", ".join(f"{number} under {version}" for version, number in versions.items())
        _print(f"[yellow]warning[/] cells were trained under different versions: {counts}")


def show_results(store: Store, space: Space) -> None:
    """The results so far as a table, the columns that differ between cells first."""
    results = tables.results(store, space.cells, space.evaluations).to_pylist()
    if not results:
        return
    if len(results) > LONGEST_TABLE:
        _print(f"{len(results)} cells have results: raysweep results --output FILE.parquet writes the table")
        return
    settings = (
        "size",
        "tokens",
        "batch_size",
        "weight_decay",
        "learning_rate_factor",
        "final_learning_rate_fraction",
        "seed",
    )
    varied = [name for name in settings if len({row[name] for row in results}) > 1]
    measured = [name for name in MEASURED if name in results[0]]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in varied:
        table.add_column(_heading(name), justify="left" if name == "size" else "right")
    for name in measured:
        table.add_column(_heading(name), justify="right")
    for row in results:
        table.add_row(
            *(f"{row[name]:g}" if isinstance(row[name], float) else str(row[name]) for name in varied),
            *("" if row.get(name) is None else f"{row[name]:.3f}" for name in measured),
            style="red" if row["status"] == "diverged" else None,
        )
    console.print()
    console.print(table)
    console.print()
    _print(f"every one of the {len(results[0])} columns: raysweep results ... --output FILE.parquet")


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
        if "warning" in result:
            _print(f"[yellow]warning[/] {_escape(result['warning'])}")
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
        self._end(cell, ["its process was lost again and again"])

    def _end(self, cell: str, errors: list[str]) -> None:
        last = self._running.pop(cell, {"cell": cell})
        self._gauges.ended(cell)
        seconds = time.time() - last.get("since", time.time())
        done = sum(len(group) for group in (self._finished, self._failed)) + 1
        where = f"[{done}/{len(self._planned)}]"
        if errors:
            self._failed[cell] = errors[0]
            _print(f"{_escape(where)} [red]failed[/] {cell}: {_escape(errors[0])}")
        else:
            self._finished.add(cell)
            _print(f"{_escape(where)} [green]done[/] {_escape(_cell_line(last, short=True))} in {duration(seconds)}")
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
        starting = sum(cell.get("starting", False) for cell in self._running.values())
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
            _print(f"nodes {what}: the cluster has {len(nodes)} nodes with {cluster.amount(cpus, gpus)}")
        self._nodes = len(nodes)

    def waits(self, why: str) -> None:
        """Say why nothing can start, once for each reason; an empty one ends the wait."""
        if why == self.waiting:
            return
        self.waiting = why
        _print(f"[yellow]waiting[/] {_escape(why)}" if why else "there is room again")
        self._share()

    # The drawing.

    @contextmanager
    def live(self) -> Iterator[Display]:
        _print(f"dashboard {self._dashboard or 'off'}")
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
            _print(self._summary())

    def _pace(self) -> dict[str, Any]:
        elapsed = 0.0 if self._begun is None else time.monotonic() - self._begun
        done = sum(self._latest[cell] - self._first[cell] for cell in self._latest)
        position = sum(self._latest.values())
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
        done = f"{pace['share']:.0%} of {_count(self._total)} tokens"
        return f"{counts} · {done} · {_count(pace['tokens_per_second'])} tokens/s · {left}"

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
                _count(cell["tokens_per_second"]) if step else "",
                f"{cell['validation_loss']:.3f}" if "validation_loss" in cell else "",
                f"{cell['effective_rank_W']:.3f}" if "effective_rank_W" in cell else "",
            )
        bar = Table.grid()
        bar.add_row(ProgressBar(total=1.0, completed=self._pace()["share"], width=min(80, console.width)))
        return Group(bar, Text(self._summary()), table)


_SHOWN = ("step", "steps", "tokens_per_second", "validation_loss", "effective_rank_W")


def _trained(state: CellState) -> bool:
    return state.training in ("done", "diverged")


def _cell_line(cell: dict[str, Any], short: bool = False) -> str:
    line = str(cell["cell"])
    if cell.get("starting"):
        line += "  starting"
    elif not short and "steps" in cell:
        line += f"  step {cell['step']}/{cell['steps']}  {_count(cell['tokens_per_second'])} tokens/s"
    if "validation_loss" in cell:
        line += f"  loss {cell['validation_loss']:.3f}  effective rank {cell['effective_rank_W']:.3f}"
    return line


def _heading(name: str) -> str:
    short = {
        "final_learning_rate_fraction": "final lr",
        "learning_rate_factor": "lr factor",
        "validation_loss": "val. loss",
        "in_distribution_loss": "ID loss",
        "out_of_distribution_loss": "OOD loss",
        "effective_rank_W": "rank W",
        "effective_rank_H": "rank H",
    }
    return short.get(name, name.replace("_", " "))


def _count(number: float) -> str:
    for unit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.3g}{letter}"
    return f"{number:.0f}"


def duration(seconds: float) -> str:
    """A time in its two largest units, as `2h05m`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{seconds:02}s" if minutes else f"{seconds}s"


def _escape(text: str) -> str:
    return text.replace("[", r"\[")


def _print(text: str) -> None:
    # One line stays one line in a file or a pipe.
    console.print(text, soft_wrap=True)


def show_plan(plan: dict[str, Any]) -> None:
    """`raysweep plan` for a person."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("cell", "N", "steps", "peak lr", "FLOP"):
        table.add_column(heading, justify="left" if heading == "cell" else "right", no_wrap=True)
    for cell in plan["cells"]:
        peak = f"{cell['learning_rate']:.3g}"
        table.add_row(cell["id"], _count(cell["parameters"]), f"{cell['steps']:,}", peak, f"{cell['flops']:.2g}")
    console.print(table)
    totals = plan["totals"]
    _print(
        f"\n[bold]{totals['cells']} cells[/], {_count(totals['tokens'])} tokens, {totals['flops']:.2g} FLOP of training"
    )
    devices = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("device", "hours", "at this share of its peak"):
        devices.add_column(heading, justify="left" if heading == "device" else "right")
    for name, device in plan["devices"].items():
        hours = device["hours"]
        shown = f"{hours:,.0f}" if hours >= 10 else f"{hours:.2f}" if hours >= 0.005 else "< 0.01"
        devices.add_row(name, shown, f"{device['utilisation']:.1%}")
    console.print(devices)


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


def show_account(account: Account) -> None:
    """What `raysweep publish` says that a sweep took."""
    _print(
        f"{_count(account.tokens)} tokens in {duration(account.work)} of one core's training and evaluation, "
        f"{duration(account.wall_clock)} of wall-clock in {account.sessions} sessions"
        + (f", {account.overhead:.2f} times what the cores worked" if account.overhead == account.overhead else "")
    )
    if account.killed or account.resumed:
        _print(f"{account.killed} sessions were killed or go on, {account.resumed} cells were trained in several parts")


def show_differences(compared: int, found: list[Difference], folder: Path, store: Store) -> None:
    """What `raysweep reproduce` found."""
    if not found:
        _print(f"[bold]{compared:,} numbers compared, all as published[/] in {_escape(str(folder))}, to the last bit")
        return
    table = Table("number", "published", "here", "difference")
    for difference in found[:LONGEST_TABLE]:
        published, here = difference.published, difference.here
        numbers = isinstance(published, int | float) and isinstance(here, int | float)
        apart = f"{here - published:+.3g}" if numbers else ""
        table.add_row(*(Text(str(text)) for text in (difference.name, published, here, apart)))
    console.print(table)
    _print(
        f"{len(found):,} of {compared:,} numbers differ from those in {_escape(str(folder))}; "
        f"store {_escape(store.location)}"
    )
    _print("another processor, compiler or version rounds otherwise: sessions.parquet says what these were made with")


VERDICTS = {"supported": "green", "contradicted": "red", "undecided": "yellow"}


def show_claims(card: list[dict[str, Any]]) -> None:
    """The scorecard: number, verdict and claim."""
    table = Table(box=None, pad_edge=False)
    for name in ("", "verdict", "claim"):
        table.add_column(name, overflow="fold")
    for row in card:
        verdict = Text(row["verdict"], style=VERDICTS[row["verdict"]])
        table.add_row(str(row["claim"]), verdict, row["statement"])
    console.print(table)


def show_presets(presets: dict[str, Preset]) -> None:
    """`raysweep corpus list`."""
    for name, known in presets.items():
        gated = ", gated: accept its terms there and set HF_TOKEN" if known.gated else ""
        _print(f"[bold]{name}[/]  {known.documented} at {known.revision[:12]}{gated}")
        for text in (
            known.size,
            f"fields: {known.fields}",
            f"licence: {known.licence}",
            f"splits: {', '.join(known.splits)}",
            known.note,
        ):
            _print(f"    {_escape(text)}")
    _print("[bold]installed[/]  85 MB of text out of the packages that raysweep depends on; no download")
    _print(
        "Or a source of your own: {folder: /data/text}, or {hub: owner/name, revision: COMMIT}; docs/corpora.md has more."
    )


def show_corpus(corpus: TokenizedCorpus, shard: str, heaviest: list[tuple[str, float]], documents: list[str]) -> None:
    """`raysweep corpus show`."""
    manifest = corpus.manifest
    made = manifest["corpus"]
    _print(f"[bold]{made['name']}[/] ({made['tokenizer']}, vocabulary {made['vocabulary']}) in {corpus.folder}")
    _print(f"fingerprint {corpus.fingerprint}")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("shard", "domain", "documents", "MB", "tokens"):
        table.add_column(heading, justify="left" if heading in ("shard", "domain") else "right")
    for name, entry in manifest["shards"].items():
        for domain, counts in entry["domains"].items():
            table.add_row(
                name,
                _escape(domain),
                f"{counts['documents']:,}",
                f"{counts['bytes'] / 1e6:.2f}",
                f"{counts['tokens']:,}",
            )
    console.print(table)
    for stream in manifest["shards"].get(shard, {}).get("mixture", ()):
        _print(f"mixture: {_escape(stream['source'])} with weight {stream['weight']:g}, {stream['tokens']:,} tokens")
    if "malformed" in manifest:
        first = manifest["malformed"]["first"][0]
        _print(
            f"left out as malformed: {manifest['malformed']['documents']:,} documents, the first in "
            f"{_escape(first['file'])} at {first['place']:,}: {_escape(first['reason'])}"
        )
    if "decontamination" in manifest:
        said = manifest["decontamination"]
        _print(
            f"left out of training for {said['tokens_in_a_row']} tokens in a row of evaluation text: {said['documents']:,} "
            f"documents, {said['tokens']:,} tokens"
        )
        for name, counts in said["by_evaluation"].items():
            _print(f"    {name}: {counts['documents']:,} documents, {counts['tokens']:,} tokens")
    _print(f"[bold]commonest tokens of {shard}[/]")
    _print("  ".join(f"{_escape(text)} {100 * share:.1f}%" for text, share in heaviest))
    for document in documents:
        _print(f"[bold]a document of {shard}[/]")
        # Text may hold what drives a terminal.
        console.print(Text("".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in document)))
