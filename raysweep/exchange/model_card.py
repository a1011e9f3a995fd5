"""A model card: what an exported model is, how it was trained, what was measured of it."""

from __future__ import annotations

from typing import Any

from raysweep.space.cell import Cell
from raysweep.space.space import Space
from raysweep.store import Store
from raysweep.store.results import results
from raysweep.version import __version__


def model_card(space: Space, store: Store, cell: Cell, form: str, step: int) -> str:
    """A model card: what the model is, how it was trained, what was measured of it."""
    row = results(space.model_copy(update={"cells": (cell,)}), store).to_pylist()
    settings = cell.describe()
    measured = {k: v for k, v in row[0].items() if k not in settings and v is not None} if row else {}

    def table(values: dict[str, Any]) -> list[str]:
        return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in values.items())]

    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "---",
        "",
        f"# {cell.id}",
        "",
        f"A language model of the sweep `{space.name}`, trained and exported by raysweep {__version__}"
        f" ({form}, step {step}). It is the object of a study, not made for use.",
        "",
        "## Configuration",
        "",
        *table(settings),
        "",
        "## Results of the trained cell",
        "",
        *(table(measured) if measured else ["The cell is not finished."]),
        "",
    ]
    return "\n".join(lines)
