"""The table of `raysweep results`: chosen columns, an order, and files of the kind that a name asks for."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from raysweep.cli.console import escape, show
from raysweep.errors import UserError, allowed, reason
from raysweep.files import local_path, put_in_place

if TYPE_CHECKING:
    import pyarrow as pa


def in_order(table: pa.Table, sort: str | None, descending: bool) -> pa.Table:
    """The table in the order of a column.

    Rows that are equal there keep the order of the search space, and those without a value come last. Raises `UserError`
    where it is not there.
    """
    if sort is None:
        if descending:
            raise UserError("--descending is of --sort, which is missing")
        return table
    values = table[_checked(table, "--sort", sort)].to_pylist()
    there = [i for i, value in enumerate(values) if not _absent(value)]
    order = sorted(there, key=values.__getitem__, reverse=descending)
    return table.take([*order, *(i for i, value in enumerate(values) if _absent(value))])


def with_columns(table: pa.Table, columns: str | None) -> pa.Table:
    """The table with these columns, names with commas between. Raises `UserError` where one is not there."""
    if columns is None:
        return table
    return table.select([_checked(table, "--columns", name.strip()) for name in columns.split(",") if name.strip()])


def _checked(table: pa.Table, option: str, name: str) -> str:
    if name not in table.column_names:
        raise UserError(f"{option} {name}: no such column; {allowed(name, table.column_names)}")
    return name


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def show_columns(results: pa.Table) -> None:
    """Print a table as it is."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for field in results.schema:
        table.add_column(field.name, justify="left" if str(field.type) in ("string", "bool") else "right")
    for row in results.to_pylist():
        table.add_row(*(_shown(value) for value in row.values()))
    show(table)


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else escape(str(value))


def table_file(given: str | None) -> Path | None:
    """The file of --output, where it is given. Raises `UserError` where its name is of no kind of table."""
    if given is None:
        return None
    output = local_path(given, "--output")
    if output.suffix not in _WRITERS:
        raise UserError(f"--output {output}: give a name that ends in {', '.join(_WRITERS)}")
    return output


def write_table(table: pa.Table, output: Path) -> None:
    """Write a table to a `table_file`. Raises `UserError` where it cannot be written."""
    try:
        with put_in_place(output) as unfinished:
            _WRITERS[output.suffix](table, unfinished)
    except OSError as error:
        raise UserError(f"{output} cannot be written: {reason(error)}") from None


# Each imports what it needs: none is needed to show a table.


def _parquet(table: pa.Table, path: Path) -> None:
    import pyarrow.parquet as pq

    pq.write_table(table, path)


def _feather(table: pa.Table, path: Path) -> None:
    import pyarrow.feather

    pyarrow.feather.write_feather(table, path)


def _csv(table: pa.Table, path: Path) -> None:
    import pyarrow.csv

    pyarrow.csv.write_csv(table, path)


def _json(table: pa.Table, path: Path) -> None:
    from raysweep.cli.options import as_json

    path.write_text(as_json(table.to_pylist()) + "\n", encoding="utf-8")


_WRITERS: dict[str, Callable[[pa.Table, Path], None]] = {
    ".parquet": _parquet, ".feather": _feather, ".csv": _csv, ".json": _json,
}  # fmt: skip
