"""Cells that a sweep on a grid does not have yet: combinations of the values that it tested, of the sizes that it has.

They come in an order that is the same everywhere and follows no setting, one size after the other.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pydantic import ValidationError

from raysweep.analysis.columns import BASE_RATE
from raysweep.space.cell import Cell

# Of one size no more combinations are looked at.
_MOST = 20_000

Keep = Callable[[Cell], bool]


class Untested:
    """What the finished cells of a design leave untested."""

    def __init__(self, cells: list[Cell], space: Iterable[Cell]) -> None:
        """`cells` are the finished ones of the design, `space` all that are planned."""
        self._finished = {cell.id for cell in cells}
        self._planned = self._finished | {cell.id for cell in space}
        self._seeds = sorted({cell.seed for cell in cells})
        self._sizes: dict[str, list[Cell]] = {}
        for cell in cells:
            self._sizes.setdefault(cell.size.label, []).append(cell)

    def seeds(self, cells: list[Cell], number: int) -> list[Cell]:
        """What is not planned of these cells with further seeds, until each has so many."""
        further = range(self._seeds[-1] + 1, self._seeds[-1] + 1 + number - len(self._seeds))
        first = [cell for cell in cells if cell.seed == self._seeds[0]]
        every = [cell.model_copy(update={"seed": seed}) for seed in further for cell in first]
        return [cell for cell in every if cell.id not in self._planned]

    @property
    def seeds_there(self) -> int:
        return len(self._seeds)

    def configurations(self, keep: Keep) -> Iterator[list[Cell]]:
        """Each with every seed of the design."""
        yield from _in_turn([self._of_size(cells, keep) for cells in self._sizes.values()])

    def comparisons(self, over: str, keep: Keep) -> Iterator[list[Cell]]:
        """What is missing of groups of cells that have every value of one setting, with every seed, all else equal."""
        field = "learning_rate" if over == BASE_RATE else over
        if field not in Cell.model_fields:
            return
        yield from _in_turn([self._slices(cells, field, keep) for cells in self._sizes.values()])

    def _of_size(self, cells: list[Cell], keep: Keep) -> Iterator[list[Cell]]:
        for settings in _combinations(_levels(cells), cells[0]):
            made = [self._made(cells[0], settings | {"seed": seed}) for seed in self._seeds]
            new = [cell for cell in made if cell is not None and cell.id not in self._planned and keep(cell)]
            if len(new) == len(self._seeds):
                yield new

    def _slices(self, cells: list[Cell], field: str, keep: Keep) -> Iterator[list[Cell]]:
        levels = _levels(cells)
        values = levels.pop(field, [])
        if len(values) < 2:
            return
        for settings in _combinations(levels, cells[0]):
            whole = [
                [self._made(cells[0], settings | {field: value, "seed": seed}) for seed in self._seeds]
                for value in values
            ]
            every = [cell for of_value in whole for cell in of_value]
            if any(cell is None or not keep(cell) for cell in every):
                continue
            # With two values it is a comparison already.
            there = sum(any(cell and cell.id in self._finished for cell in of_value) for of_value in whole)
            new = [cell for cell in every if cell is not None and cell.id not in self._planned]
            if there < 2 and new:
                yield new

    def _made(self, like: Cell, settings: dict[str, Any]) -> Cell | None:
        try:
            return Cell.model_validate(like.model_dump() | settings)
        except ValidationError:  # Settings that do not go together.
            return None


def _levels(cells: list[Cell]) -> dict[str, list[Any]]:
    """The values of each setting that varies between cells, but the seed."""
    levels: dict[str, list[Any]] = {}
    for name in Cell.model_fields:
        values: list[Any] = []
        for cell in cells:
            value = getattr(cell, name)
            if value not in values:
                values.append(value)
        if len(values) > 1 and name != "seed":
            levels[name] = values
    return levels


def _combinations(levels: dict[str, list[Any]], like: Cell) -> list[dict[str, Any]]:
    """Every combination of values, in an order by their digest."""
    total = math.prod(map(len, levels.values()))
    settings = []
    for number in range(total) if total <= _MOST else random.Random(0).sample(range(total), _MOST):  # noqa: S311
        chosen = {}
        for name, values in levels.items():
            number, index = divmod(number, len(values))
            chosen[name] = values[index]
        settings.append(chosen)

    def digest(one: dict[str, Any]) -> str:
        return hashlib.sha256(f"{like.size.label} {sorted(one.items(), key=str)}".encode()).hexdigest()

    return sorted(settings, key=digest)


def _in_turn(streams: list[Iterator[list[Cell]]]) -> Iterator[list[Cell]]:
    """One of each, then the next of each, until all are empty."""
    while streams:
        left = []
        for stream in streams:
            if (one := next(stream, None)) is not None:
                yield one
                left.append(stream)
        streams = left
