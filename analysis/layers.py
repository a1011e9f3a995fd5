"""What was measured across layers: each metric by depth and over training, and what it has to do with the loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from raysweep.analysis.columns import place
from raysweep.analysis.regressions import DRAWS, of_metric
from raysweep.space.measure import column

if TYPE_CHECKING:
    from raysweep.analysis.sweep_data import SweepData

COLUMNS = [
    "matrix", "part", "layer", "metric", "cells", "mean", "sd", "partial_spearman", "partial_low", "partial_high",
    "added_r2", "added_low", "added_high", "reason",
]  # fmt: skip
"""Of layers.csv: mean and standard deviation over cells, and what there is to the loss of the main task, at the end."""

MOST_STEPS = 12
"""Points of a cell's curve in the report."""


def layers(
    sweep: SweepData, draws: int = DRAWS, step: Callable[[int, int], None] = lambda done, of: None
) -> pd.DataFrame:
    """A row for each metric of each layer, with the columns `COLUMNS`."""
    cells = sweep.cells
    pairs = [
        (metric, matrix, column(metric, matrix))
        for metric, matrix in sweep.measures[["metric", "matrix"]].drop_duplicates().itertuples(index=False)
        if place(matrix) is not None and column(metric, matrix) in cells
    ]
    if not pairs:
        return pd.DataFrame(columns=COLUMNS)
    loss_column = sweep.tasks.get(sweep.main_task)
    rows = []
    for done, (metric, matrix, name) in enumerate(pairs):
        step(done, len(pairs))
        part, layer = place(matrix) or ("", "")
        values = cells[name].to_numpy(float)
        have = values[np.isfinite(values)]
        row: dict[str, Any] = dict.fromkeys(COLUMNS, np.nan) | {
            "matrix": matrix, "part": part, "layer": layer, "metric": metric, "cells": len(have), "reason": "",
        }  # fmt: skip
        if len(have):
            row |= {"mean": have.mean(), "sd": have.std(ddof=1) if len(have) > 1 else np.nan}
        if loss_column is not None:
            outcome = of_metric(sweep, loss_column, name, draws)
            partial, added = (outcome.answer(statistic, name) for statistic in ("partial_spearman", "predictive_r2"))
            row |= {
                "partial_spearman": partial["value"], "partial_low": partial["low"], "partial_high": partial["high"],
                "added_r2": added["value"], "added_low": added["low"], "added_high": added["high"],
                "reason": partial["reason"] or added["reason"],
            }  # fmt: skip
        rows.append(row)
    step(len(pairs), len(pairs))
    return pd.DataFrame(rows, columns=COLUMNS)


def explorer(sweep: SweepData, table: pd.DataFrame) -> dict[str, Any] | None:
    """What the report draws: values by part, metric, cell, layer and step, and correlations; None where there are none."""
    layered = sweep.measures.assign(place=[place(matrix) for matrix in sweep.measures["matrix"]]).dropna(subset="place")
    layered = layered[layered["cell"].isin(set(sweep.cells["id"]))]
    if not len(layered):
        return None
    layered = layered.assign(part=[p for p, _ in layered["place"]], layer=[name for _, name in layered["place"]])
    series: dict[str, dict[str, dict[str, Any]]] = {}
    steps_of = sweep.cells.set_index("id")["steps"]
    for (part, metric, cell), rows in layered.groupby(["part", "metric", "cell"], sort=False):
        wide = rows.pivot(index="layer", columns="step", values="value")
        order = sorted(wide.index, key=depth)
        chosen = wide.columns[np.unique(np.linspace(0, len(wide.columns) - 1, MOST_STEPS).round().astype(int))]
        series.setdefault(part, {}).setdefault(metric, {})[cell] = {
            "layers": order,
            "at": [round(float(s) / float(steps_of[cell]), 5) for s in chosen],
            "values": [
                [float(f"{v:.5g}") if np.isfinite(v) else None for v in wide.loc[layer, chosen]] for layer in order
            ],
        }
    correlations = {
        f"{part}|{metric}": [
            {"layer": r["layer"], "value": r["partial_spearman"], "low": r["partial_low"], "high": r["partial_high"]}
            for r in sorted(rows.to_dict("records"), key=lambda r: depth(r["layer"]))
            if np.isfinite(r["partial_spearman"])
        ]
        for (part, metric), rows in table.groupby(["part", "metric"], sort=False)
    }
    return {"series": series, "correlations": {k: _no_nan(v) for k, v in correlations.items() if v}}


def depth(layer: str) -> float:
    """`final` is the deepest."""
    return np.inf if layer == "final" else float(layer)


def _no_nan(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in row.items()} for row in rows]
