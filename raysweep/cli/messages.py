"""What the commands print for a person: plans, states, results, comparisons."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from raysweep.cli.console import console, escape, say, show
from raysweep.store import lock
from raysweep.store.measures import reports_without
from raysweep.store.results import GPU_HOURS, results
from raysweep.store.schemas import PLAN
from raysweep.text import abbreviate, duration

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

    from raysweep.analysis.analyze import AnalysisSummary
    from raysweep.analysis.next_cells import Next
    from raysweep.exchange.account import Account
    from raysweep.exchange.reproduce import Comparison
    from raysweep.space.space import Space
    from raysweep.store import Store
    from raysweep.sweep.events import SweepSurveyed
    from raysweep.sweep.measure import Measured
    from raysweep.sweep.survey import Survey

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


def show_plan(plan: dict[str, Any]) -> None:
    """`raysweep plan` for a person."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("cell", "N", "steps", "peak lr", "FLOP"):
        table.add_column(heading, justify="left" if heading == "cell" else "right", no_wrap=True)
    for cell in plan["cells"]:
        peak = f"{cell['learning_rate']:.3g}"
        table.add_row(cell["id"], abbreviate(cell["parameters"]), f"{cell['steps']:,}", peak, f"{cell['flops']:.2g}")
    show(table)
    totals = plan["totals"]
    say(
        f"\n[bold]{totals['cells']} cells[/], {abbreviate(totals['tokens'])} tokens, {totals['flops']:.2g} FLOP of training"
    )
    if plan["design"]:
        say(escape(plan["design"]))
    priced = any("dollars" in device for device in plan["devices"].values())
    devices = Table(box=None, pad_edge=False, header_style="bold")
    headings = ["device", "hours", *(["dollars"] if priced else []), "share of its peak", "by size"]
    for heading in headings:
        devices.add_column(heading, justify="left" if heading in ("device", "by size") else "right")
    for name, device in plan["devices"].items():
        hours, of_sizes = device["hours"], device["utilisation_of_sizes"]
        shown = f"{hours:,.0f}" if hours >= 10 else f"{hours:.2f}" if hours >= 0.005 else "< 0.01"
        dollars = [f"{device['dollars']:,.0f}" if "dollars" in device else ""] if priced else []
        ends = [f"{share:.1%} ({size})" for size, share in of_sizes.items()]
        by_size = f"{ends[0]} to {ends[-1]}" if len(set(of_sizes.values())) > 1 else ""
        devices.add_row(name, shown, *dollars, f"{device['utilisation']:.1%}", by_size)
    show(devices)
    say("[dim]training alone; GPUs are estimated from data sheets unless measured, the core from another machine[/]")
    for item in plan["measure"]["items"]:
        # `blocks.0.mlp.up`, `blocks.1.mlp.up` -> `blocks.*.mlp.up (2)`
        families = Counter(re.sub(r"\.(\d+|final)(?=\.|$)", ".*", name) for name in item["matrices"])
        matrices = ", ".join(f"{name} ({count})" if count > 1 else name for name, count in families.items())
        metrics = ", ".join(item["metrics"]) or "singular values alone"
        settings = "".join(f", {name} {value}" for name, value in item["settings"].items())
        reports = "1 report" if item["reports"] == 1 else f"{item['reports']} reports"
        say(f"measures {escape(matrices)}: {escape(metrics)}{escape(settings)}, at {reports}")
    if plan["measure"]["items"]:
        say(f"[dim]which takes {plan['measure']['flops_share']:.2%} of the FLOP of training, most of it in float64[/]")
    longest = [f"{escape(cell['id'])} {cell['share']:.1%}" for cell in plan["most_expensive"][:3]]
    say(f"the longest cells, and their share of all hours: {', '.join(longest)}")


