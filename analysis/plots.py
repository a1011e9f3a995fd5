"""The kinds of figure: each function draws one matplotlib figure from a sweep and titles it with what is seen.

Sizes have a colour and a marker each, so that a figure reads in black and white and with any colour vision. A function
raises `NoData` with the reason where the sweep lacks what it draws.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
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

from raysweep.analysis import interventions, statistics
from raysweep.analysis.claims import NEAR_LINEAR, NO_LINE, RANK, few_steps, late_rise
from raysweep.analysis.sweep import Sweep, capital, outcome, short, words
from raysweep.analysis.trends import TURN, Effect, swing, trend

Array = npt.NDArray[np.float64]

_PANEL = (3.1, 2.9)  # inches
_MARKERS = "osD^vPXp<>*h"
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


# From which share of the training on a figure shows its end.
_LATE = 0.2

# What a tick's label takes of an axis.
_LABEL = 0.09

# Lines that can be told apart in one panel.
_MOST_LINES = 8


class NoData(Exception):
    """Why a figure cannot be drawn from this sweep."""


def loss_by_size(sweep: Sweep, task: str, metric: str) -> Figure:
    """The task's loss against one metric, a panel for each size: coloured by batch size, marked by weight decay, hollow
    where few steps were trained."""
    column = _column(sweep, task)
    cells = _need(sweep, column, metric)
    sizes = _sizes(cells)
    rows, columns = _grid(len(sizes))
    figure, axes = _figure(rows, columns)
    few = few_steps(cells)
    batches = sorted(cells["batch_size"].unique())
    decays = sorted(cells["weight_decay"].unique())
    colours = dict(zip(batches, _colours(len(batches)), strict=True))
    markers = dict(zip(decays, _MARKERS, strict=False))
    for ax, (size, of_size) in zip(axes, sizes.items(), strict=False):
        for (batch, decay, short_run), group in of_size.groupby(["batch_size", "weight_decay", few]):
            marker, colour = markers.get(decay, "o"), colours[batch]
            face = {"mfc": "none", "mec": colour, "mew": 1.1} if short_run else {"mec": "white", "mew": 0.4}
            ax.plot(group[metric], group[column], marker, color=colour, alpha=0.9, **face)
        rho = _spearman(of_size, metric, column)
        _caption(ax, f"{size}: Spearman {_signed(rho)}" if len(of_size) > 2 and np.isfinite(rho) else size)
        _label(ax, sweep.label(metric), sweep.label(column))
    _hide(axes[len(sizes) :])
    handles = [_dot(colours[b], "o", f"batch {b:,}") for b in batches]
    if len(decays) > 1:
        handles += [_dot("#777777", markers.get(d, "o"), f"weight decay {d:g}") for d in decays]
    if few.any():
        hollow = Line2D(
            [], [], ls="", marker="o", mfc="none", mec="#777777", mew=1.1, ms=6, label="at most half the median steps"
        )
        handles.append(hollow)
    rho = _spearman(cells, metric, column)
    return _finish(figure, _direction(rho, words(metric), outcome(task), ", over all sizes"), handles)


def against(sweep: Sweep, task: str, pairs: Sequence[tuple[str, str]], title: str = "") -> Figure:
    """One panel for each (x column, y column) of `pairs`, coloured by size; a line and its R² where both are losses."""
    pairs = [p for p in pairs if set(p) <= set(sweep.cells) and len(sweep.cells.dropna(subset=list(p))) > 1]
    if not pairs:
        raise NoData(f"no two cells have both {outcome(task)} and a metric")
    rows, columns = _grid(len(pairs), widest=3 if len(pairs) in (3, 5, 6) else 4)
    figure, axes = _figure(rows, columns)
    seen: list[tuple[float, str, str]] = []
    for ax, (x, y) in zip(axes, pairs, strict=False):
        cells = _need(sweep, x, y)
        _scatter(ax, sweep, cells, x, y)
        _label(ax, sweep.label(x), sweep.label(y))
        if x.endswith(("_loss", "_accuracy")) and y.endswith(("_loss", "_accuracy")):
            slope, start = np.polyfit(cells[x], cells[y], 1)
            ends = np.array([cells[x].min(), cells[x].max()])
            ax.plot(ends, start + slope * ends, color="#444444", lw=0.8, zorder=1)
            r2 = np.corrcoef(cells[x], cells[y])[0, 1] ** 2
            _caption(ax, f"line: R² {r2:.3f}, slope {slope:.2f}")
        else:
            rho = _spearman(cells, x, y)
            _caption(ax, f"Spearman {_signed(rho)}")
            seen.append((rho, x, y))
    _hide(axes[len(pairs) :])
    seen = [found for found in seen if np.isfinite(found[0])]
    if not title and seen:
        strongest = max(seen, key=lambda found: abs(found[0]))
        title = (
            f"{capital(words(strongest[2]))} goes most with the {words(strongest[1])} "
            f"(Spearman {_signed(strongest[0])}), sizes and training choices mixed"
        )
    return _finish(figure, title, _size_legend(sweep.cells))


def agreement(sweep: Sweep, task: str, metric: str = RANK) -> Figure:
    """The task's loss against a metric and against the main loss, whose line it may be on."""
    column, main = _column(sweep, task), _column(sweep, sweep.main_task)
    cells = _need(sweep, column, main, metric)
    r2 = np.corrcoef(cells[main], cells[column])[0, 1] ** 2
    how = "lies on a line" if r2 > NEAR_LINEAR else "has no strong line" if r2 < NO_LINE else "lies loosely on a line"
    title = (
        f"{capital(outcome(task))} {how} with {outcome(sweep.main_task)} (R² {r2:.2f}); its Spearman with "
        f"the {words(metric)} is {_signed(_spearman(cells, metric, column))}"
    )
    return against(sweep, task, [(metric, column), (main, column)], title)


