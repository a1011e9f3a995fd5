"""The figure of a setting that was sampled: what it does to columns, with the other settings adjusted for."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from raysweep.analysis import drawing
from raysweep.analysis.adjusted import adjusted
from raysweep.analysis.columns import words
from raysweep.analysis.sweep_data import SweepData


def sampled(sweep: SweepData, name: str, columns: Sequence[str]) -> Figure:
    """A setting against columns and the main loss: each cell without what the others explain, the line and its interval."""
    main = drawing.column(sweep, sweep.main_task)
    columns = [c for c in dict.fromkeys([*columns, main]) if c in sweep.cells and sweep.cells[c].notna().any()]
    found = [(column, adjusted(sweep, name, column)) for column in columns]
    kept = [(column, one) for column, one in found if one.effect is not None]
    if not kept:
        raise drawing.NoData(found[0][1].reason if found else f"no cell has {words(main)}")
    rows, across = drawing.grid(len(kept), widest=3)
    figure, axes = drawing.figure(rows, across)
    colours, markers = drawing.size_colours(sweep.cells), drawing.size_markers(sweep.cells)
    for ax, (column, one) in zip(axes, kept, strict=False):
        assert one.effect is not None
        values, mean = one.cells[name].to_numpy(float), float(one.cells[column].mean())
        for size in one.cells["size"].unique():
            of_size = (one.cells["size"] == size).to_numpy()
            ax.plot(
                values[of_size], mean + one.partial[of_size], markers[size], color=colours[size], alpha=0.75, mec="white",
                mew=0.3,
            )  # fmt: skip
        if sweep.sampled[name]:
            ax.set_xscale("log")
        order = np.argsort(one.x)
        along = (one.x - one.x.mean())[order]
        ax.plot(values[order], mean + one.effect.value * along, color="#222222", lw=1.2)
        if math.isfinite(one.effect.low):
            ends = (mean + one.effect.low * along, mean + one.effect.high * along)
            ax.fill_between(values[order], np.minimum(*ends), np.maximum(*ends), color="#222222", alpha=0.15, lw=0)
        drawing.label(ax, sweep.label(name), sweep.label(column))
        drawing.caption(ax, f"over the range: {drawing.interval(one.effect)}")
    drawing.hide(axes[len(kept) :])
    first, one = kept[0]
    title = (
        f"Raising the {words(name)}, with the other settings adjusted for, {drawing.does(one.effect, 0, words(first))}"
    )
    return drawing.finish(figure, title, drawing.size_legend(sweep.cells))