def show_measured(measured: Measured, store: Store, asked_for: bool) -> None:
    """What `raysweep measure` came to; `asked_for` by options, and not by the search space."""
    for cell, error in measured.errors.items():
        say(f"[red]failed[/] {escape(cell)}: {escape(error)}")
    say(f"{measured.values:,} numbers of {measured.cells} trained cells measured, in {store.location}/measures")
    for failed in measured.failures.values():
        say(f"[yellow]without a value[/] {escape(failed)}")
    if measured.values and asked_for:
        say("`raysweep results` and `analyze` show what the search space's `measure` asks for: add it there to see it")
    if measured.missing:
        say(
            f"{sum(measured.missing.values()):,} reports of {len(measured.missing)} cells are not complete, and their "
            "checkpoints are gone or damaged: `resources.train.keep_checkpoints: all` keeps one for each report"
        )


def announce(event: SweepSurveyed) -> None:
    """Say what is done and what is going to happen, before it does."""
    before = event.survey
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
    say(f"[bold]{event.space}[/]: {', '.join(parts)}")
    say(f"store {escape(event.store)}")


def conclude(space: Space, store: Store, after: Survey, retry: str) -> None:
    """The results as a table, then what failed; `retry` says what does what is left."""
    show_table(results(space, store))
    show_missing_measures(space, store, after)
    show_outcome(after, retry)


def show_missing_measures(space: Space, store: Store, now: Survey) -> None:
    """Say where trained cells lack what `measure` asks for: they were trained before it did, or something failed."""
    trained = {state.cell.id for state in now.states if state.training == "done"}
    if missing := reports_without(space, store, trained):
        say(
            f"[yellow]{missing:,} reports lack something that `measure` asks for[/]: `raysweep measure` takes it from the "
            "checkpoints that are there"
        )


def show_outcome(after: Survey, retry: str) -> None:
    """What failed, and how much is done."""
    show_versions(after)
    for cell, errors in after.errors.items():
        for stage, error in errors.items():
            say(f"[red]failed[/] {stage} of {cell}: {escape(error)}")
    counts = after.counts()
    cells, evaluations = counts["cells"], counts["evaluations"]
    line = f"{cells['done']} of {cells['planned']} cells done"
    if cells["diverged"]:
        line += f", {cells['diverged']} diverged"
    line += f", {evaluations['done']} of {evaluations['planned']} evaluations done"
    say(f"[bold]{line}[/]" + ("" if not after.left else f"; {retry}"))


def next_commands(space: str, store: Store) -> None:
    """What one wants of a finished sweep."""
    for what, command, output in (("a report", "analyze", "report"), ("the table", "results", "results.csv")):
        line = shlex.join(["raysweep", command, space, "--store", store.location, "--output", output])
        say(f"{what}  {escape(line)}")