def quantization(sweep: Sweep, task: str, metric: str = RANK) -> Figure:
    """The rise in loss against a metric at the smallest, a middle and the largest size, and the loss against that before."""
    column = _column(sweep, task)
    rise = f"{column}_change"
    cells = _need(sweep, column, rise, metric)
    # On the very text of the loss after: the task of the loss itself may read more.
    cells = cells.assign(before=cells[column] - cells[rise])
    sizes = _sizes(cells)
    names = list(sizes)
    chosen = list(dict.fromkeys([names[0], names[len(names) // 2], names[-1]]))
    figure, axes = _figure(1, len(chosen) + 1)
    for ax, size in zip(axes, chosen, strict=False):
        of_size = sizes[size]
        ax.axhline(0, color="#444444", lw=0.8, zorder=1)
        _scatter(ax, sweep, of_size, metric, rise)
        rho = statistics.spearman(
            of_size[metric].to_numpy(float), of_size[rise].to_numpy(float), statistics.sample(len(of_size))
        )[0]
        _caption(ax, f"{size}: Spearman {_signed(rho)}")
        _label(ax, sweep.label(metric), "rise in loss (nats per token)")
    last = axes[len(chosen)]
    _scatter(last, sweep, cells, "before", column)
    ends = np.array([cells["before"].min(), cells["before"].max()])
    last.plot(ends, ends, color="#444444", lw=0.8, zorder=1)
    _caption(last, "line: no loss by quantization")
    _label(last, "loss before (nats per token)", sweep.label(column))
    rises = {s: float(c[rise].mean()) for s, c in sizes.items()}
    worst = max(rises, key=lambda s: rises[s])
    by = f"{rises[worst]:.3g} nats per token on average"
    title = f"{capital(outcome(task))} is furthest above the loss before at {worst} (by {by})"
    return _finish(figure, title, _size_legend(sweep.cells))


def saturation(sweep: Sweep) -> Figure:
    """Validation loss, effective rank and spectral norm over training, and below over its end, at the smallest size.

    Of the runs that are equal in all but their blocks, batch size, tokens and seed: those that differ most. Where they make
    too many lines, only those of one budget are drawn. Seeds share a line's look; blocks differ by its dashes.
    """
    rows = sweep.trajectories
    columns = [c for c in ("validation_loss", RANK, "spectral_norm_W") if c in rows and rows[c].notna().any()]
    if not len(rows) or not columns:
        raise NoData("the store has no trajectories")
    cells = sweep.cells[sweep.cells["id"].isin(rows["cell"])]
    if not len(cells):
        raise NoData("no analysed cell has a trajectory")
    compared = [s for s in ("block", "batch_size", "tokens") if s in sweep.free_settings]
    fixed = [s for s in sweep.free_settings if s not in (*compared, "seed")]
    groups = [group for _, group in cells.groupby(fixed, dropna=False, sort=False)]
    chosen = min(groups, key=lambda g: (g["parameters"].iloc[0], -len(g[compared].drop_duplicates())))
    if len(chosen[compared].drop_duplicates()) > _MOST_LINES:
        lines = {tokens: len(of[compared].drop_duplicates()) for tokens, of in chosen.groupby("tokens")}
        chosen = chosen[chosen["tokens"] == max(lines, key=lambda tokens: (lines[tokens], tokens))]
    varied = [s for s in compared if chosen[s].nunique() > 1] or compared[-1:]
    runs = list(chosen.sort_values(varied).groupby(varied, sort=False))
    # A colour for each batch size and budget, a dash for each kind of block.
    coloured = [tuple(v for s, v in zip(varied, values, strict=True) if s != "block") for values, _ in runs]
    kinds = sorted(set(coloured))
    colours = dict(zip(kinds, _colours(len(kinds)), strict=True))
    figure, axes = _figure(2, len(columns))
    whole, end = axes[: len(columns)], axes[len(columns) :]
    handles = []
    for kind, (values, of_one) in zip(coloured, runs, strict=True):
        dash = "--" if "block" in of_one and of_one["block"].iloc[0] == "parallel" else "-"
        for cell in of_one["id"]:
            run = rows[rows["cell"] == cell].sort_values("tokens")
            share = run["tokens"] / run["tokens"].max()
            late = share >= _LATE
            for above, below, column in zip(whole, end, columns, strict=True):
                above.plot(run["tokens"], run[column], dash, color=colours[kind], lw=1.1)
                below.plot(share[late], run[column][late], dash, color=colours[kind], lw=1.1)
        name = ", ".join(f"{words(s)} {short(v)}" for s, v in zip(varied, values, strict=True))
        seeds = f", {len(of_one)} seeds" if len(of_one) > 1 else ""
        handles.append(Line2D([], [], ls=dash, color=colours[kind], label=name.removeprefix("block ") + seeds))
    for above, below, column in zip(whole, end, columns, strict=True):
        above.set_xscale("log")
        _label(above, "training tokens", sweep.label(column))
        _label(below, "share of the training", sweep.label(column))
    drawn = rows[rows["cell"].isin(chosen["id"])]
    return _finish(figure, f"At {chosen['size'].iloc[0]} {'; '.join(_ends(drawn))}", handles)


def revisions(measured: Sequence[dict[str, Any]]) -> Figure:
    """The same of a published model's revisions, as `raysweep geometry --json` prints them; `step1000` is step 1,000."""
    names = [str(row.get("revision", "")) for row in measured]
    # A commit may end in digits, too.
    steps = [re.search(r"step[_-]?(\d+)", name) or re.fullmatch(r"[A-Za-z_-]*(\d{1,12})", name) for name in names]
    if len(measured) < 2 or not all(steps):
        raise NoData("several revisions are needed whose names end in their step")
    at = [int(step[1]) for step in steps if step]
    order = np.argsort(at)
    columns = [c for c in ("loss", "effective_rank", "spectral_norm") if all(c in row for row in measured)]
    figure, axes = _figure(1, len(columns))
    for ax, column in zip(axes, columns, strict=True):
        values = [float(measured[i][column]) for i in order]
        ax.plot([at[i] for i in order], values, color=_colours(1)[0], lw=1.2, marker="o")
        ax.set_xscale("symlog", linthresh=1)
        _label(ax, "training step", words(column))
    table = pd.DataFrame(measured).assign(cell="", step=at)
    table = table.rename(columns={"loss": "validation_loss", "effective_rank": RANK})
    return _finish(figure, capital("; ".join(_ends(table))), [])


def _ends(rows: pd.DataFrame) -> list[str]:
    """What is seen at the end of these trajectories."""
    seen = []
    ranks = rows.dropna(subset=[RANK]).sort_values("step").groupby("cell")[RANK].last()
    if len(ranks) > 1:
        seen.append(f"the effective rank ends between {ranks.min():.2f} and {ranks.max():.2f}")
    elif len(ranks):
        seen.append(f"the effective rank ends at {ranks.iloc[0]:.2f}")
    rise = late_rise(rows) if "validation_loss" in rows else {}
    if rise:
        seen.append(f"the loss ends {'at most ' if len(rise) > 1 else ''}{max(rise.values()):.1%} above its lowest")
    return seen


def moved_rank(sweep: Sweep) -> Figure:
    """What changes when the rank of W alone is moved: each cell minus the same cell left alone; lines join seeds' means."""
    wanted = {
        sweep.tasks.get(sweep.main_task, ""): sweep.label(sweep.tasks.get(sweep.main_task, "")),
        "quantized_4bit_in_distribution_loss_change": "rise by 4-bit GPTQ",
        "finetune_python_loss": "Python loss after fine-tuning",
        "forgetting_python_loss_change": "in-distribution loss forgotten",
    }
    pairs = pd.DataFrame(
        [
            {
                "name": name,
                "size": cell["size"],
                "parameters": cell["parameters"],
                "rank": cell[RANK],
                "from": alone[RANK],
            }
            | {column: cell[column] - alone[column] for column in wanted if column in cell}
            for name, alone, cell in interventions.pairs(sweep)
        ]
    )
    if not len(pairs):
        raise NoData("no cell has an intervention and a cell that equals it in all else")
    columns = [c for c in wanted if c in pairs and pairs[c].notna().any()]
    figure, axes = _figure(1, len(columns))
    colours, markers = _size_colours(sweep.cells), _size_markers(sweep.cells)
    for ax, column in zip(axes, columns, strict=True):
        ax.axhline(0, color="#444444", lw=0.8)
        ax.axvline(pairs["from"].mean(), color="#444444", lw=0.8, ls=":")
        for size, of_size in _sizes(pairs).items():
            capped = of_size["name"].str.contains("cap")
            ax.plot(
                of_size["rank"], of_size[column], ls="", marker=markers[size], color=colours[size], alpha=0.45, ms=3.5
            )
            means = of_size[~capped].groupby("name")[["rank", column]].mean().sort_values("rank")
            ax.plot(means["rank"], means[column], color=colours[size], lw=1.3)
            cap = of_size[capped]
            ax.plot(
                cap["rank"].mean(), cap[column].mean(), marker="*", ms=9, color=colours[size], mec="#222222", mew=0.5
            )
        _label(ax, "effective rank of W", f"change of {wanted[column]}")
    main = next(iter(columns))
    lowest = pairs.groupby("name")["rank"].mean().idxmin()
    change = pairs[pairs["name"] == lowest][main].mean()
    before, after = (pairs[pairs["name"] == lowest][rank].mean() for rank in ("from", "rank"))
    pushed = f"Pushing the effective rank of W from {before:.2f} to {after:.2f}"
    title = f"{pushed} changes the {words(main)} by {_signed(change, 3)}"
    handles = [
        *_size_legend(sweep.cells),
        Line2D([], [], color="#777777", lw=1.3, label="mean over seeds"),
        Line2D([], [], ls="", marker="*", ms=9, color="#777777", label="the same, spectral norm capped"),
        Line2D([], [], color="#444444", lw=0.8, ls=":", label="rank of the models left alone"),
    ]
    return _finish(figure, title, handles)


def hyperparameter(sweep: Sweep, name: str, columns: Sequence[str], equal_steps: bool = False) -> Figure:
    """One hyperparameter against columns and scaled loss, all else equal: a line for each slice, coloured by size."""
    slices = sweep.slices(name, equal_steps)
    if not slices and equal_steps:
        equal_steps, slices = False, sweep.slices(name)
    if not slices:
        raise NoData(f"no two cells differ in {words(name)} with all else equal")
    main = _column(sweep, sweep.main_task)
    columns = [c for c in columns if c in sweep.cells and sweep.cells[c].notna().any()]
    # Of the size, whatever the hyperparameter does to the number of parameters.
    shape = [s for s in ("width", "depth", "heads", "vocabulary") if s in sweep.cells and s != name] or ["size"]
    cells = sweep.cells.assign(scaled_loss=sweep.cells[main] / sweep.cells.groupby(shape)[main].transform("min"))
    colours, markers = _size_colours(cells), _size_markers(cells)
    panels = [*columns, "scaled_loss"]
    rows, across = _grid(len(panels), widest=3)
    figure, axes = _figure(rows, across)
    lines = _line_styles(sweep, slices, name, equal_steps)
    for ax, column in zip(axes, panels, strict=False):
        for one, (dash, _) in zip(slices, lines, strict=True):
            size = one["size"].iloc[0]
            values = cells.loc[one.index, column]
            ax.plot(one[name], values, dash, marker=markers[size], color=colours[size], lw=1, ms=4, alpha=0.85)
        _scale(ax, sorted(cells[name].unique()))
        y = "scaled loss (1 = the size's best)" if column == "scaled_loss" else sweep.label(column)
        _label(ax, sweep.label(name), y)
        effect = trend(sweep, name, main if column == "scaled_loss" else column, equal_steps=equal_steps)
        what, unit = ("loss, ", " nats") if column == "scaled_loss" else ("", "")
        _caption(ax, "" if effect is None else f"{what}lowest to highest: {_interval(effect, unit)}")
    _hide(axes[len(panels) :])
    first = columns[0] if columns else main
    found = trend(sweep, name, first, equal_steps=equal_steps)
    equal = "equal steps, by larger batches," if equal_steps else "all else equal"
    turns = swing(sweep, name, first, equal_steps)
    title = f"Raising the {words(name)} at {equal} {_does(found, turns, words(first))}"
    handles = _size_legend(sweep.cells)
    handles += [
        Line2D([], [], ls=dash, color="#777777", lw=1, label=label) for dash, label in dict.fromkeys(lines) if label
    ]
    return _finish(figure, title, handles)


def _line_styles(sweep: Sweep, slices: list[pd.DataFrame], name: str, equal_steps: bool) -> list[tuple[str, str]]:
    """The dash and the label of each slice, by what distinguishes the slices of one size."""
    firsts = pd.DataFrame([one.iloc[0] for one in slices])
    settings = [s for s in sweep.free_settings if s != name and not (equal_steps and s == "batch_size")]
    settings += ["steps"] if equal_steps else []
    apart = [s for s in settings if firsts.groupby("size")[s].nunique().max() > 1]
    labels = [", ".join(f"{words(s)} {short(row[s])}" for s in apart) for _, row in firsts.iterrows()]
    kinds = list(dict.fromkeys(labels))
    dashes = ("-", "--", ":", "-.")
    if len(kinds) > len(dashes):
        return [("-", "")] * len(slices)
    return [(dashes[kinds.index(label)], label) for label in labels]


def pareto(sweep: Sweep, metrics: Sequence[tuple[str, int]]) -> Figure:
    """Metrics against each other with the Pareto front; each metric comes with +1 where higher is healthier, else -1."""
    metrics = [(m, s) for m, s in metrics if m in sweep.cells and sweep.cells[m].notna().any()]
    pairs = [(a, b) for i, a in enumerate(metrics) for b in metrics[i + 1 :]]
    if not pairs:
        raise NoData("fewer than two metrics of W were measured")
    figure, axes = _figure(1, len(pairs))
    for ax, ((x, x_sign), (y, y_sign)) in zip(axes, pairs, strict=False):
        cells = _need(sweep, x, y)
        _scatter(ax, sweep, cells, x, y)
        front = _front(cells[x].to_numpy(float), cells[y].to_numpy(float), x_sign, y_sign)
        ax.step(*front, where="post" if x_sign * y_sign < 0 else "pre", color="#444444", lw=0.9, zorder=1)
        _caption(ax, f"Spearman {_signed(_spearman(cells, x, y))}")
        _label(ax, sweep.label(x), sweep.label(y))
    handles = [*_size_legend(sweep.cells), Line2D([], [], color="#444444", lw=0.9, label="Pareto front")]
    (x, _), (y, _) = pairs[0]
    rho = _spearman(_need(sweep, x, y), x, y)
    return _finish(figure, f"{_direction(rho, words(x), words(y))}", handles)


# Parts.


def _figure(rows: int, columns: int) -> tuple[Figure, list[Axes]]:
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_PANEL[0] * columns + 1.3, _PANEL[1] * rows + 0.5), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
    return figure, list(axes.flat)


def _finish(figure: Figure, title: str, handles: Sequence[Line2D]) -> Figure:
    with mpl.rc_context(_STYLE):
        width = max(40, int(figure.get_figwidth() * 11.5))
        figure.suptitle(_wrapped(title, width), x=0.01, ha="left", fontsize=10.5, fontweight="bold")
        figure.legend(handles=list(handles), loc="outside right center")
    return figure


def style() -> dict[Any, Any]:
    """The matplotlib settings that a figure of this module is saved under."""
    return dict(_STYLE)


def save(figure: Figure, file: Path) -> None:
    """Write a figure in the format that the file's ending names."""
    with mpl.rc_context(style()):
        figure.savefig(file)


def _scatter(ax: Axes, sweep: Sweep, cells: pd.DataFrame, x: str, y: str) -> None:
    # Colours of the whole sweep's sizes, which the legend shows, whatever cells this panel has.
    colours, markers = _size_colours(sweep.cells), _size_markers(sweep.cells)
    for size, group in _sizes(cells).items():
        ax.plot(group[x], group[y], markers[size], color=colours[size], alpha=0.85, mec="white", mew=0.4)


def _sizes(cells: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Size -> its cells, from the smallest."""
    ordered = cells.sort_values("parameters", kind="stable")["size"].drop_duplicates()
    return {size: cells[cells["size"] == size] for size in ordered}


def _size_colours(cells: pd.DataFrame) -> dict[str, str]:
    names = list(_sizes(cells))
    return dict(zip(names, _colours(len(names)), strict=True))


def _size_markers(cells: pd.DataFrame) -> dict[str, str]:
    return {name: _MARKERS[i % len(_MARKERS)] for i, name in enumerate(_sizes(cells))}


def _colours(count: int) -> list[str]:
    """Even steps of viridis, short of its pale end: ordered, and told apart with any colour vision and in print."""
    steps = np.linspace(0, 0.88, count) if count > 1 else [0.35]
    return [mpl.colors.to_hex(mpl.colormaps["viridis"](s)) for s in steps]


def _size_legend(cells: pd.DataFrame) -> list[Line2D]:
    colours, markers = _size_colours(cells), _size_markers(cells)
    return [_dot(colours[size], markers[size], size) for size in colours]


def _dot(colour: str, marker: str, label: str) -> Line2D:
    return Line2D([], [], ls="", marker=marker, color=colour, mec="white", mew=0.4, ms=6, label=label)


def _caption(ax: Axes, text: str) -> None:
    ax.set_title(text, loc="left", fontsize=8.5)


def _label(ax: Axes, x: str, y: str) -> None:
    ax.set_xlabel(_wrapped(x, 40))
    ax.set_ylabel(_wrapped(y, 40))


def _wrapped(text: str, width: int) -> str:
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


def _scale(ax: Axes, values: list[float]) -> None:
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
    shown = _apart(values, ax)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value) if value in shown else ""))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.minorticks_off()


def _apart(values: list[float], ax: Axes) -> set[float]:
    """The values whose labels do not run into each other: from the largest down, those far enough from the one before."""
    at = ax.xaxis.get_transform().transform(np.array(values, float))
    kept = [len(values) - 1]
    for i in range(len(values) - 2, -1, -1):
        if at[kept[-1]] - at[i] >= _LABEL * (at[-1] - at[0]):
            kept.append(i)
    return {values[i] for i in kept}


def _grid(count: int, widest: int = 3) -> tuple[int, int]:
    columns = min(count, widest)
    return -(-count // columns), columns


def _hide(axes: Sequence[Axes]) -> None:
    for ax in axes:
        ax.set_visible(False)


def _need(sweep: Sweep, *columns: str) -> pd.DataFrame:
    """The cells that have these columns; `NoData` where there are fewer than two."""
    for column in columns:
        if column not in sweep.cells:
            raise NoData(f"no cell has {words(column)}")
    cells = sweep.cells.dropna(subset=list(columns))
    if len(cells) < 2:
        raise NoData(f"{len(cells)} cells have {', '.join(map(words, columns))}; two are needed")
    return cells


def _column(sweep: Sweep, task: str) -> str:
    if task not in sweep.tasks:
        raise NoData(f"no cell has {outcome(task)}")
    return sweep.tasks[task]


def _spearman(cells: pd.DataFrame, x: str, y: str) -> float:
    both = cells[x].to_numpy(float), cells[y].to_numpy(float)
    return float(statistics.spearman(*both, statistics.sample(len(cells)))[0])


def _front(x: Array, y: Array, x_sign: int, y_sign: int) -> tuple[Array, Array]:
    """The cells that no other cell beats in both, by falling x_sign * x."""
    best, kept = -np.inf, []
    for i in np.lexsort((-y_sign * y, -x_sign * x)):
        if y_sign * y[i] > best:
            best = y_sign * y[i]
            kept.append(i)
    return x[kept], y[kept]


def _signed(value: float, digits: int = 2) -> str:
    if not np.isfinite(value):
        return "undefined"
    return f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _interval(effect: Effect, unit: str = "") -> str:
    value = f"{effect.value:+.3g}{unit}".replace("-", "\N{MINUS SIGN}")
    if not np.isfinite(effect.low):
        return value
    return f"{value} [{effect.low:.3g}, {effect.high:.3g}]".replace("-", "\N{MINUS SIGN}")


def _does(effect: Effect | None, swing: float, what: str) -> str:
    """What an effect is in words; `swing` is the largest difference between two values of the hyperparameter."""
    if effect is None or not np.isfinite(effect.low):
        return f"has too few comparisons to show an effect on the {what}"
    turns = swing > TURN * abs(effect.value)
    if effect.low <= 0 <= effect.high:
        line = "straight-line effect" if turns else "effect"
        seen = f"has no clear {line} on the {what}"
    else:
        seen = f"{'raises' if effect.value > 0 else 'lowers'} the {what} by {abs(effect.value):.2g}"
    return f"{seen}; its values differ by up to {swing:.2g}" if turns else seen


def _direction(rho: float, x: str, y: str, over: str = "") -> str:
    if not np.isfinite(rho):
        return f"{capital(x)} and {y}: one of them is the same for all cells"
    if abs(rho) < 0.1:
        return f"{capital(x)} and {y} hardly go together (Spearman {_signed(rho)}{over})"
    return f"Higher {x} goes with {'higher' if rho > 0 else 'lower'} {y} (Spearman {_signed(rho)}{over})"
