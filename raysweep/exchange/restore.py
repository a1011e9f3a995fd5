"""Makes a store from published results, in which the sweep resumes."""

from __future__ import annotations

import json
import logging
from typing import Any

from raysweep.exchange.published import PublishedResults, by_cell, text_keys
from raysweep.store import Store, corpora_record, declarations, measures, sessions
from raysweep.store.lock import Lock
from raysweep.store.results import finished
from raysweep.store.schemas import CELLS, EVALUATIONS, SESSIONS, TIMINGS, TRAJECTORIES
from raysweep.store.store import PLANNED, settings_text
from raysweep.sweep.runner import write_plan

log = logging.getLogger("raysweep")


def restore(published: PublishedResults, store: Store) -> tuple[int, int]:
    """Write to a store the published cells that it lacks, so that `raysweep run` resumes from there.

    Checkpoints are not published: a cell whose evaluations are not all there, under the settings of the published search
    space, must be trained again. Results in the store are left alone. Returns how many cells are complete, and how
    many of them the store lacked. Raises `UserError` where it was begun on other corpora.
    """
    space = published.space
    rows = {row["id"]: row for row in published.results.to_pylist()}
    parts = {name: by_cell(getattr(published, name)) for name in ("trajectories", "evaluations", "timings")}
    values, spectra = by_cell(published.measures), by_cell(published.spectra)
    store.probe()
    with Lock(store):
        if store.read(PLANNED) is None:
            write_plan(space, store)
        of_cells = {cell.corpus.key: rows[cell.id]["corpus_fingerprint"] for cell in space.cells if cell.id in rows}
        corpora_record.record(store, of_cells | published.texts)
        _say_unknown_texts(published)
        recorded = {(row["started"], row["host"]) for row in sessions.read(store, space.name)}
        for index, row in enumerate(published.sessions.to_pylist()):
            if (row["started"], row["host"]) not in recorded:
                store.write_table(sessions.file(row["started"], f"restored{index}"), [row], SESSIONS)
        if published.declared and not declarations.read(store, space.name):
            declarations.write(store, [*declarations.read(store), *published.declared])
        done = finished(store)
        complete = lacked = 0
        for planned in [cell for cell in space.cells if cell.id in rows]:
            cell = planned.id
            asked = {(one.label, settings_text(one.identity)) for one in space.evaluations_of(planned)}
            trajectory, metrics, timings = (part.get(cell, []) for part in parts.values())
            evaluations: dict[tuple[str, str], list[dict[str, Any]]] = {}
            for metric in metrics:
                evaluations.setdefault((metric["task"], metric["settings"]), []).append(metric)
            if not trajectory or (rows[cell]["status"] == "done" and not asked <= evaluations.keys()):
                continue
            complete += 1
            if cell in done:
                continue
            lacked += 1
            for (task, settings), of_task in evaluations.items():
                store.write_table(store.evaluation_file(cell, task, json.loads(settings)), of_task, EVALUATIONS)
            for timing in timings:
                store.write_table(store.timing_file(cell, timing["stage"]), [timing], TIMINGS)
            store.write_table(store.trajectory_file(cell), trajectory, TRAJECTORIES)
            measures.write(store, cell, values.get(cell, []), spectra.get(cell, []))
            # Last: it says that the cell is done.
            store.write_table(store.cell_file(cell), [{name: rows[cell][name] for name in CELLS.names}], CELLS)
    return complete, lacked


def _say_unknown_texts(published: PublishedResults) -> None:
    """Warn of each evaluation whose text may have changed since, where nothing can tell."""
    unknown = {label for key, label in text_keys(published.space).items() if key not in published.texts}
    for label in sorted(unknown):
        log.warning("%s: which text it read was not published: make sure that its text is the same here", label)
