"""What the page with controls shows of cells: which columns there are, of what kind, and with which it begins."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from raysweep.analysis.columns import BASE_RATE, RANK, words
from raysweep.analysis.sweep_data import SweepData
from raysweep.page.content import Column, Content
from raysweep.space.measure import column as measured_column
from raysweep.store.results import GPU_HOURS, TRAINED_ON
from raysweep.store.schemas import PLAN, TRAJECTORIES

CELL = ("id", "state", "share", "step", "stage", "error")
"""What a cell is and where it stands."""

# What follows from the settings that a search space chooses.
_DERIVED = ("width", "depth", "heads", "parameters", "steps", "flops")

# Those that the rule makes of the size, unless the search space sets them.
_BY_RULE = ("learning_rate", BASE_RATE)
_OTHER = (
    "train_seconds", "train_tokens_per_second", GPU_HOURS, TRAINED_ON, "corpus_fingerprint", "raysweep_version",
    "torch_version",
)  # fmt: skip
_LEFT_OUT = ("status", "steps_trained", "tokens_trained", "reports")
_LOSSES = ("_loss", "_loss_change", "_loss_before", "_accuracy", "_accuracy_without_overlap", "_bits_per_byte")

# What the page cannot do without.
_NEEDED = (*CELL[:3], "parameters", "steps")


def content(
    cells: pd.DataFrame, units: Mapping[str, str], curves: Iterable[str], outcome: str, configuration: Iterable[int]
) -> Content:
    """What the page is given of cells, a row each; `units` has the unit of a column, where it has one.

    Columns in which no two cells differ, or that are empty, are left out. `configuration` numbers what seeds share.
    """
    switches = cells.select_dtypes(bool)
    cells = cells.assign(**{name: np.where(switches[name], "yes", "no") for name in switches})
    shown = [name for name in cells if name not in _LEFT_OUT and (name in _NEEDED or _says_something(cells, name))]
    by_kind: dict[str, list[str]] = {}
    for name in shown:
        by_kind.setdefault(_kind(cells, name), []).append(name)
    order = ("cell", "setting", "loss", "metric", "derived", "other")
    columns = [
        Column(name, _label(name, units), kind, pd.api.types.is_numeric_dtype(cells[name]))
        for kind in order
        for name in by_kind.get(kind, [])
    ]
    settings = by_kind.get("setting", [])
    colour = "size" if "size" in settings else next(iter(settings), "state")
    defaults = {
        "x": RANK if RANK in shown else next(iter(by_kind.get("metric", [])), "parameters"),
        "y": outcome if outcome in shown else next(iter(by_kind.get("loss", [])), "parameters"),
        "curve": "validation_loss",
        "colour": colour,
        "curve_colour": "batch_size" if "batch_size" in settings else colour,
    }
    table = cells[[column.name for column in columns]].assign(
        row=np.arange(len(cells), dtype=np.int32), changed=1, configuration=np.asarray(configuration, np.int32)
    )
    return Content(columns, table, {name: _label(name, units) for name in curves}, defaults)


def _says_something(cells: pd.DataFrame, name: str) -> bool:
    values, kind = cells[name], _kind(cells, name)
    if kind == "other":  # Cells that are not finished have none.
        return bool(values.nunique() > 1)
    if kind in ("setting", "derived"):
        return bool(values.nunique(dropna=False) > 1)
    return bool(values.notna().any())


def _kind(cells: pd.DataFrame, name: str) -> str:
    if name in CELL:
        return "cell"
    if name in _BY_RULE:
        factor = ["learning_rate_factor"] if name == "learning_rate" and "learning_rate_factor" in cells else []
        return "setting" if cells.groupby(["parameters", *factor])[name].nunique().max() > 1 else "derived"
    if name in _DERIVED:
        return "derived"
    if name in PLAN.names:
        return "setting"
    if name in _OTHER:
        return "other"
    return "loss" if name.endswith(_LOSSES) or "_loss_" in name else "metric"


def _label(name: str, units: Mapping[str, str]) -> str:
    unit = units.get(name, "").partition(",")[0]
    return f"{words(name)} ({unit})" if unit and unit != words(name) else words(name)


def of_sweep(sweep: SweepData) -> tuple[Content, pd.DataFrame]:
    """The page's content of a sweep whose tables are loaded, and its curves: `cell` (the row), `step`, `tokens`, columns."""
    cells = sweep.cells.assign(state="done", share=1.0)
    curves = curves_of(sweep.trajectories, sweep.measures)
    curves = curves[curves["cell"].isin(set(cells["id"]))].reset_index(drop=True)
    named = [name for name in curves if name not in ("cell", "step", "tokens") and curves[name].notna().any()]
    place = {cell: row for row, cell in enumerate(cells["id"])}
    curves = curves[["cell", "step", "tokens", *named]].assign(cell=curves["cell"].map(place).astype(np.int32))
    return content(
        cells, sweep.units, named, sweep.tasks.get(sweep.main_task, "validation_loss"), sweep.configurations
    ), curves


def curve_columns(measured: Iterable[tuple[str, str]] = ()) -> list[str]:
    """What is logged over training; `measured` has the metrics and matrices that a search space asks for."""
    logged = [name for name in TRAJECTORIES.names if name not in ("cell", "step", "tokens")]
    return [*logged, *dict.fromkeys(measured_column(metric, matrix) for metric, matrix in measured)]


def curves_of(trajectories: pd.DataFrame, measures: pd.DataFrame) -> pd.DataFrame:
    """Trajectories with a column for each metric of a matrix that was measured; rows of one cell stand together."""
    rows = trajectories[["cell", "step", "tokens", *(c for c in curve_columns() if c in trajectories)]]
    if len(measures):
        named = measures.assign(column=list(map(measured_column, measures["metric"], measures["matrix"])))
        wide = named.pivot_table(index=["cell", "step"], columns="column", values="value", aggfunc="last")
        rows = rows.merge(wide.reset_index(), on=["cell", "step"], how="left")
    return rows.sort_values(["cell", "step"], kind="stable").reset_index(drop=True)
