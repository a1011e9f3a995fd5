"""The paper's Figures 2-27 from any sweep that has the data, as PNG and PDF, and the same kinds for what is beyond them.

A sweep with other hyperparameters or tasks gets a figure for each of those too. `figures.csv` lists every figure with its
file, or with the reason why it could not be drawn.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from joblib import Parallel, delayed
from matplotlib.figure import Figure
from PIL import Image

from raysweep.analysis import drawing, layer_plots, over_training, plots
from raysweep.analysis.columns import COSINE, ISOTROPY, PAPER_METRICS, PAPER_TASKS, RANK, outcome
from raysweep.analysis.hypothesis_statistics import deviation
from raysweep.analysis.sampled_plots import sampled
from raysweep.analysis.sweep_data import SweepData

COLUMNS = ("figure", "name", "file", "title", "reason")

_OTHER_METRICS = tuple(m for m in PAPER_METRICS if m != RANK)
_VARIED = ("batch_size", "weight_decay", "learning_rate_factor", "final_learning_rate_fraction", "tokens")
# (task, figure): the appendix shows each task against every metric.
_OF_TASKS = dict(zip(PAPER_TASKS.values(), range(20, 28), strict=True))


@dataclass(frozen=True)
class Entry:
    """One figure of the catalogue."""

    number: int | None
    """In the paper; None for what the paper does not have."""
    name: str
    draw: Callable[[SweepData], Figure]
    every_cell: bool = False
    """Whether it shows what is not of the design, too: further seeds and cells with interventions."""

    @property
    def stem(self) -> str:
        """The file name without its ending."""
        return f"figure_{self.number:02d}_{self.name}" if self.number is not None else f"further_{self.name}"


def catalogue(
    sweep: SweepData, regressions: pd.DataFrame | None = None, layers: pd.DataFrame | None = None
) -> list[Entry]:
    """The paper's figures in their order, then the further ones of this sweep; of layers, where their tables are given."""
    main = sweep.main_task
    entries = [
        Entry(2, "loss_and_effective_rank", partial(plots.loss_by_size, task=main, metric=RANK)),
        Entry(3, "out_of_distribution_agreement", partial(plots.agreement, task="out_of_distribution")),
        Entry(4, "quantization", partial(plots.quantization, task="quantized_in_distribution")),
        Entry(5, "saturation", plots.saturation, every_cell=True),
        Entry(6, "fine_tuning", partial(plots.agreement, task="finetune_starcoder_python")),
        Entry(7, "forgetting", partial(_forgetting, task="forgetting_starcoder_python")),
    ]
    for number, name in enumerate(_VARIED, 8):
        entries.append(Entry(number, name, _effect_of(name, (RANK,))))
    entries += [
        Entry(13, "metrics_of_W", partial(plots.pareto, metrics=((RANK, 1), (COSINE, -1), (ISOTROPY, 1)))),
        Entry(14, "W_and_H", _w_and_h),
    ]
    for number, name in enumerate(_VARIED, 15):
        entries.append(Entry(number, f"{name}_and_other_metrics", _effect_of(name, _OTHER_METRICS)))
    for task, number in _OF_TASKS.items():
        entries.append(Entry(number, f"{task}_and_metrics", partial(_task, task=task, metrics=PAPER_METRICS)))
    for task in sweep.tasks:
        if task not in _OF_TASKS:
            entries.append(Entry(None, f"{task}_and_metrics", partial(_task, task=task, metrics=sweep.metrics)))
    if layers is not None and regressions is not None:
        for metric in layer_plots.metrics(layers):
            drawn = partial(layer_plots.added, layers=layers, regressions=regressions, metric=metric)
            entries.append(Entry(None, f"layers_{metric}", drawn))
    if not sweep.is_untreated.all():
        entries.append(Entry(None, "interventions", plots.moved_rank, every_cell=True))
    if len(sweep.models):
        entries.append(Entry(None, "over_training", over_training.draw, every_cell=True))
    for name in sweep.design.hyperparameters:
        if name not in _VARIED:
            entries.append(Entry(None, name, _effect_of(name, sweep.metrics)))
    return entries


