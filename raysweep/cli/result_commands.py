"""results, publish, restore, reproduce, analyze. Each imports what it needs when it runs."""

from __future__ import annotations

import argparse
import logging
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysweep.cli import messages
from raysweep.cli.options import load_space, located_store, open_store, print_json
from raysweep.cli.results_table import in_order, show_columns, table_file, with_columns, write_table
from raysweep.errors import UserError
from raysweep.files import local_path
from raysweep.space.hypothesis_columns import unknown_columns
from raysweep.store import Store, sessions
from raysweep.store.results import nothing_finished
from raysweep.store.results import results as results_table
from raysweep.suites.read import is_suite

if TYPE_CHECKING:
    from raysweep.analysis.analyze import AnalysisSummary

logger = logging.getLogger(__name__)


def results(options: argparse.Namespace) -> int:
    """`raysweep results`."""
    if is_suite(options.space):
        from raysweep.cli import suite_commands

        return suite_commands.results(options)
    space = load_space(options, reading=True)
    store = open_store(options, space)
    output = table_file(options.output)
    table = in_order(results_table(space, store), options.sort, options.descending)
    if not table.num_rows:
        raise UserError(nothing_finished(space, store))
    if output is None:
        if options.columns is None:
            messages.show_table(table)
        else:
            show_columns(with_columns(table, options.columns))
        messages.show_hours(table, sessions.read(store, space.name))
        return 0
    table = with_columns(table, options.columns)
    write_table(table, output)
    print(f"{table.num_rows} of {len(space.cells)} cells written to {output}")
    return 0


def publish(options: argparse.Namespace) -> int:
    """`raysweep publish`."""
    from raysweep.exchange.account import account
    from raysweep.exchange.publish import publish

    space = load_space(options, reading=True)
    output = local_path(options.output, "--output")
    published = publish(Path(options.space), open_store(options, space), output)
    print(f"{len(published.results)} of {len(space.cells)} cells published in {output}")
    if space.code:
        print(f"the search space's own code is not published: {', '.join(space.code)}")
    messages.show_account(account(published))
    return 0


def restore(options: argparse.Namespace) -> int:
    """`raysweep restore`."""
    from raysweep.exchange.published import read_published
    from raysweep.exchange.restore import restore

    published = read_published(Path(options.published))
    store = open_store(options, published.space)
    complete, lacked = restore(published, store)
    print(
        f"{complete} of {len(published.space.cells)} cells are complete in {options.published}; {lacked} were added to "
        f"{store.location}, without checkpoints: `raysweep run` with that store does what is left"
    )
    return 0


def reproduce(options: argparse.Namespace) -> int:
    """`raysweep reproduce`."""
    from raysweep.cli.signals import StopOnSignal
    from raysweep.cli.sweep_commands import Watched, conclude, watch
    from raysweep.exchange.published import read_published
    from raysweep.exchange.reproduce import reproduce
    from raysweep.space.space import find_cell

    folder = Path(options.published)
    published = read_published(folder)
    store = Store(options.store or f"runs/{published.space.name}-again")
    again = ["raysweep", "reproduce", options.published, options.cell]
    again += ["--store", options.store] if options.store else []
    space = published.space.model_copy(update={"cells": (find_cell(published.space, options.cell),)})
    with StopOnSignal() as signals:
        watched = watch(
            lambda on_event: reproduce(published, folder, options.cell, store, on_event, signals.stop), signals
        )
        result, comparison = watched.result or (None, None)
        of_sweep = Watched(result, watched.interrupted, watched.surveyed)
        status = conclude(of_sweep, space, store, shlex.join(again))
        if comparison is None:
            return status or 1
    messages.show_differences(comparison, folder, store)
    return 1 if comparison.differences else 0


def analyze(options: argparse.Namespace) -> int:
    """`raysweep analyze`."""
    from raysweep.analysis.analyze import analyze
    from raysweep.cli.progress_bars import ProgressBars

    if options.other is not None:
        return _side_by_side(options)
    if options.other_store is not None:
        raise UserError("--other-store is of a second sweep, which is missing")
    if is_suite(options.space):
        from raysweep.cli import suite_commands

        return suite_commands.analyze(options)
    output = local_path(options.output, "--output")
    published = Path(options.space).is_dir()
    if published and options.store:
        raise UserError(f"{options.space} already contains its results: leave --store out")
    if options.hours is not None and options.next is None:
        raise UserError("--hours is for --next FILE.yaml, which is missing")
    if options.next is not None and options.where is not None:
        raise UserError("--next is about the whole sweep: leave --where out")
    if options.next is not None and Path(options.next).suffix not in (".yaml", ".yml"):
        raise UserError(f"--next {options.next}: a search space is a .yaml file")
    if options.next is not None:
        from raysweep.space.write import check_target  # ruamel takes a moment.

        check_target(Path(options.space), local_path(options.next, "--next"))
    space = options.space if published else load_space(options, reading=True)
    store = None if published else open_store(options, space)
    with ProgressBars() as bars:
        summary = analyze(space, store, output, options.where, bars.step)
    card = summary.claims[["claim", "verdict", "statement"]].to_dict("records")
    answer: dict[str, Any] = {"cells": {"planned": summary.planned, "analysed": summary.analysed}, "claims": card}
    if not options.json:
        messages.show_claims(card)
        messages.show_analysed(summary, "cells", output)
    measured = summary.design
    for said in unknown_columns(measured.hypotheses, measured.cells.columns) if measured.hypotheses else ():
        logger.warning("a test is undecided: %s", said)
    if options.next is not None:
        answer["next"] = _write_next(options, summary, store, output)
    if options.json:
        print_json(answer)
    return 0


