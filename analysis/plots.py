"""The kinds of figure: each function draws one matplotlib figure from a sweep and titles it with what is seen.

Sizes have a colour and a marker each, so that a figure reads in black and white and with any colour vision. A function
raises `drawing.NoData` with the reason where the sweep lacks what it draws.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from raysweep.analysis import drawing, intervention_effects, statistics
from raysweep.analysis.columns import RANK, capital, outcome, short, words
from raysweep.analysis.sweep_data import SweepData
from raysweep.analysis.trajectories import few_steps, late_rise
from raysweep.analysis.trends import effect, swing, trend

Array = npt.NDArray[np.float64]

# From which share of the training on a figure shows its end.
_LATE = 0.2

# Lines that can be told apart in one panel.
_MOST_LINES = 8

NATS = "nats per token"

NEAR_LINEAR = 0.9
"""R² from which a title calls a relation a line."""
NO_LINE = 0.5
"""R² up to which a title calls a relation no strong line."""


# More batch sizes than this are not all in a legend.
_NAMED = 12


def loss_by_size(sweep: SweepData, task: str, metric: str) -> Figure:
    """The task's loss against one metric, a panel for each size: coloured by batch size, marked by weight decay where
    those are few, hollow where few steps were trained."""
    column = drawing.column(sweep, task)
    cells = drawing.need(sweep, column, metric)
    sizes = drawing.sizes(cells)
    rows, columns = drawing.grid(len(sizes))
    figure, axes = drawing.figure(rows, columns)
    few = few_steps(cells)
    # Of models that others trained both may not be known.
    batches = sorted(cells["batch_size"].dropna().unique())
    decays = sorted(cells["weight_decay"].dropna().unique())
    colours = dict(zip(batches, drawing.colours(len(batches)), strict=False))
    # Of a setting that was sampled there are more values than marks.
    markers = dict(zip(decays, drawing.MARKERS, strict=False)) if len(decays) <= len(drawing.MARKERS) else {}
    named = batches if len(batches) <= _NAMED else [batches[round(i)] for i in np.linspace(0, len(batches) - 1, _NAMED)]
    for ax, (size, of_size) in zip(axes, sizes.items(), strict=False):
        for (batch, decay, short_run), group in of_size.groupby(["batch_size", "weight_decay", few], dropna=False):
            marker, colour = markers.get(decay, "o"), colours.get(batch, "#777777")
            face = {"mfc": "none", "mec": colour, "mew": 1.1} if short_run else {"mec": "white", "mew": 0.4}
            ax.plot(group[metric], group[column], marker, color=colour, alpha=0.9, **face)
        rho = drawing.spearman(of_size, metric, column)
        drawing.caption(
            ax, f"{size}: Spearman {drawing.signed(rho)}" if len(of_size) > 2 and np.isfinite(rho) else size
        )
        drawing.label(ax, sweep.label(metric), sweep.label(column))
    drawing.hide(axes[len(sizes) :])
    # A bar of colour: a round one would look like a weight decay's mark.
    handles = [Line2D([], [], lw=6, solid_capstyle="butt", color=colours[b], label=f"batch {b:,}") for b in named]
    if batches and cells["batch_size"].isna().any():
        handles.append(Line2D([], [], lw=6, solid_capstyle="butt", color="#777777", label="batch not known"))
    if len(markers) > 1:
        handles += [drawing.dot("#777777", marker, f"weight decay {d:g}") for d, marker in markers.items()]
    if few.any():
        said = "hollow: at most half the median steps"
        handles.append(Line2D([], [], ls="", marker="o", mfc="none", mec="#777777", mew=1.1, ms=6, label=said))
    found = drawing.correlation(sweep, cells, metric, column)
    return drawing.finish(figure, drawing.direction(found, words(metric), outcome(task), ", over all sizes"), handles)


def against(sweep: SweepData, task: str, pairs: Sequence[tuple[str, str]], title: str = "") -> Figure:
    """One panel for each (x column, y column) of `pairs`, coloured by size; a line and its R² where both are losses."""
    pairs = [p for p in pairs if set(p) <= set(sweep.cells) and len(sweep.cells.dropna(subset=list(p))) > 1]
    if not pairs:
        raise drawing.NoData(f"no two cells have both {outcome(task)} and a metric")
    if all(sweep.cells[y].nunique() == 1 for _, y in pairs):
        value = sweep.cells[pairs[0][1]].dropna().iloc[0]
        raise drawing.NoData(f"{words(pairs[0][1])} is {value:.4g} in every cell")
    rows, columns = drawing.grid(len(pairs), widest=3 if len(pairs) in (3, 5, 6) else 4)
    figure, axes = drawing.figure(rows, columns)
    seen: list[tuple[float, str, str]] = []
    for ax, (x, y) in zip(axes, pairs, strict=False):
        cells = drawing.need(sweep, x, y)
        drawing.scatter(ax, sweep, cells, x, y)
        drawing.label(ax, sweep.label(x), sweep.label(y))
        if x.endswith(("_loss", "_accuracy")) and y.endswith(("_loss", "_accuracy")):
            slope, start = np.polyfit(cells[x], cells[y], 1)
            ends = np.array([cells[x].min(), cells[x].max()])
            ax.plot(ends, start + slope * ends, color="#444444", lw=0.8, zorder=1)
            r2 = np.corrcoef(cells[x], cells[y])[0, 1] ** 2
            drawing.caption(ax, f"line: R² {r2:.3f}, slope {slope:.2f}")
        else:
            rho = drawing.spearman(cells, x, y)
            drawing.caption(ax, f"Spearman {drawing.signed(rho)}")
            seen.append((rho, x, y))
    drawing.hide(axes[len(pairs) :])
    seen = [correlation for correlation in seen if np.isfinite(correlation[0])]
    if not title and seen:
        _, x, y = max(seen, key=lambda correlation: abs(correlation[0]))
        found = drawing.correlation(sweep, drawing.need(sweep, x, y), x, y)
        goes = "goes most with" if found.is_clear else "clearly goes with none of these; nearest is"
        title = f"{capital(words(y))} {goes} the {words(x)} (Spearman {found}), sizes and training choices mixed"
    return drawing.finish(figure, title, drawing.size_legend(sweep.cells))


def agreement(sweep: SweepData, task: str, metric: str = RANK) -> Figure:
    """The task's loss against a metric and against the main loss, whose line it may be on."""
    column, main = drawing.column(sweep, task), drawing.column(sweep, sweep.main_task)
    cells = drawing.need(sweep, column, main, metric)
    r2 = np.corrcoef(cells[main], cells[column])[0, 1] ** 2
    how = "lies on a line" if r2 > NEAR_LINEAR else "has no strong line" if r2 < NO_LINE else "lies loosely on a line"
    title = (
        f"{capital(outcome(task))} {how} with {outcome(sweep.main_task)} (R² {r2:.2f}); its Spearman with "
        f"the {words(metric)} is {drawing.correlation(sweep, cells, metric, column)}"
    )
    return against(sweep, task, [(metric, column), (main, column)], title)


