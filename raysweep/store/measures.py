"""What was measured of a cell's matrices, in its two tables."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from raysweep.space.cell import Cell
from raysweep.space.measure import Wanted, wanted
from raysweep.space.space import Space
from raysweep.store.schemas import MEASURES, SPECTRA
from raysweep.store.store import Store

Rows = list[dict[str, Any]]

FAILED = "failed: "
"""How the reason begins of a number that may be there the next time: it counts as missing."""

# What tells rows apart.
_OF_VALUE = ("step", "matrix", "metric", "settings")
_OF_SPECTRUM = ("step", "matrix", "settings")


def keys(store: Store, cell: str) -> tuple[set[tuple[Any, ...]], set[tuple[Any, ...]]]:
    """What there is: (step, matrix, metric, settings) of the numbers, (step, matrix, settings) of the singular values."""
    values = store.read_rows(store.measures_file(cell), MEASURES) or []
    spectra = store.read_rows(store.spectra_file(cell), SPECTRA) or []
    there = [row for row in values if not (row["reason"] or "").startswith(FAILED)]
    return {_key(row, _OF_VALUE) for row in there}, {_key(row, _OF_SPECTRUM) for row in spectra}


def write(store: Store, cell: str, values: Rows, spectra: Rows, add: bool = False) -> None:
    """Write a cell's tables, rows without the cell; without rows there is no table. With `add` what there is stays."""
    for path, schema, names, rows in (
        (store.measures_file(cell), MEASURES, _OF_VALUE, values),
        (store.spectra_file(cell), SPECTRA, _OF_SPECTRUM, spectra),
    ):
        before = store.read_rows(path, schema) or [] if add else []
        whole = {_key(row, names): row for row in [*before, *({"cell": cell, **row} for row in rows)]}
        if not whole:
            store.delete(path)  # It would be of weights that are gone.
        else:
            store.write_table(path, [whole[key] for key in sorted(whole)], schema)


def reports_without(space: Space, store: Store, trained: Collection[str]) -> int:
    """How many reports of the trained cells lack something that `measure` asks for."""
    if not space.measure:
        return 0
    cells = [cell for cell in space.cells if cell.id in trained]
    return sum(len(lacking_steps(cell, wanted(space.measure, cell), store)) for cell in cells)


def lacking_steps(cell: Cell, measures: list[Wanted], store: Store) -> set[int]:
    """The reports of a cell of which the store lacks something that is asked for."""
    return {step for one in lacking(cell, measures, store) for step in one.spectrum}


def lacking(cell: Cell, measures: list[Wanted], store: Store) -> list[Wanted]:
    """What is asked for and not in the store."""
    have, spectra = keys(store, cell.id)
    found = []
    for one in measures:
        metrics = {
            (name, other): left
            for (name, other), steps in one.metrics.items()
            if (
                left := {
                    s for s in steps if (s, one.label, one.name_of(name, other), one.settings_of(name)) not in have
                }
            )
        }
        steps = {s for s in one.spectrum if (s, one.label, one.settings) not in spectra}
        steps = steps.union(*metrics.values())
        if steps:
            found.append(one.only(metrics, steps))
    return found


def _key(row: dict[str, Any], names: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(row[name] for name in names)
