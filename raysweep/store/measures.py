"""What was measured of a cell's matrices, in its two tables."""

from __future__ import annotations

from typing import Any

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
            store.write_table(path, sorted(whole.values(), key=lambda row: int(row["step"])), schema)


def _key(row: dict[str, Any], names: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(row[name] for name in names)
