"""What the page is given: cells and curves as Arrow tables, and what their columns are; and the files that it is made of."""

from __future__ import annotations

import base64
import json
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from jinja2 import ChoiceLoader, Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

_HERE = Path(__file__).parent

SCRIPTS = ("flechette.min.js", "data.js", "cells.js", "plots.js")
"""What every page runs, in this order; then `live.js` or `frozen.js`. `plotly.js` is plotly's own."""


@dataclass(frozen=True)
class Column:
    """A column of the cells' table."""

    name: str
    label: str
    kind: str
    """cell (what it is and where it stands), setting, derived (what follows from settings), loss, metric or other."""
    number: bool


@dataclass(frozen=True)
class Content:
    """What a page shows of a sweep."""

    columns: list[Column]
    cells: pd.DataFrame
    """A row for each cell: `columns`; `row`, its place; `changed`, the version that it is of; `configuration`, which seeds
    of one configuration share."""
    curve_columns: dict[str, str]
    """Column over training -> its label."""
    defaults: dict[str, str] = field(default_factory=dict)
    """Control of the page -> what it shows at first."""

    @property
    def measured(self) -> set[str]:
        """The columns of what was measured."""
        return {column.name for column in self.columns if column.kind in ("loss", "metric")}

    def described(self) -> dict[str, Any]:
        """All but the rows, for JSON."""
        return {
            "columns": [[c.name, c.label, c.kind, c.number] for c in self.columns],
            "curve_columns": list(self.curve_columns.items()),
            "defaults": self.defaults,
            "count": len(self.cells),
        }


def arrow(table: pd.DataFrame, measured: Collection[str]) -> bytes:
    """A table as an Arrow stream: numbers that are not there are NaN, texts empty; those of `measured` have 7 digits."""
    columns: dict[str, pa.Array] = {}
    for name, values in table.items():
        if pd.api.types.is_float_dtype(values):
            with np.errstate(over="ignore"):
                numbers = values.to_numpy(np.float32 if name in measured else float, copy=True)
            numbers[~np.isfinite(numbers)] = np.nan  # A loss that overflowed was not measured.
            columns[str(name)] = pa.array(numbers, from_pandas=False)
        elif pd.api.types.is_integer_dtype(values):
            fits = not len(values) or np.abs(values).max() < 2**31
            columns[str(name)] = pa.array(values.to_numpy(np.int32 if fits else float))
        else:
            columns[str(name)] = pa.array(values.fillna("").astype(str).tolist(), pa.string()).dictionary_encode()
    made = pa.table(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, made.schema) as writer:
        writer.write_table(made.combine_chunks())
    return bytes(sink.getvalue().to_pybytes())


def frozen(content: Content, curves: pd.DataFrame) -> Markup:
    """The JSON for a page that needs no server; `curves` has `cell` (its row), `step`, `tokens` and columns."""
    state = content.described() | {
        "epoch": "frozen",
        "version": 1,
        "cells": base64.b64encode(arrow(content.cells, content.measured)).decode(),
        "curves": base64.b64encode(arrow(curves, content.curve_columns)).decode(),
    }
    return in_script(state)


def in_script(value: Any) -> Markup:
    """JSON that is safe inside a script element."""
    text = json.dumps(value, separators=(",", ":")).replace("<", "\\u003c").replace("\u2028", "\\u2028")
    return Markup(text)  # noqa: S704 (no character in it can end the element)


def script(name: str) -> str:
    """The text of one of the page's scripts."""
    return str(get_plotlyjs()) if name == "plotly.js" else (_HERE / name).read_text(encoding="utf-8")


def style() -> str:
    """The page's style sheet."""
    return (_HERE / "page.css").read_text(encoding="utf-8")


def environment(templates: Path) -> Environment:
    """Where the templates of a folder, and those of the page, are found."""
    return Environment(
        loader=ChoiceLoader([FileSystemLoader(templates), FileSystemLoader(_HERE)]), autoescape=True,
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
