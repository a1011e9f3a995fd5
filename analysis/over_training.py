"""Published models over their training: a line for each, through the checkpoints that were measured."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from raysweep.analysis import drawing
from raysweep.analysis.columns import COSINE, ISOTROPY, RANK
from raysweep.analysis.sweep_data import SweepData

# More sizes than this make a legend that nobody reads.
_MOST = 16


def draw(sweep: SweepData) -> Figure:
    """Loss and geometry of every model against the tokens that it had seen; by steps where tokens are not known.

    A colour for each size. A first checkpoint, before training, is left out: the axis is logarithmic.
    """
    rows = sweep.trajectories[sweep.trajectories["cell"].isin(sweep.cells["id"])]
    over = "tokens" if rows["tokens"].notna().all() else "step"
    rows = rows[rows[over] > 0]
    columns = [c for c in ("validation_loss", RANK, COSINE, ISOTROPY) if c in rows and rows[c].notna().any()]
    if rows.groupby("cell").size().max() < 2 or not columns:
        raise drawing.NoData("no model has two checkpoints after the start of its training")
    sizes = list(dict.fromkeys(sweep.cells.sort_values("parameters")["size"]))
    if len(sizes) > _MOST:
        raise drawing.NoData(f"{len(sizes)} sizes make a figure that nobody can read: choose some with --where")
    colour = dict(zip(sizes, drawing.colours(len(sizes)), strict=True))
    figure, axes = drawing.figure(1, len(columns))
    for model, size in zip(sweep.cells["id"], sweep.cells["size"], strict=True):
        run = rows[rows["cell"] == model].sort_values(over)
        for ax, column in zip(axes, columns, strict=True):
            ax.plot(run[over], run[column], "-o", ms=2.5, color=colour[size], lw=1.1)
    for ax, column in zip(axes, columns, strict=True):
        ax.set_xscale("log")
        drawing.label(ax, "training tokens" if over == "tokens" else "training steps", sweep.label(column))
    handles = [Line2D([], [], color=colour[size], label=size) for size in sizes]
    return drawing.finish(figure, f"Over the training of {len(sweep.cells)} models", handles)
