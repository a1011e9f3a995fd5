"""Writes a sweep's results as a folder of a few small files; `raysweep.exchange.published` says which."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raysweep.errors import UserError, reason
from raysweep.exchange.published import LATER, SPACE, TABLES, TEXTS, PublishedResults, text_keys
from raysweep.files import put_in_place
from raysweep.space.read import hypotheses_file, load_to_read
from raysweep.store import Store, corpora_record, declarations, sessions
from raysweep.store.results import evaluated, nothing_finished, results, timings
from raysweep.store.schemas import MEASURES, SPECTRA, TRAJECTORIES
from raysweep.store.tables import read_parquet


def publish(space_file: Path, store: Store, folder: Path) -> PublishedResults:
    """Write what is finished of a sweep to a folder, in place of what was published there."""
    space = load_to_read(space_file)
    table = results(space, store)
    if not len(table):
        raise UserError(nothing_finished(space, store))
    finished = table["id"].to_pylist()
    _check_nothing_is_lost(folder, finished, store)
    evaluations = [evaluated(store, e.label, e.identity) for e in space.evaluations]
    rows: dict[str, list[dict[str, Any]]] = {
        "trajectories": [
            row for cell in finished for row in store.read_rows(store.trajectory_file(cell), TRAJECTORIES) or []
        ],
        "evaluations": [row for cell in finished for task in evaluations for row in task.get(cell, [])],
        "timings": timings(space, store, finished),
        "sessions": sessions.read(store, space.name),
        "measures": [row for cell in finished for row in store.read_rows(store.measures_file(cell), MEASURES) or []],
        "spectra": [row for cell in finished for row in store.read_rows(store.spectra_file(cell), SPECTRA) or []],
    }  # fmt: skip
    declared = declarations.read(store, space.name)
    recorded = corpora_record.fingerprints(store)
    texts = {key: recorded[key] for key in text_keys(space) if key in recorded}
    tables = {name: pa.Table.from_pylist(content, schema=TABLES[name]) for name, content in rows.items()}
    # Last, so that a publication that was cut off is seen: its cells are not those of the rows over training.
    tables["results"] = table
    try:
        with put_in_place(folder / SPACE) as unfinished:
            unfinished.write_bytes(space_file.read_bytes())
        hypotheses = hypotheses_file(space_file)
        if hypotheses is not None:
            with put_in_place(folder / hypotheses.name) as unfinished:
                unfinished.write_bytes(hypotheses.read_bytes())
        for name, said in ((declarations.FILE, declared), (TEXTS, texts)):
            if said:
                with put_in_place(folder / name) as unfinished:
                    unfinished.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
            else:
                (folder / name).unlink(missing_ok=True)  # An earlier publication's.
        for name, content in tables.items():
            if name in LATER and not content.num_rows:
                (folder / f"{name}.parquet").unlink(missing_ok=True)
                continue
            with put_in_place(folder / f"{name}.parquet") as unfinished:
                pq.write_table(content, unfinished, compression="zstd")
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {reason(error)}") from None
    return PublishedResults(space, declared=declared, texts=texts, **tables)


def _check_nothing_is_lost(folder: Path, finished: list[str], store: Store) -> None:
    """Raise `UserError` where a folder holds cells that would not be published again."""
    path = folder / "results.parquet"
    if not path.exists():
        return
    try:
        there = read_parquet(path)["id"].to_pylist()
    except (OSError, KeyError, pa.ArrowException):  # What cannot be read is replaced.
        return
    lost = [cell for cell in there if cell not in set(finished)]
    if lost:
        raise UserError(
            f"{folder} holds {len(there)} published cells, of which {len(lost)} are not among the finished cells of "
            f"{store.location}, such as {lost[0]}: publish into another folder, or delete this one first"
        )
