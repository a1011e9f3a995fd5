"""The cells of a search-space file.

A search space has a `base` (one value per field), a `cross` (axes, full product) and `ablate` (a list of items; each is a
small grid of changes to the base, crossed with `cross`). Its cells are cross x ({base} + every ablation), equal cells
counted once, in the order of the file.
"""

from __future__ import annotations

import itertools
import math
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError

from raysweep.errors import UserError, allowed, did_you_mean
from raysweep.space.cell import Cell
from raysweep.space.explain import explain, show
from raysweep.space.yaml_file import YamlFile

# Beyond this an axis is a mistake, and making the cells would only hang.
MOST_CELLS = 100_000

_Path = tuple[str | int, ...]


class Reader:
    """Turns parts of a file into what they stand for, and what is wrong with them into an error with its place."""

    def __init__(self, file: YamlFile) -> None:
        self.file = file

    def validated(self, kind: Any, values: Any, where: _Path, axes: dict[str, Any] | None = None) -> Any:
        try:
            return kind.model_validate(values)
        except ValidationError as error:
            inside, message = explain(error, kind)
            at = f" (at {', '.join(f'{k}={show(v)}' for k, v in axes.items())})" if axes else ""
            raise self.file.error((*where, *inside), message + at) from None

    def mapping(self, value: Any, where: _Path) -> dict[Any, Any]:
        if not isinstance(value, dict):
            what = "" if where else "the file: "
            raise self.file.error(where, f"{what}a mapping of names to values is needed, not {show(value)}")
        return value


class CellsReader(Reader):
    """Reads `base`, `cross` and `ablate`."""

    def cells(self, content: dict[str, Any]) -> tuple[Cell, ...]:
        base = self.mapping(content["base"], ("base",))
        base = {name: self._value(name, value, ("base", name)) for name, value in base.items()}
        cross = self._axes({} if (given := content.get("cross")) is None else given, ("cross",))
        ablate = [] if (given := content.get("ablate")) is None else given
        if not isinstance(ablate, list):
            raise self.file.error(
                ("ablate",), f"a list of items like {{weight_decay: [0.01, 0.5]}} is needed, not {show(ablate)}"
            )
        items = [self._axes(item, ("ablate", i)) for i, item in enumerate(ablate)]
        for i, item in enumerate(items):
            for name in item:
                if name in cross:
                    raise self.file.error(
                        ("ablate", i, name), "already an axis of cross; an axis belongs to one of them"
                    )
        count = math.prod(map(len, cross.values())) * (1 + sum(math.prod(map(len, i.values())) for i in items))
        if count > MOST_CELLS:
            raise UserError(
                f"{self.file.path}: cross and ablate: {count:,} cells; a sweep may have at most {MOST_CELLS:,}"
            )
        changes: list[tuple[_Path, dict[str, Any]]] = [(("base",), {})]
        changes += [(("ablate", i), change) for i, item in enumerate(items) for change in _product(item)]
        cells: dict[str, Cell] = {}
        for crossed in _product(cross):
            for where, ablated in changes:
                axes = crossed | ablated
                cell: Cell = self.validated(Cell, base | axes, where, axes)
                if cells.setdefault(cell.id, cell) != cell:
                    raise self.file.error(
                        where,
                        "two cells differ only in the paths of their corpora and would share results: give the "
                        "corpora different names",
                    )
        return tuple(cells.values())

    def _axes(self, content: Any, where: _Path) -> dict[str, list[Any]]:
        axes: dict[str, list[Any]] = {}
        for name, values in self.mapping(content, where).items():
            here = (*where, name)
            self._check_field(name, here)
            if not isinstance(values, list):
                raise self.file.error(here, f"a list of values is needed, not {show(values)}")
            if not values:
                raise self.file.error(here, "the list is empty; give at least one value or remove the axis")
            axes[name] = [self._value(name, value, (*here, i)) for i, value in enumerate(values)]
            for i, value in enumerate(axes[name]):
                if value in axes[name][:i]:
                    raise self.file.error((*here, i), f"{show(values[i])} is in the list twice")
        return axes

    def _check_field(self, name: Any, where: _Path) -> None:
        fields = Cell.model_fields
        if name not in fields:
            raise self.file.error(where, f"unknown field{did_you_mean(name, fields) or f'; {allowed(name, fields)}'}")

    def _value(self, name: Any, value: Any, where: _Path) -> Any:
        """One value of one field, validated by the field's own type."""
        self._check_field(name, where)
        field = Cell.model_fields[name]
        kind: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
        try:
            return TypeAdapter(kind).validate_python(value)
        except ValidationError as error:
            inside, message = explain(error, kind)
            raise self.file.error((*where, *inside), message) from None


def _product(axes: dict[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