def quantization(sweep: SweepData, task: str, metric: str = RANK) -> Figure:
    """The rise in loss against a metric at the smallest, a middle and the largest size, and the loss against that before."""
    column = drawing.column(sweep, task)
    rise, unit = f"{column}_change", sweep.units.get(column, NATS).partition(",")[0]
    cells = drawing.need(sweep, column, rise, metric)
    # On the very text of the loss after: the task of the loss itself may read more.
    cells = cells.assign(before=cells[column] - cells[rise])
    sizes = drawing.sizes(cells)
    names = list(sizes)
    shown = list(dict.fromkeys([names[0], names[len(names) // 2], names[-1]]))
    figure, axes = drawing.figure(1, len(shown) + 1)
    for ax, size in zip(axes, shown, strict=False):
        of_size = sizes[size]
        ax.axhline(0, color="#444444", lw=0.8, zorder=1)
        drawing.scatter(ax, sweep, of_size, metric, rise)
        rho = statistics.spearman(
            of_size[metric].to_numpy(float), of_size[rise].to_numpy(float), statistics.sample(len(of_size))
        )[0]
        drawing.caption(ax, f"{size}: Spearman {drawing.signed(rho)}")
        drawing.label(ax, sweep.label(metric), f"rise in loss ({unit})")
    last = axes[len(shown)]
    drawing.scatter(last, sweep, cells, "before", column)
    ends = np.array([cells["before"].min(), cells["before"].max()])
    last.plot(ends, ends, color="#444444", lw=0.8, zorder=1)
    drawing.caption(last, "line: no loss by quantization")
    drawing.label(last, f"loss before ({unit})", sweep.label(column))
    rises = {s: float(c[rise].mean()) for s, c in sizes.items()}
    worst = max(rises, key=lambda s: rises[s])
    by = f"{rises[worst]:.3g} {unit}"
    title = f"{capital(outcome(task))} is on average furthest above the loss before at {worst} (by {by})"
    return drawing.finish(figure, title, drawing.size_legend(sweep.cells))


def saturation(sweep: SweepData) -> Figure:
    """Validation loss, effective rank and spectral norm over training, and below over its end, at the smallest size.

    Of the runs that are equal in all but their blocks, batch size, tokens and seed: those that differ most. Where they make
    too many lines, only those of one budget are drawn. Seeds share a line's look; blocks differ by its dashes.
    """
    rows = sweep.trajectories
    columns = [c for c in ("validation_loss", RANK, "spectral_norm_W") if c in rows and rows[c].notna().any()]
    if not len(rows) or not columns:
        raise drawing.NoData("the store has no trajectories")
    cells = sweep.cells[sweep.cells["id"].isin(rows["cell"])]
    if not len(cells):
        raise drawing.NoData("no analysed cell has a trajectory")
    compared = [s for s in ("block", "batch_size", "tokens") if s in sweep.free_settings]
    cells = cells.dropna(subset=compared)
    if not compared or not len(cells):
        raise drawing.NoData("the tokens of no cell are known")
    fixed = [s for s in sweep.free_settings if s not in (*compared, "seed")]
    groups = [group for _, group in cells.groupby(fixed, dropna=False, sort=False)]
    group = min(groups, key=lambda g: (g["parameters"].iloc[0], -len(g[compared].drop_duplicates())))
    if len(group[compared].drop_duplicates()) > _MOST_LINES:
        lines = {tokens: len(of[compared].drop_duplicates()) for tokens, of in group.groupby("tokens")}
        group = group[group["tokens"] == max(lines, key=lambda tokens: (lines[tokens], tokens))]
    varied = [s for s in compared if group[s].nunique() > 1] or compared[-1:]
    runs = list(group.sort_values(varied).groupby(varied, sort=False))
    # A colour for each batch size and budget, a dash for each kind of block.
    coloured = [tuple(v for s, v in zip(varied, values, strict=True) if s != "block") for values, _ in runs]
    kinds = sorted(set(coloured))
    colours = dict(zip(kinds, drawing.colours(len(kinds)), strict=True))
    figure, axes = drawing.figure(2, len(columns))
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
        drawing.label(above, "training tokens", sweep.label(column))
        drawing.label(below, "share of the training", sweep.label(column))
    drawn = rows[rows["cell"].isin(group["id"])]
    return drawing.finish(figure, f"At {group['size'].iloc[0]} {'; '.join(_ends(drawn))}", handles)


def revisions(measured: Sequence[dict[str, Any]]) -> Figure:
    """The same of a published model's revisions, as `raysweep geometry --json` prints them; `step1000` is step 1,000."""
    names = [str(row.get("revision", "")) for row in measured]
    # A commit may end in digits, too.
    steps = [re.search(r"step[_-]?(\d+)", name) or re.fullmatch(r"[A-Za-z_-]*(\d{1,12})", name) for name in names]
    if len(measured) < 2 or not all(steps):
        raise drawing.NoData("several revisions are needed whose names end in their step")
    at = [int(step[1]) for step in steps if step]
    order = np.argsort(at)
    columns = [c for c in ("loss", "effective_rank", "spectral_norm") if all(c in row for row in measured)]
    figure, axes = drawing.figure(1, len(columns))
    for ax, column in zip(axes, columns, strict=True):
        values = [float(measured[i][column]) for i in order]
        ax.plot([at[i] for i in order], values, color=drawing.colours(1)[0], lw=1.2, marker="o")
        ax.set_xscale("symlog", linthresh=1)
        drawing.label(ax, "training step", words(column))
    table = pd.DataFrame(measured).assign(cell="", step=at)
    table = table.rename(columns={"loss": "validation_loss", "effective_rank": RANK})
    return drawing.finish(figure, capital("; ".join(_ends(table))), [])


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


def moved_rank(sweep: SweepData) -> Figure:
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
            for name, alone, cell in intervention_effects.pairs(sweep)
        ]
    )
    if not len(pairs):
        raise drawing.NoData("no cell has an intervention and a cell that equals it in all else")
    columns = [c for c in wanted if c in pairs and pairs[c].notna().any()]
    figure, axes = drawing.figure(1, len(columns))
    colours, markers = drawing.size_colours(sweep.cells), drawing.size_markers(sweep.cells)
    for ax, column in zip(axes, columns, strict=True):
        ax.axhline(0, color="#444444", lw=0.8)
        ax.axvline(pairs["from"].mean(), color="#444444", lw=0.8, ls=":")
        for size, of_size in drawing.sizes(pairs).items():
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
        drawing.label(ax, "effective rank of W", f"change of {wanted[column]}")
    main = next(iter(columns))
    lowest = pairs.groupby("name")["rank"].mean().idxmin()
    swaps = intervention_effects.swapped(
        main, [(a, b) for name, a, b in intervention_effects.pairs(sweep) if name == lowest]
    )
    before, after = (pairs[pairs["name"] == lowest][rank].mean() for rank in ("from", "rank"))
    pushed = f"Pushing the effective rank of W from {before:.2f} to {after:.2f}"
    found = effect(swaps) if swaps else None
    if found is None or not math.isfinite(found.low) or found.low <= 0 <= found.high:
        change = drawing.does(found, 0.0, words(main))
    else:
        change = f"changes the {words(main)} by {drawing.interval(found)}"
    is_capped = pairs["name"].str.contains("cap").any()
    title = f"{pushed} {change}"
    handles = [
        *drawing.size_legend(sweep.cells),
        Line2D([], [], color="#777777", lw=1.3, label="mean over seeds"),
        *[Line2D([], [], ls="", marker="*", ms=9, color="#777777", label="the same, spectral norm capped")] * is_capped,
        Line2D([], [], color="#444444", lw=0.8, ls=":", label="rank of the models left alone"),
    ]
    return drawing.finish(figure, title, handles)


def hyperparameter(sweep: SweepData, name: str, columns: Sequence[str], equal_steps: bool = False) -> Figure:
    """One hyperparameter against columns and scaled loss, all else equal: a line for each slice, coloured by size."""
    slices = sweep.slices(name, equal_steps)
    if not slices and equal_steps:
        equal_steps, slices = False, sweep.slices(name)
    if not slices:
        raise drawing.NoData(f"no two cells differ in {words(name)} with all else equal")
    main = drawing.column(sweep, sweep.main_task)
    columns = [c for c in columns if c in sweep.cells and sweep.cells[c].notna().any()]
    # Of the size, whatever the hyperparameter does to the number of parameters.
    shape = [s for s in ("width", "depth", "heads", "vocabulary") if s in sweep.cells and s != name] or ["size"]
    cells = sweep.cells.assign(scaled_loss=sweep.cells[main] / sweep.cells.groupby(shape)[main].transform("min"))
    colours, markers = drawing.size_colours(cells), drawing.size_markers(cells)
    panels = [*columns, "scaled_loss"]
    rows, across = drawing.grid(len(panels), widest=3)
    figure, axes = drawing.figure(rows, across)
    lines = _line_styles(sweep, slices, name, equal_steps)
    for ax, column in zip(axes, panels, strict=False):
        for one, (dash, _) in zip(slices, lines, strict=True):
            size = one["size"].iloc[0]
            values = cells.loc[one.index, column]
            ax.plot(one[name], values, dash, marker=markers[size], color=colours[size], lw=1, ms=4, alpha=0.85)
        drawing.scale(ax, sorted(cells[name].dropna().unique()))
        y = "scaled loss (1 = the size's best)" if column == "scaled_loss" else sweep.label(column)
        drawing.label(ax, sweep.label(name), y)
        found = trend(sweep, name, main if column == "scaled_loss" else column, equal_steps=equal_steps)
        unit = sweep.units.get(main, NATS).partition(",")[0].removesuffix(" per token")
        what, unit = ("loss, ", f" {unit}") if column == "scaled_loss" else ("", "")
        drawing.caption(ax, "" if found is None else f"{what}lowest to highest: {drawing.interval(found, unit)}")
    drawing.hide(axes[len(panels) :])
    first = columns[0] if columns else main
    over_range = trend(sweep, name, first, equal_steps=equal_steps)
    equal = "equal steps, by larger batches," if equal_steps else "all else equal"
    turns = swing(sweep, name, first, equal_steps)
    title = f"Raising the {words(name)} at {equal} {drawing.does(over_range, turns, words(first))}"
    handles = drawing.size_legend(sweep.cells)
    handles += [
        Line2D([], [], ls=dash, color="#777777", lw=1, label=label) for dash, label in dict.fromkeys(lines) if label
    ]
    return drawing.finish(figure, title, handles)


def _line_styles(sweep: SweepData, slices: list[pd.DataFrame], name: str, equal_steps: bool) -> list[tuple[str, str]]:
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


def pareto(sweep: SweepData, metrics: Sequence[tuple[str, int]]) -> Figure:
    """Metrics against each other with the Pareto front; each metric comes with +1 where higher is healthier, else -1."""
    metrics = [(m, s) for m, s in metrics if m in sweep.cells and sweep.cells[m].notna().any()]
    pairs = [(a, b) for i, a in enumerate(metrics) for b in metrics[i + 1 :]]
    if not pairs:
        raise drawing.NoData("fewer than two metrics of W were measured")
    figure, axes = drawing.figure(1, len(pairs))
    for ax, ((x, x_sign), (y, y_sign)) in zip(axes, pairs, strict=False):
        cells = drawing.need(sweep, x, y)
        drawing.scatter(ax, sweep, cells, x, y)
        front = drawing.front(cells[x].to_numpy(float), cells[y].to_numpy(float), x_sign, y_sign)
        ax.step(*front, where="post" if x_sign * y_sign < 0 else "pre", color="#444444", lw=0.9, zorder=1)
        drawing.caption(ax, f"Spearman {drawing.signed(drawing.spearman(cells, x, y))}")
        drawing.label(ax, sweep.label(x), sweep.label(y))
    handles = [*drawing.size_legend(sweep.cells), Line2D([], [], color="#444444", lw=0.9, label="Pareto front")]
    (x, _), (y, _) = pairs[0]
    found = drawing.correlation(sweep, drawing.need(sweep, x, y), x, y)
    return drawing.finish(figure, drawing.direction(found, words(x), words(y)), handles)


# Parts.