def draw(
    sweep: SweepData, folder: Path, regressions: pd.DataFrame, layers: pd.DataFrame, jobs: int = -1,
    step: Callable[[int, int], None] = lambda done, of: None,
) -> pd.DataFrame:  # fmt: skip
    """Draw every figure of the catalogue into a folder; the rows say what was drawn, with the columns `COLUMNS`."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = catalogue(sweep, regressions, layers)
    step(0, len(entries))
    rows = []
    pool = Parallel(n_jobs=jobs, return_as="generator")
    for row in pool(delayed(_save)(entry, sweep, folder) for entry in entries):
        rows.append(row)
        step(len(rows), len(entries))
    drawn = pd.DataFrame(rows, columns=COLUMNS)
    return drawn.astype({"figure": "Int64"})


def _save(entry: Entry, sweep: SweepData, folder: Path) -> dict[str, Any]:
    row = {"figure": entry.number, "name": entry.name, "file": "", "title": "", "reason": ""}
    try:
        figure = entry.draw(sweep if entry.every_cell else sweep.design)
    except drawing.NoData as error:
        return row | {"reason": str(error)}
    with mpl.rc_context(drawing.style()):
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png")
        # 256 colours are more than a figure has, and make files and the page a third as large.
        with Image.open(drawn) as picture:
            palette = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
            palette.save(folder / f"{entry.stem}.png", optimize=True)
        # The layout is found; finding it again for the second file would take as long as the first.
        figure.set_layout_engine("none")
        figure.savefig(folder / f"{entry.stem}.pdf", metadata={"CreationDate": None})
    return row | {"file": f"{entry.stem}.png", "title": figure.get_suptitle().replace("\n", " ")}


def _effect_of(name: str, columns: tuple[str, ...]) -> Callable[[SweepData], Figure]:
    return partial(_effect, name=name, columns=columns)


def _effect(sweep: SweepData, name: str, columns: tuple[str, ...]) -> Figure:
    if sweep.is_sampled(name):
        return sampled(sweep, name, columns)
    # The paper trains every token budget for the same number of steps.
    return plots.hyperparameter(sweep, name, columns, equal_steps=name == "tokens")


def _task(sweep: SweepData, task: str, metrics: tuple[str, ...]) -> Figure:
    if task not in sweep.tasks:
        raise drawing.NoData(f"no cell has {outcome(task)}")
    return plots.against(sweep, task, [(metric, sweep.tasks[task]) for metric in metrics])


def _forgetting(sweep: SweepData, task: str) -> Figure:
    if task not in sweep.tasks:
        raise drawing.NoData(f"no cell has {outcome(task)}")
    column, main = sweep.tasks[task], sweep.tasks.get(sweep.main_task, "")
    return plots.against(
        sweep, task, [(RANK, column), (main, column), (RANK, f"{column}_change"), (main, f"{column}_change")]
    )


def _w_and_h(sweep: SweepData) -> Figure:
    of_w = [m for m in PAPER_METRICS if m.endswith("_W") and m in sweep.metrics]
    of_h = [m for m in PAPER_METRICS if m.endswith("_H") and m in sweep.metrics]
    if not of_w or not of_h:
        raise drawing.NoData("W and H were not both measured")
    title = ""
    if RANK in sweep.metrics and "effective_rank_H" in sweep.metrics:
        cells = drawing.need(sweep, RANK, "effective_rank_H")
        h, w = (float(cells[m].std()) for m in ("effective_rank_H", RANK))
        apart = drawing.estimate(
            sweep,
            cells,
            lambda weights: deviation(cells["effective_rank_H"], weights) - deviation(cells[RANK], weights),
        )
        how = f"varies {'less' if h < w else 'more'}" if apart.is_clear else "does not clearly vary more or less"
        title = f"The effective rank of H {how} than that of W: standard deviations {h:.3f} and {w:.3f}"
    return plots.against(sweep, "representation", [(w, h) for h in of_h for w in of_w], title)