def interrupted(after: Survey, resume_command: str) -> None:
    cells = after.counts()["cells"]
    say(
        f"stopped: {cells['done'] + cells['diverged']} of {cells['planned']} cells trained, nothing is lost. "
        f"Resume with:\n  [bold]{escape(resume_command)}[/]"
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
    for evaluation in space.evaluations:
        if evaluation.code_version:
            say(f"{evaluation.label} is {escape(evaluation.protocol(space.cells_of(evaluation)))}")
    if driver is None and not store.begun():
        say("no sweep has begun in this store; `raysweep run` begins one there")
    elif driver is None:
        say("nothing is running" + ("" if not now.left else "; `raysweep run` resumes"))
    else:
        live = driver.get("progress", {})
        say(f"running on {driver['host']} (process {driver['pid']}) since {driver['started']}")
        if silent > lock.SILENT:
            say(f"[yellow]not heard from for {duration(silent)}[/]: if the process died, `raysweep run` takes over")
        if live.get("dashboard"):
            say(f"dashboard {live['dashboard']}")
        if live.get("waiting"):
            say(f"[yellow]waiting[/] {escape(live['waiting'])}")
        for cell in live.get("running", {}).values():
            say("  " + cell_line(cell))
    show_missing_measures(space, store, now)
    for state in now.states:
        for stage, error in state.errors.items():
            say(f"[red]failed[/] {stage} of {state.cell.id}: {escape(error)}")


def show_versions(now: Survey) -> None:
    """A warning where cells were trained under different versions, whose numbers are then not strictly comparable."""
    versions = now.versions()
    if len(versions) > 1:
        counts = ", ".join(f"{number} under {version}" for version, number in versions.items())
        say(f"[yellow]warning[/] cells were trained under different versions: {counts}")


# Settings that follow from others, or are said by them.
_FOLLOWS = {"id", "width", "depth", "heads", "vocabulary", "parameters", "steps", "learning_rate", "flops"}


def show_table(results: pa.Table) -> None:
    """The results so far as a table, the columns that differ between cells first."""
    rows = results.to_pylist()
    if not rows:
        return
    if len(rows) > LONGEST_TABLE:
        say(f"{len(rows)} cells have results: raysweep results --output FILE.csv writes the table")
        return
    by_rule = {(row["size"], row["learning_rate_factor"]) for row in rows}
    rates = {(row["size"], row["learning_rate_factor"], row["learning_rate"]) for row in rows}
    follows = _FOLLOWS if len(rates) == len(by_rule) else _FOLLOWS - {"learning_rate"}
    varied = [name for name in PLAN.names if name not in follows and len({row[name] for row in rows}) > 1]
    measured = [name for name in MEASURED if name in rows[0]]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in varied:
        table.add_column(heading(name), justify="left" if isinstance(rows[0][name], str) else "right")
    for name in measured:
        table.add_column(heading(name), justify="right")
    for row in rows:
        table.add_row(
            *(_setting(row[name]) for name in varied),
            *("" if row.get(name) is None else f"{row[name]:.3f}" for name in measured),
            style="red" if row["status"] == "diverged" else None,
        )
    console.print()
    show(table)
    console.print()
    say(f"for all {len(rows[0])} columns: raysweep results ... --output FILE.csv")


def show_hours(results: pa.Table, sessions: list[dict[str, Any]]) -> None:
    """What training took of GPUs, and where Slurm has its own account of it."""
    if GPU_HOURS in results.column_names:
        known = [hours for hours in results[GPU_HOURS].to_pylist() if hours is not None]
        others = "" if len(known) == results.num_rows else "; for the others it was not recorded"
        say(f"training {len(known)} cells took {sum(known):,.1f} GPU-hours{others}")
    jobs = dict.fromkeys(session["job"].removeprefix("slurm:") for session in sessions if session["job"])
    if jobs:
        say(f"Slurm's account: sacct -D -j {','.join(jobs)} --format=JobID,State,Elapsed,AllocTRES%60,TotalCPU")


def show_account(account: Account) -> None:
    """What `raysweep publish` says that a sweep took."""
    say(
        f"{abbreviate(account.tokens)} tokens in {duration(account.work)} of core time (training and evaluation), "
        f"{duration(account.wall_clock)} of wall-clock in {account.sessions} sessions"
        + (f", {account.overhead:.2f} times what the cores worked" if account.overhead == account.overhead else "")
    )
    if account.killed or account.resumed:
        say(f"{account.killed} sessions were killed or still run, {account.resumed} cells were resumed in training")


def show_differences(comparison: Comparison, folder: Path, store: Store) -> None:
    """What `raysweep reproduce` found."""
    differences = comparison.differences
    if not differences:
        say(
            f"[bold]{comparison.compared:,} numbers compared, all as published[/] in {escape(str(folder))}, to the last bit"
        )
        return
    table = Table("number", "published", "here", "difference")
    for difference in differences[:LONGEST_TABLE]:
        published, here = difference.published, difference.here
        numbers = isinstance(published, int | float) and isinstance(here, int | float)
        apart = f"{here - published:+.3g}" if numbers else ""
        table.add_row(*(Text(str(text)) for text in (difference.name, published, here, apart)))
    show(table)
    say(
        f"{len(differences):,} of {comparison.compared:,} numbers differ from those in {escape(str(folder))}; "
        f"store {escape(store.location)}"
    )
    there, here = comparison.trained_there, comparison.trained_here
    if there is not None and here is not None and there != here:
        say(f"trained there on {escape(there)}")
        say(f"trained here on {escape(here)}")
    if "bfloat16" in (there or "") and "bfloat16" not in (here or ""):
        say("the published numbers are of bfloat16 products, these of float32: that is more than rounding")
    elif "bfloat16" in (here or "") and there is not None and "bfloat16" not in there:
        say("the published numbers are of float32 products, these of bfloat16: that is more than rounding")
    else:
        say("another processor, compiler or version rounds differently: sessions.parquet lists the published ones")


VERDICTS = {"supported": "green", "contradicted": "red", "undecided": "yellow"}


def show_claims(card: list[dict[str, Any]]) -> None:
    """The scorecard: number, verdict and claim."""
    table = Table(box=None, pad_edge=False)
    for name in ("", "verdict", "claim"):
        table.add_column(name, overflow="fold")
    for row in card:
        verdict = Text(row["verdict"], style=VERDICTS[row["verdict"]])
        table.add_row(str(row["claim"]), verdict, escape(row["statement"]))
    show(table)


def show_analysed(summary: AnalysisSummary, what: str, output: Path) -> None:
    """What a report rests on, the figures that it lacks, and where it is."""
    lacking = int((summary.figures["file"] == "").sum())
    if lacking:
        why = output / "figures" / "figures.csv"
        drawn = len(summary.figures) - lacking
        say(f"{drawn} figures drawn; for {lacking} others this sweep has no numbers ({why} says which)")
    say(f"{summary.analysed} of {summary.planned} {what} analysed; open {output / 'report.html'}")


def show_side_by_side(card: list[dict[str, Any]], first: str, second: str) -> None:
    """The claims on two sweeps."""
    colours = {"supported": "green", "contradicted": "red", "undecided": "dim"}
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in (escape(first), escape(second), "claim", ""):
        table.add_column(name)
    for row in card:
        verdicts = (f"[{colours[row[name]]}]{row[name]}[/]" for name in ("verdict_a", "verdict_b"))
        table.add_row(*verdicts, str(row["claim"]), escape(row["statement"]))
    show(table)


def show_next(plan: Next) -> None:
    """What would decide each undecided test, the cheapest first."""
    from raysweep.analysis.next_cells import said  # With pandas and scipy.

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("claim", "test", "today", "needed", "new cells", "cost"):
        table.add_column(heading, overflow="fold", justify="left" if heading in ("claim", "test", "cost") else "right")
    within = {id(need) for need in plan.chosen}
    for need in sorted((one for one in plan.needs if one.cells), key=lambda one: one.cost.order):
        about = need.tested
        row = (f"{about.hypothesis.id}", about.finding.effect, f"{need.today:,}", need.needed)
        style = "" if id(need) in within else "dim"
        table.add_row(*map(escape, row), f"{len(need.cells):,}", str(need.cost), style=style)
    if table.rows:
        show(table)
    reasons = Counter(need.reason for need in plan.needs if not need.cells)
    for reason, number in reasons.most_common():
        say(f"[dim]{number} undecided {'test' if number == 1 else 'tests'}: {escape(reason)}[/]")
    if plan.cells:
        say(f"{said(plan)}; the sweep took {plan.spent} so far")
    elif any(need.cells for need in plan.needs):
        say(f"[yellow]the cheapest costs more than there is[/]: the sweep took {plan.spent}; --hours allows more")


def _setting(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def heading(name: str) -> str:
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


def trains(cell: dict[str, Any]) -> bool:
    """Whether a running cell has reported, and not yet its last step."""
    return "steps" in cell and bool(cell["step"] < cell["steps"])


def cell_line(cell: dict[str, Any], short: bool = False) -> str:
    """A running or finished cell in one line."""
    line = str(cell["cell"])
    if cell.get("starting"):
        line += "  starting"
    elif not short and trains(cell):
        line += f"  step {cell['step']}/{cell['steps']}  {abbreviate(cell['tokens_per_second'])} tokens/s"
    elif not short:
        line += "  evaluating"
    if "validation_loss" in cell:
        line += f"  val. loss {cell['validation_loss']:.3f}  effective rank {cell['effective_rank_W']:.3f}"
    return line
