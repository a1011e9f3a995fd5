"""What follows when the rank of W alone is moved: cells with an intervention against the same cells left alone.

A pair is two cells that differ in their intervention only, the seed included: the same initial weights, the same data in the
same order. The change of a column is the mean over pairs, and its interval comes from swapping the two within pairs, in all
ways (`analysis.trends.effect`); the slope is that of a column on the effective rank over the targets and the cell that was
left alone, shared by all sizes and seeds, each with a level of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.claims import RANK
from analysis.noise import outcomes
from analysis.sweep import Sweep
from analysis.trends import effect

Array = npt.NDArray[np.float64]

SETTINGS = ("effective_rank_target", "effective_rank_penalty", "spectral_norm_cap")

COLUMNS = (
    "intervention", "column", "change", "low", "high", "pairs", "sizes", "seed_standard_deviations", "size",
)  # fmt: skip


def interventions(sweep: Sweep, noise: pd.DataFrame) -> pd.DataFrame:
    """One row for each intervention and column, over all sizes and for each size; `slope` is per unit of effective rank.

    Empty where no cell has an intervention. `noise` is that of `analysis.noise.seed_noise`. Columns: `COLUMNS`.
    """
    deviation = dict(zip(noise["column"], noise["standard_deviation"], strict=True))
    rows = []
    found = list(pairs(sweep))
    names = sorted({name for name, _, _ in found})
    for column in outcomes(sweep) if found else []:
        for size in ["", *dict.fromkeys(alone["size"] for _, alone, _ in found)]:
            for name in names:
                chosen = [(a, b) for n, a, b in found if n == name and size in ("", a["size"])]
                slices = [(np.array([0.0, 1.0]), np.array([a[column], b[column]], dtype=float)) for a, b in chosen]
                rows.append(_row(name, column, slices, deviation, size, len({a["size"] for a, _ in chosen})))
            slices = [
                (group[RANK].to_numpy(float), group[column].to_numpy(float))
                for group in _families(sweep)
                if column != RANK and size in ("", group["size"].iloc[0])
            ]
            if slices:
                sizes = len({g["size"].iloc[0] for g in _families(sweep)}) if not size else 1
                rows.append(_row("slope", column, slices, {}, size, sizes))
    return pd.DataFrame([row for row in rows if row is not None], columns=COLUMNS)


def _row(
    name: str, column: str, slices: list[tuple[Array, Array]], deviation: dict[str, float], size: str, sizes: int
) -> tuple[object, ...] | None:  # fmt: skip
    kept = [(x, y) for x, y in slices if np.isfinite(y).all()]
    if not kept:
        return None
    of_all = effect(kept)
    interval = (of_all.low, of_all.high) if math.isfinite(of_all.low) else (math.nan, math.nan)
    times = of_all.value / deviation[column] if deviation.get(column) else math.nan
    return name, column, of_all.value, *interval, len(kept), sizes, times, size


def label(cell: pd.Series) -> str:
    """`rank 0.5`, `cap 15`; empty for a cell that is left alone."""
    parts = []
    if pd.notna(cell.get("effective_rank_target")):
        parts.append(f"rank {cell['effective_rank_target']:g}")
    if pd.notna(cell.get("spectral_norm_cap")):
        parts.append(f"cap {cell['spectral_norm_cap']:g}")
    return ", ".join(parts)


def pairs(sweep: Sweep) -> Iterator[tuple[str, pd.Series, pd.Series]]:
    """The intervention, the cell left alone, and the one that was not."""
    for cells in _families(sweep, capped=True):
        labels = cells.apply(label, axis=1)
        alone = cells[labels == ""]
        for name, (_, cell) in zip(labels, cells.iterrows(), strict=True):
            if name and len(alone):
                yield name, alone.iloc[0], cell


def _families(sweep: Sweep, capped: bool = False) -> list[pd.DataFrame]:
    """Cells that differ in their intervention only, with one that is left alone; those with a cap only where asked for."""
    settings = [s for s in SETTINGS if s in sweep.cells]
    if not settings or (not sweep.cells[settings[0]].notna().any() and not sweep.cells[settings[-1]].notna().any()):
        return []
    fixed = [s for s in sweep.free_settings if s not in SETTINGS]
    cells = sweep.cells if capped else sweep.cells[sweep.cells["spectral_norm_cap"].isna()]
    groups = [group for _, group in cells.groupby(fixed, dropna=False, sort=False)]
    return [group for group in groups if len(group) > 1 and (group.apply(label, axis=1) == "").any()]
