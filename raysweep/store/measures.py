"""What was measured of a cell's matrices, in its two tables."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
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


def failed(row: dict[str, Any]) -> bool:
    """Whether a number is not there, and may be the next time."""
    return (row["reason"] or "").startswith(FAILED)


def value_key(row: dict[str, Any]) -> tuple[Any, ...]:
    """What tells the rows of numbers of one cell apart."""
    return _key(row, _OF_VALUE)


def asked(space: Space, cell: Cell) -> set[tuple[str, str, str]]:
    """The (matrix, metric, settings) of what `measure` asks for; a store may have others, such as older versions."""
    return {
        (one.label, one.name_of(metric, other), one.settings_of(metric))
        for one in (wanted(space.measure, cell) if space.measure else ())
        for metric, other in one.metrics
    }


def keys(store: Store, cell: str) -> tuple[set[tuple[Any, ...]], set[tuple[Any, ...]]]:
    """What there is: (step, matrix, metric, settings) of the numbers, (step, matrix, settings) of the singular values."""
    values = store.read_rows(store.measures_file(cell), MEASURES) or []
    spectra = store.read_rows(store.spectra_file(cell), SPECTRA) or []
    return {value_key(row) for row in values if not failed(row)}, {_key(row, _OF_SPECTRUM) for row in spectra}


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
    return sum(len(steps_of(lacking(cell, wanted(space.measure, cell), store))) for cell in cells)


def steps_of(measures: list[Wanted]) -> set[int]:
    """The steps of the reports at which something of it is measured."""
    return set().union(*(one.spectrum for one in measures))


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
            found.append(replace(one, metrics=metrics, spectrum=steps))
    return found


def _key(row: dict[str, Any], names: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(row[name] for name in names)
