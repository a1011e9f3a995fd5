"""plan, run, stop, status, results and analyze of a suite of published models. Each imports what it needs when it runs."""

from __future__ import annotations

import argparse
import math
import shlex
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from raysweep.cli.console import escape, say, show
from raysweep.cli.exit_status import INTERRUPTED
from raysweep.cli.options import located_store, print_json
from raysweep.cli.progress_bars import ProgressBars
from raysweep.cli.results_table import in_order, show_columns, table_file, with_columns, write_table
from raysweep.errors import UserError
from raysweep.files import local_path
from raysweep.store import Store, lock
from raysweep.suites.read import LoadedSuite, load_suite
from raysweep.text import abbreviate, duration

if TYPE_CHECKING:
    import pyarrow as pa

    from raysweep.suites.checkpoints import Checkpoint
    from raysweep.suites.runner import SuiteState

# More models than this are for a file.
_LONGEST = 60

# Seconds after which the same is said again.
_AGAIN = 30.0

# What `plan` reckons downloads with.
_BYTES_PER_SECOND = 50e6


def _opened(options: argparse.Namespace) -> tuple[LoadedSuite, Store]:
    loaded = load_suite(options.space)
    return loaded, located_store(options.store, loaded.name)


def plan(options: argparse.Namespace) -> int:
    """`raysweep plan`: the models, their checkpoints, and what there is to download."""
    from raysweep.suites.checkpoints import find
    from raysweep.suites.runner import memory_of, survey

    loaded = load_suite(options.space)
    store = located_store(None, loaded.name)
    with ProgressBars() as bars:
        checkpoints, errors = find(
            loaded, store if store.begun() else None, bars.step, _Notes(lambda line: sys.stderr.write(f"{line}\n"))
        )
    left = survey(loaded, store, checkpoints).left if store.begun() else {one.id for one in checkpoints}
    away = [one for one in checkpoints if one.folder is None and one.id in left]
    size = sum(one.size for one in away)
    answer = {
        "models": [
            dict[str, Any](loaded.table.row(model)) | {
                "checkpoints": [one.revision for one in checkpoints if one.model == model],
                "bytes": sum(one.size for one in away if one.model == model),
                "unknown": loaded.table.unknown_of(model), "error": errors.get(model.id),
            }
            for model in loaded.models
        ],
        "totals": {
            "models": len(loaded.models), "checkpoints": len(checkpoints), "measured": len(checkpoints) - len(left),
            "download_bytes": size,
            "largest_bytes": max((one.size for one in checkpoints), default=0),
            "memory_bytes": memory_of(loaded.suite, max((one.size for one in checkpoints), default=0)),
            "disk_bytes_per_node": min(size, int(loaded.suite.resources.disk * 1e9)),
            "download_seconds_at_50_MB_per_s": size / _BYTES_PER_SECOND,
        },
        "facts": {name: fact.model_dump() for name, fact in loaded.table.facts.items()},
    }  # fmt: skip
    if options.json:
        print_json(answer)
    else:
        _show_plan(loaded, checkpoints, errors, answer["totals"])  # type: ignore[arg-type]
    return 1 if errors else 0


