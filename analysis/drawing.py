"""What the figures share: panels, markers, colours, scales, captions, and the words of a title."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from raysweep.analysis import statistics
from raysweep.analysis.columns import capital, outcome, short, words
from raysweep.analysis.findings import FEWEST_CONFIGURATIONS, bootstrapped
from raysweep.analysis.sweep_data import SweepData
from raysweep.analysis.trends import TURN, Effect

Array = npt.NDArray[np.float64]

_PANEL = (3.1, 2.9)  # inches
MARKERS = "osD^vPXp<>*h"
_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "pdf.fonttype": 42,  # text stays text
    "savefig.dpi": 150,
    "lines.markersize": 4.5,
}

# What a tick's label takes of an axis.
_LABEL = 0.09


class NoData(Exception):
    """Why a figure cannot be drawn from this sweep."""


def figure(rows: int, columns: int) -> tuple[Figure, list[Axes]]:
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_PANEL[0] * columns + 1.3, _PANEL[1] * rows + 0.5), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
    return figure, list(axes.flat)


def finish(figure: Figure, title: str, handles: Sequence[Line2D]) -> Figure:
    with mpl.rc_context(_STYLE):
        width = max(40, int(figure.get_figwidth() * 11.5))
        figure.suptitle(wrapped(title, width), x=0.01, ha="left", fontsize=10.5, fontweight="bold")
        figure.legend(handles=list(handles), loc="outside right center")
    return figure


def style() -> dict[Any, Any]:
    """The matplotlib settings that a figure of this module is saved under."""
    return dict(_STYLE)


def save(figure: Figure, file: Path) -> None:
    """Write a figure in the format that the file's ending names."""
    with mpl.rc_context(style()):
        figure.savefig(file)


def scatter(ax: Axes, sweep: SweepData, cells: pd.DataFrame, x: str, y: str) -> None:
    # Colours of the whole sweep's sizes, which the legend shows, whatever cells this panel has.
    colours, markers = size_colours(sweep.cells), size_markers(sweep.cells)
    for size, group in sizes(cells).items():
        ax.plot(group[x], group[y], markers[size], color=colours[size], alpha=0.85, mec="white", mew=0.4)