def _side_by_side(options: argparse.Namespace) -> int:
    """`raysweep analyze A B`."""
    from raysweep.analysis import side_by_side, suite_data, sweep_data
    from raysweep.cli.progress_bars import ProgressBars
    from raysweep.exchange.published import read_published
    from raysweep.space.read import load_to_read
    from raysweep.suites.read import load_suite

    if options.next is not None or options.hours is not None:
        raise UserError("--next is about one sweep: leave the second out")
    output = local_path(options.output, "--output")

    def data(place: str, store: str | None) -> sweep_data.SweepData:
        if Path(place).is_dir():
            if store:
                raise UserError(f"{place} already contains its results: leave its store out")
            found = sweep_data.published(read_published(Path(place)))
        elif is_suite(place):
            loaded = load_suite(place)
            found = suite_data.load(located_store(store, loaded.name), loaded)
        else:
            space = load_to_read(Path(place))
            found = sweep_data.load(located_store(store, space.name), space)
        return found if options.where is None else found.where(options.where)

    first, second = data(options.space, options.store), data(options.other, options.other_store)
    with ProgressBars() as bars:
        found = side_by_side.compare(first, second, bars.step)
        side_by_side.write(found, first, second, output)
    card = found.card.to_dict("records")
    if options.json:
        print_json({"a": first.name, "b": second.name, "claims": card})
    else:
        messages.show_side_by_side(card, first.name, second.name)
        print(
            f"{len(first.cells)} cells of {first.name} and {len(second.cells)} of {second.name}; open "
            f"{output / 'comparison.html'}"
        )
    return 0


def _write_next(
    options: argparse.Namespace, summary: AnalysisSummary, store: Store | None, output: Path
) -> dict[str, Any]:
    """`--next`: the search space, and beside the report `next.csv`; what `--json` says of it."""
    import pandas as pd

    from raysweep.analysis.next_cells import next_cells, said
    from raysweep.exchange.published import SPACE, read_published
    from raysweep.space.read import load_published, load_to_read, load_with_count
    from raysweep.space.write import write_with_cells, write_with_count
    from raysweep.store.results import finished
    from raysweep.store.results import timings as timings_of
    from raysweep.store.schemas import TIMINGS

    file = Path(options.space) / SPACE if store is None else Path(options.space)
    # Code that lies beside published results is not imported.
    reader = load_published if store is None else load_to_read
    space = reader(file)
    if store is None:
        timings = read_published(Path(options.space)).timings.to_pandas()
    else:
        done = finished(store)
        ids = [cell.id for cell in space.cells if cell.id in done]
        timings = pd.DataFrame(timings_of(space, store, ids), columns=TIMINGS.names)
    plan = next_cells(
        space, summary.design, summary.tested, summary.noise, timings, options.hours,
        lambda count: load_with_count(file, count, code=store is not None).cells,
    )  # fmt: skip
    plan.table.to_csv(output / "next.csv", index=False)
    if not options.json:
        messages.show_next(plan)
    if not plan.cells:
        if not options.json:
            print(f"{options.next} was not written; {output / 'next.csv'} has every undecided test")
        return {"file": None, "cells": 0, "new": 0}
    target = local_path(options.next, "--next")
    heading = (
        f"{space.name}, with what `raysweep analyze --next` found lacking: {said(plan)}.\n"
        "Cells that the store has are not trained again."
    )
    if plan.count:
        write_with_count(file, plan.count, target, heading)
    else:
        write_with_cells(file, [*space.cells, *plan.cells], target, heading)
    written = reader(target)
    lost = {cell.id for cell in (*space.cells, *plan.cells)} - {cell.id for cell in written.cells}
    if lost:
        raise AssertionError(f"{target} lacks {len(lost)} cells, such as {min(lost)}")
    if not options.json:
        print(
            f"{target}: {len(written.cells):,} cells, {len(plan.cells):,} of them new; `raysweep run {target}` trains those"
        )
    return {"file": str(target), "cells": len(written.cells), "new": len(plan.cells)}