class _Notes:
    """What a person should know at once; where many repositories wait for the same, one of them is named, now and then."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._said: dict[str, float] = {}
        self._lock = threading.Lock()

    def __call__(self, line: str) -> None:
        what = line.partition(": ")[2].partition(";")[0] if "asking again in" in line else line
        with self._lock:
            if time.monotonic() - self._said.get(what, -math.inf) < _AGAIN:
                return
            self._said[what] = time.monotonic()
            self._write(line)


def _show_plan(
    loaded: LoadedSuite, checkpoints: list[Checkpoint], errors: dict[str, str], totals: dict[str, float]
) -> None:
    number = Counter(one.model.id for one in checkpoints)
    size: Counter[str] = Counter()
    for one in checkpoints:
        size[one.model.id] += one.size
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("model", "N", "tokens", "checkpoints", "GB"):
        table.add_column(heading, justify="left" if heading == "model" else "right", no_wrap=True)
    for model in loaded.models[:_LONGEST]:
        counts = (model.settings.get(name) for name in ("parameters", "tokens"))
        shown = [abbreviate(value) if isinstance(value, int | float) else "?" for value in counts]
        table.add_row(model.id, *shown, f"{number[model.id]}", f"{size[model.id] / 1e9:.3g}")
    show(table)
    if len(loaded.models) > _LONGEST:
        say(f"... and {len(loaded.models) - _LONGEST:,} more: --json has them all")
    say(
        f"\n[bold]{totals['models']:,} models, {totals['checkpoints']:,} checkpoints[/], "
        f"{totals['measured']:,} of them measured, {totals['download_bytes'] / 1e9:.3g} GB to download"
    )
    if totals["download_bytes"]:
        say(
            f"at 50 MB/s: {duration(totals['download_seconds_at_50_MB_per_s'])}; the checkpoints of a model are taken to be "
            f"of one size\non each node at most {totals['disk_bytes_per_node'] / 1e9:.3g} GB at once (resources.disk), and "
            f"memory for the largest: {totals['memory_bytes'] / 1e9:.3g} GB"
        )
    _show_facts(loaded)
    for name, why in errors.items():
        say(f"[red]not there[/] {escape(name)}: {escape(why)}")


def _show_facts(loaded: LoadedSuite) -> None:
    """How much is known of the models."""
    facts = Counter(fact.how for fact in loaded.table.facts.values())
    if facts:
        say(f"settings: {', '.join(f'{facts[how]} {how}' for how in ('known', 'derived', 'inferred') if facts[how])}")
    unknown = Counter(name for model in loaded.models for name in loaded.table.unknown_of(model))
    everywhere = [name for name, count in unknown.items() if count == len(loaded.models)]
    some = [f"{name} ({count} models)" for name, count in unknown.items() if count < len(loaded.models)]
    if unknown:
        say(f"not known: {', '.join([*everywhere, *some])}")


def run(options: argparse.Namespace) -> int:
    """`raysweep run`."""
    from raysweep.cli.signals import StopOnSignal
    from raysweep.suites import runner

    if options.rehearse or options.cluster:
        raise UserError(f"{options.space} asks about published models: --rehearse and --cluster are for search spaces")
    loaded, store = _opened(options)
    say(f"[bold]{escape(loaded.name)}[/]: {len(loaded.models):,} models; store {escape(store.location)}")
    try:
        with StopOnSignal() as signals, ProgressBars() as bars:

            def said(line: str) -> None:
                bars.close()
                say(escape(line))

            after = runner.run(loaded, store, bars.step, _Notes(said), signals.stop, signals.work_began)
    except KeyboardInterrupt:
        return _interrupted(options, store)
    if after.left and signals.stop.is_set():
        return _interrupted(options, store)
    _conclude(loaded, store, after)
    if not after.complete:
        return 1
    from raysweep.cli.messages import next_commands

    next_commands(options.space, store)
    return 0


def _interrupted(options: argparse.Namespace, store: Store) -> int:
    say(
        f"stopped; what is measured is kept: {shlex.join(['raysweep', 'run', options.space, '--store', store.location])}"
    )
    return INTERRUPTED


def _conclude(loaded: LoadedSuite, store: Store, after: SuiteState) -> None:
    from raysweep.suites.results import results as results_table

    _show_results(results_table(loaded, store))
    done = len(after.checkpoints) - len(after.left)
    say(f"{done:,} of {len(after.checkpoints):,} checkpoints done")
    _show_errors(after)
    if not after.complete:
        say("run the same command again to do what is left")


def _show_errors(after: SuiteState) -> None:
    from raysweep.suites.runner import error_lines

    lines = error_lines(after)
    for line in lines[:_LONGEST]:
        say(f"[red]failed[/] {escape(line)}")
    if len(lines) > _LONGEST:
        say(f"... and {len(lines) - _LONGEST:,} more")


def stop(options: argparse.Namespace) -> int:
    """`raysweep stop`."""
    _, store = _opened(options)
    stopped = lock.stop_holder(store)
    say(f"stopped process {stopped}" if stopped else f"nothing runs on {store.location}")
    return 0


def status(options: argparse.Namespace) -> int:
    """`raysweep status`: from the store alone, without asking the hub."""
    from raysweep.suites.runner import pinned, survey

    loaded, store = _opened(options)
    checkpoints = pinned(loaded, store)
    now = survey(loaded, store, checkpoints)
    driver = lock.holder(store)
    counts = {
        "models": len(loaded.models), "checkpoints": len(checkpoints), "done": len(checkpoints) - len(now.left),
        "failed": len(now.errors), "left": len(now.left), "running": driver is not None,
    }  # fmt: skip
    if options.json:
        print_json(counts)
        return 0
    if not checkpoints:
        say(f"{store.location} knows no checkpoint of {loaded.name} yet: `raysweep run` looks for them")
        return 0
    say(
        f"{counts['done']:,} of {counts['checkpoints']:,} checkpoints of {counts['models']:,} models done, store "
        f"{store.location}"
    )
    if driver is not None:
        say(f"process {driver['pid']} on {driver['host']} works on it since {driver['started']}")
    _show_errors(now)
    return 0


def results(options: argparse.Namespace) -> int:
    """`raysweep results`."""
    from raysweep.suites.results import results as results_table

    loaded, store = _opened(options)
    output = table_file(options.output)
    table = in_order(results_table(loaded, store), options.sort, options.descending)
    if not table.num_rows:
        raise UserError(f"no model of {loaded.name} is measured in {store.location}: `raysweep run` measures them")
    if output is None and options.columns is None:
        _show_results(table)
        return 0
    table = with_columns(table, options.columns)
    if output is None:
        show_columns(table)
        return 0
    write_table(table, output)
    say(f"{table.num_rows} of {len(loaded.models)} models written to {output}")
    return 0


def _show_results(results: pa.Table) -> None:
    """A row for each model."""
    from raysweep.cli.messages import MEASURED, heading

    rows = results.to_pylist()
    if not rows:
        return
    if len(rows) > _LONGEST:
        say(f"{len(rows)} models have results: raysweep results --output FILE.csv writes the table")
        return
    bits = [name for name in rows[0] if name.endswith("_bits_per_byte")][:2]
    measured = [name for name in dict.fromkeys([*MEASURED, *bits]) if any(row.get(name) is not None for row in rows)]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("model", overflow="fold")
    for name in ("step", *map(heading, measured)):
        table.add_column(name, justify="right")
    for row in rows:
        values = ("" if row.get(name) is None else f"{row[name]:.3f}" for name in measured)
        table.add_row(escape(row["id"]), f"{row['steps_trained']:,}", *values)
    show(table)
    say(f"for all {len(rows[0])} columns: raysweep results ... --output FILE.csv")


def analyze(options: argparse.Namespace) -> int:
    """`raysweep analyze`."""
    from raysweep.analysis import suite_data
    from raysweep.analysis.analyze import analyze_sweep
    from raysweep.cli import messages

    if options.next is not None or options.hours is not None:
        raise UserError("--next proposes cells to train, and published models cannot be trained further here")
    loaded, store = _opened(options)
    output = local_path(options.output, "--output")
    data = suite_data.load(store, loaded)
    if options.where is not None:
        data = data.where(options.where)
    with ProgressBars() as bars:
        summary = analyze_sweep(data, Path(output), bars.step)
    card = summary.claims[["claim", "verdict", "statement"]].to_dict("records")
    if options.json:
        print_json({"models": {"planned": summary.planned, "analysed": summary.analysed}, "claims": card})
    else:
        messages.show_claims(card)
        messages.show_analysed(summary, "models", output)
    return 0
