"""The cells of a search-space file.

A search space has a `base` (one value per field), a `cross` (axes, full product), a `sample` of points `over` ranges of
settings, and `ablate` (a list of items, each a small grid of changes). Its cells are cross x points x ({the point} + every
ablation), where without a `sample` there is one point, the base. `where` keeps those for which it holds. Equal cells count
once; the order is that of the file.
"""

from __future__ import annotations

import itertools
import math
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError

from raysweep.errors import UserError, allowed, did_you_mean
from raysweep.space.cell import Cell
from raysweep.space.condition import Condition
from raysweep.space.design import Design, Over, Sample
from raysweep.space.explain import explain, show
from raysweep.space.fields import plain
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
    """Reads `base`, `cross`, `sample` with `over`, `ablate` and `where`."""

    def cells(self, content: dict[str, Any]) -> tuple[tuple[Cell, ...], Design]:
        """The cells, and how they were chosen."""
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
        sample, over = self._sample(content, {name for axes in (cross, *items) for name in axes})
        count = math.prod(map(len, cross.values())) * (1 + sum(math.prod(map(len, i.values())) for i in items))
        count *= 1 if sample is None else sample.count
        if count > MOST_CELLS:
            raise UserError(
                f"{self.file.path}: {count:,} cells by cross, sample and ablate; a sweep may have at most {MOST_CELLS:,}"
            )
        changes: list[tuple[_Path, dict[str, Any]]] = [(("base",) if sample is None else ("sample",), {})]
        changes += [(("ablate", i), change) for i, item in enumerate(items) for change in _product(item)]
        condition = self._condition(content.get("where"))
        cells: dict[str, Cell] = {}
        left_out = made = 0
        for crossed, point in itertools.product(_product(cross), self._points(sample, over)):
            for where, ablated in changes:
                axes = crossed | point | ablated
                cell: Cell = self.validated(Cell, base | axes, where, axes)
                if condition is not None and not self._holds(condition, cell):
                    left_out += 1
                    continue
                made += 1
                if cells.setdefault(cell.id, cell) != cell:
                    raise self.file.error(
                        where,
                        "two cells differ only in the paths of their corpora and would share results: give the "
                        "corpora different names",
                    )
        if not cells:
            raise self.file.error(("where",), f"it holds for none of the {left_out:,} cells")
        design = Design(
            sample=sample, over=over, where=content.get("where") or "", left_out=left_out,
            equal=made - len(cells) if sample else 0,
        )  # fmt: skip
        return tuple(cells.values()), design

    def _sample(self, content: dict[str, Any], axes: set[str]) -> tuple[Sample | None, dict[str, Over]]:
        if content.get("sample") is None and content.get("over") is None:
            return None, {}
        for key, other in (("sample", "over"), ("over", "sample")):
            if not content.get(key):
                raise self.file.error((other,), f"sample and over need each other, and there is no {key}")
        sample: Sample = self.validated(Sample, self.mapping(content["sample"], ("sample",)), ("sample",))
        over: dict[str, Over] = {}
        for name, given in self.mapping(content["over"], ("over",)).items():
            here = ("over", name)
            self._check_field(name, here)
            if name in axes:
                raise self.file.error(here, "already an axis of cross or ablate; an axis belongs to one of them")
            range_: Over = self.validated(Over, self.mapping(given, here), here)
            if range_.choice is not None:
                values = [self._value(name, value, (*here, "choice", i)) for i, value in enumerate(range_.choice)]
                range_ = range_.model_copy(update={"choice": tuple(values)})
            over[name] = range_
            for share in (0.0, 1 - 2**-30):
                self._value(name, range_.at(share, self._is_whole(name)), here)
        # By name, so that the order of lines in the file does not matter.
        return sample, dict(sorted(over.items()))

    def _points(self, sample: Sample | None, over: dict[str, Over]) -> list[dict[str, Any]]:
        if sample is None:
            return [{}]
        whole = {name: self._is_whole(name) for name in over}
        return [
            {name: over[name].at(share, whole[name]) for name, share in zip(over, point, strict=True)}
            for point in sample.points(len(over))
        ]

    def _is_whole(self, name: str) -> bool:
        """Whether a setting takes whole numbers only."""
        return plain(Cell.model_fields[name].annotation) is int

    def _condition(self, text: Any) -> Condition | None:
        if text is None:
            return None
        if not isinstance(text, str):
            raise self.file.error(
                ("where",), f'a condition in quotes is needed, such as "steps >= 256", not {show(text)}'
            )
        try:
            return Condition(text)
        except ValueError as error:
            raise self.file.error(("where",), str(error)) from None

    def _holds(self, condition: Condition, cell: Cell) -> bool:
        row = cell.describe() | {"tokens_per_parameter": cell.tokens / cell.shape.parameters}
        try:
            return condition.holds(row)
        except ValueError as error:
            raise self.file.error(("where",), str(error)) from None

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
