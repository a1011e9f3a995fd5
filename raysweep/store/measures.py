"""What was measured of a cell's matrices, in its two tables."""

from __future__ import annotations

from typing import Any

from raysweep.store.schemas import MEASURES, SPECTRA
from raysweep.store.store import Store

Rows = list[dict[str, Any]]

# What tells rows apart.
_OF_VALUE = ("step", "matrix", "metric", "settings")
_OF_SPECTRUM = ("step", "matrix", "settings")


def keys(store: Store, cell: str) -> tuple[set[tuple[Any, ...]], set[tuple[Any, ...]]]:
    """What there is: (step, matrix, metric, settings) of the numbers, (step, matrix, settings) of the singular values."""
    values = store.read_rows(store.measures_file(cell), MEASURES) or []
    spectra = store.read_rows(store.spectra_file(cell), SPECTRA) or []
    return {_key(row, _OF_VALUE) for row in values}, {_key(row, _OF_SPECTRUM) for row in spectra}


def write(store: Store, cell: str, values: Rows, spectra: Rows, add: bool = False) -> None:
    """Write a cell's tables, where there are rows; rows are without the cell. With `add` what there is stays."""
    for path, schema, names, rows in (
        (store.measures_file(cell), MEASURES, _OF_VALUE, values),
        (store.spectra_file(cell), SPECTRA, _OF_SPECTRUM, spectra),
    ):
        before = store.read_rows(path, schema) or [] if add else []
        whole = {_key(row, names): row for row in [*before, *({"cell": cell, **row} for row in rows)]}
        if whole:
            store.write_table(path, sorted(whole.values(), key=lambda row: int(row["step"])), schema)


def _key(row: dict[str, Any], names: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(row[name] for name in names)