def sizes(cells: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Size -> its cells, from the smallest."""
    ordered = cells.sort_values("parameters", kind="stable")["size"].drop_duplicates()
    return {size: cells[cells["size"] == size] for size in ordered}


def size_colours(cells: pd.DataFrame) -> dict[str, str]:
    names = list(sizes(cells))
    return dict(zip(names, colours(len(names)), strict=True))


def size_markers(cells: pd.DataFrame) -> dict[str, str]:
    return {name: MARKERS[i % len(MARKERS)] for i, name in enumerate(sizes(cells))}


def colours(count: int) -> list[str]:
    """Even steps of viridis, short of its pale end: ordered, and told apart with any colour vision and in print."""
    steps = np.linspace(0, 0.88, count) if count > 1 else [0.35]
    return [mpl.colors.to_hex(mpl.colormaps["viridis"](s)) for s in steps]


def size_legend(cells: pd.DataFrame) -> list[Line2D]:
    colours, markers = size_colours(cells), size_markers(cells)
    return [dot(colours[size], markers[size], size) for size in colours]


def dot(colour: str, marker: str, label: str) -> Line2D:
    return Line2D([], [], ls="", marker=marker, color=colour, mec="white", mew=0.4, ms=6, label=label)


def caption(ax: Axes, text: str) -> None:
    ax.set_title(text, loc="left", fontsize=8.5)


def label(ax: Axes, x: str, y: str) -> None:
    ax.set_xlabel(wrapped(x, 40))
    ax.set_ylabel(wrapped(y, 40))


def wrapped(text: str, width: int) -> str:
    """The text in as few lines as that takes, a unit in brackets on the second of two, others of much the same length."""
    if len(text) <= width:
        return text
    name, bracket, unit = text.rpartition(" (")
    if bracket and unit.endswith(")") and len(name) <= width:
        return f"{name}\n({unit}"
    lines = textwrap.wrap(text, width, break_on_hyphens=False)
    for narrower in range(-(-len(text) // len(lines)), width):
        even = textwrap.wrap(text, narrower, break_on_hyphens=False)
        if len(even) == len(lines):
            return "\n".join(even)
    return "\n".join(lines)


def scale(ax: Axes, values: list[float]) -> None:
    """A logarithmic axis where the values span a decade, linear below the smallest where one of them is zero."""
    positive = [v for v in values if v > 0]
    if len(positive) < 2 or max(positive) / min(positive) < 8:
        ax.set_xticks(values)
    elif len(positive) == len(values):
        ax.set_xscale("log")
        ax.set_xticks(values)
    else:
        ax.set_xscale("symlog", linthresh=min(positive))
        ax.set_xticks(values)
    shown = apart(values, ax)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value) if value in shown else ""))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.minorticks_off()


def apart(values: list[float], ax: Axes) -> set[float]:
    """The values whose labels do not run into each other: from the largest down, those far enough from the one before."""
    at = ax.xaxis.get_transform().transform(np.array(values, float))
    kept = [len(values) - 1]
    for i in range(len(values) - 2, -1, -1):
        if at[kept[-1]] - at[i] >= _LABEL * (at[-1] - at[0]):
            kept.append(i)
    return {values[i] for i in kept}


def grid(count: int, widest: int = 3) -> tuple[int, int]:
    """Rows and columns for so many panels; four make a square."""
    columns = 2 if count == 4 and widest < 4 else min(count, widest)
    return -(-count // columns), columns


def hide(axes: Sequence[Axes]) -> None:
    for ax in axes:
        ax.set_visible(False)


def need(sweep: SweepData, *columns: str) -> pd.DataFrame:
    """The cells that have these columns; `NoData` where there are fewer than two."""
    for column in columns:
        if column not in sweep.cells:
            raise NoData(f"no cell has {words(column)}")
    cells = sweep.cells.dropna(subset=list(columns))
    if len(cells) < 2:
        raise NoData(f"{len(cells)} cells have {', '.join(map(words, columns))}; two are needed")
    return cells


def column(sweep: SweepData, task: str) -> str:
    if task not in sweep.tasks:
        raise NoData(f"no cell has {outcome(task)}")
    return sweep.tasks[task]


def spearman(cells: pd.DataFrame, x: str, y: str) -> float:
    both = cells[x].to_numpy(float), cells[y].to_numpy(float)
    return float(statistics.spearman(*both, statistics.sample(len(cells)))[0])


@dataclass(frozen=True)
class Estimate:
    """What a title states of the cells, and its 95% bootstrap interval over configurations; NaN with too few of them."""

    value: float
    low: float
    high: float

    @property
    def has_interval(self) -> bool:
        return bool(np.isfinite(self.low) and np.isfinite(self.high))

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.has_interval and self.low * self.high > 0

    def __str__(self) -> str:
        ends = (
            f" [{signed(self.low)}, {signed(self.high)}]"
            if self.has_interval
            else ", of too few models for an interval"
        )
        return f"{signed(self.value)}{ends}"


def estimate(sweep: SweepData, cells: pd.DataFrame, statistic: Callable[[Array], Array]) -> Estimate:
    """A statistic of `cells`, a function of weights as `statistics` has them: (B, n) -> (B,)."""
    groups = sweep.configurations[cells.index]
    value = float(statistic(statistics.sample(len(cells)))[0])
    if len(np.unique(groups)) < FEWEST_CONFIGURATIONS:
        return Estimate(value, math.nan, math.nan)
    return Estimate(value, *bootstrapped(statistic, value, groups))


def correlation(sweep: SweepData, cells: pd.DataFrame, x: str, y: str) -> Estimate:
    """Spearman's, with its interval."""
    both = cells[x].to_numpy(float), cells[y].to_numpy(float)
    return estimate(sweep, cells, lambda weights: statistics.spearman(*both, weights))


def front(x: Array, y: Array, x_sign: int, y_sign: int) -> tuple[Array, Array]:
    """The cells that no other cell beats in both, by falling x_sign * x."""
    best, kept = -np.inf, []
    for i in np.lexsort((-y_sign * y, -x_sign * x)):
        if y_sign * y[i] > best:
            best = y_sign * y[i]
            kept.append(i)
    return x[kept], y[kept]


def signed(value: float, digits: int = 2) -> str:
    if not np.isfinite(value):
        return "undefined"
    return f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def interval(effect: Effect, unit: str = "") -> str:
    value = f"{effect.value:+.3g}{unit}".replace("-", "\N{MINUS SIGN}")
    if not np.isfinite(effect.low):
        return value
    return f"{value} [{effect.low:.3g}, {effect.high:.3g}]".replace("-", "\N{MINUS SIGN}")


def does(effect: Effect | None, swing: float, what: str) -> str:
    """What an effect is in words; `swing` is the largest difference between two values of the hyperparameter."""
    if effect is None or not np.isfinite(effect.low):
        return f"has too few comparisons to show an effect on the {what}"
    turns = swing > TURN * abs(effect.value)
    if effect.low <= 0 <= effect.high:
        line = "straight-line effect" if turns else "effect"
        possible = f"{effect.low:+.2g} to {effect.high:+.2g}".replace("-", "\N{MINUS SIGN}")
        seen = f"has no clear {line} on the {what}: {effect.n} cells leave {possible} possible"
    else:
        seen = f"{'raises' if effect.value > 0 else 'lowers'} the {what} by {abs(effect.value):.2g}"
    return f"{seen}; its values differ by up to {swing:.2g}" if turns else seen


def direction(found: Estimate, x: str, y: str, over: str = "") -> str:
    if not np.isfinite(found.value):
        return f"{capital(x)} and {y}: one of them is the same for all cells"
    if not found.is_clear:
        return f"{capital(x)} and {y} do not clearly go together (Spearman {found}{over})"
    return f"Higher {x} goes with {'higher' if found.value > 0 else 'lower'} {y} (Spearman {found}{over})"
