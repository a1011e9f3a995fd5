"""What a metric of each layer adds to predictions of the loss, a panel for each kind of matrix, beside that of W."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from raysweep.analysis import drawing
from raysweep.analysis.columns import outcome, words
from raysweep.analysis.drawing import signed
from raysweep.analysis.layers import depth
from raysweep.analysis.sweep_data import SweepData
from raysweep.space.measure import column

_COLOUR, _COLOUR_OF_W = "#31688e", "#b5367a"


def metrics(layers: pd.DataFrame) -> list[str]:
    """The metrics that were measured of several layers and that predictions were made with, in their order."""
    predicted = layers.dropna(subset=["added_r2"])
    counts = predicted.groupby("metric", sort=False)["layer"].nunique()
    return [str(metric) for metric in counts.index[counts > 1]]


def added(sweep: SweepData, layers: pd.DataFrame, regressions: pd.DataFrame, metric: str) -> Figure:
    """`layers` and `regressions` are the tables of `layers.layers` and `regressions.regressions`."""
    rows = layers[layers["metric"] == metric].dropna(subset=["added_r2"])
    rows = rows.sort_values("layer", key=lambda names: names.map(depth), kind="stable")
    parts = list(dict.fromkeys(rows["part"]))
    down, across = drawing.grid(len(parts), widest=4)
    figure, axes = drawing.figure(down, across)
    of_W = _of_W(regressions, sweep.main_task, {f"{metric}_W", column(metric, "unembedding")})
    ends = [rows["added_low"].min(), rows["added_high"].max(), 0.0, *([] if of_W is None else [of_W])]
    room = 0.05 * (np.nanmax(ends) - np.nanmin(ends))
    for ax, part in zip(axes, parts, strict=False):
        _panel(ax, rows[rows["part"] == part], of_W)
        drawing.caption(ax, part)
        drawing.label(ax, "layer", "added R²")
        ax.set_ylim(np.nanmin(ends) - room, np.nanmax(ends) + room)
    drawing.hide(axes[len(parts) :])
    handles = [Line2D([], [], ls="", marker="o", color=_COLOUR, ms=6, label="a layer's, with 95% interval")]
    if of_W is not None:
        handles.append(Line2D([], [], ls="--", color=_COLOUR_OF_W, label="that of W"))
    return drawing.finish(figure, _title(rows, of_W, metric, sweep.main_task), handles)


def _panel(ax: Axes, rows: pd.DataFrame, of_W: float | None) -> None:
    at = np.arange(len(rows))
    values, low, high = (rows[name].to_numpy(float) for name in ("added_r2", "added_low", "added_high"))
    ax.axhline(0, color="#888888", lw=0.8)
    if of_W is not None:
        ax.axhline(of_W, color=_COLOUR_OF_W, lw=1.2, ls="--")
    # A value may lie a little below its interval: cross-validation pays for the coefficient.
    ax.vlines(at, np.fmin(values, low), high, color=_COLOUR, lw=1.4)
    ax.plot(at, values, "o", color=_COLOUR)
    ax.set_xticks(at, rows["layer"].astype(str))
    ax.set_xlim(-0.5, len(rows) - 0.5)


def _of_W(regressions: pd.DataFrame, task: str, names: set[str]) -> float | None:
    key = (
        (regressions["task"] == task)
        & (regressions["metric"].isin(names))
        & (regressions["statistic"] == "predictive_r2")
    )
    values = regressions.loc[key, "value"].dropna()
    return float(values.iloc[0]) if len(values) else None


def _title(rows: pd.DataFrame, of_W: float | None, metric: str, task: str) -> str:
    clear = rows[rows["added_low"] > 0]
    most = (clear if len(clear) else rows).sort_values("added_r2").iloc[-1]
    ends = f"[{signed(most['added_low'])}, {signed(most['added_high'])}]"
    beside = "" if of_W is None else f"; that of W adds {signed(of_W)}"
    predictions = f"predictions of the {outcome(task)}"
    if not len(clear):
        return f"No layer's {words(metric)} clearly adds to {predictions}{beside}"
    return (
        f"Of the layers the {words(metric)} of {most['matrix']} adds most to {predictions}: R² {signed(most['added_r2'])} "
        f"{ends}{beside}"
    )
