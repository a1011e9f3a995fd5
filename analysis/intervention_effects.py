"""What follows when the rank of W is pushed and nothing else is set otherwise: cells with an intervention against the same
cells left alone.

A pair is two cells that differ in their intervention only, the seed included: the same initial weights, the same data in the
same order. The change of a column is the mean over pairs, and its interval comes from swapping the two within pairs, in all
ways or in 20,000 of them (`trends.effect`). The slope is that of a column on the effective rank, over the cells
that a penalty did not raise above the one left alone: what lowers the rank and what raises it need not lie on one line.
It is shared by all sizes and seeds, each with a level of its own.

A penalty acts by more than the rank it leads to. Where one of the same strength leaves the rank nearly where it was, it is
the control: the others are compared with it too, again with the seed and all else equal.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pandas as pd

from raysweep.analysis.columns import INTERVENTIONS, RANK
from raysweep.analysis.noise import outcomes, standard_deviations
from raysweep.analysis.sweep_data import SweepData
from raysweep.analysis.trends import effect

Array = npt.NDArray[np.float64]

COLUMNS = (
    "intervention", "against", "column", "change", "low", "high", "comparisons", "sizes", "seed_standard_deviations", "size",
)  # fmt: skip

MAX_CONTROL_SHIFT = 0.03
"""A penalty that moves the effective rank by less than this on average is a control."""


def interventions(sweep: SweepData, noise: pd.DataFrame) -> pd.DataFrame:
    """One row for each intervention and column, over all sizes and for each size; `slope` is per unit of effective rank.

    `against` names the control that it is compared with; empty if that is the cell left alone. The isotropy under a
    cap is left out: it is taken over eigenvectors, which equal singular values do not determine.

    Empty where no cell has an intervention. `noise` is that of `noise.seed_noise`: each size is compared with its
    own. Columns: `COLUMNS`.
    """
    deviations = {size: standard_deviations(noise, size) for size in ["", *noise["size"].unique()]}
    rows = []
    compared_cells = comparisons(sweep)
    lowered = [_not_raised(sweep, family) for family in _families(sweep)]
    names = sorted({(against, name) for name, against, _, _ in compared_cells})
    for column in outcomes(sweep) if compared_cells else []:
        for size in ["", *dict.fromkeys(before["size"] for _, _, before, _ in compared_cells)]:
            deviation = deviations.get(size, {}).get(column, 0.0)
            for against, name in names:
                compared = [
                    (before, after)
                    for n, a, before, after in compared_cells
                    if (n, a) == (name, against) and size in ("", before["size"])
                    if not (column.startswith("isotropy") and _capped(after))
                ]
                swaps = [
                    (a["size"], np.array([0.0, 1.0]), np.array([a[column], b[column]], float)) for a, b in compared
                ]
                rows.append(_row(name, against, column, swaps, deviation, size))
            trends = [
                (group["size"].iloc[0], group[RANK].to_numpy(float), group[column].to_numpy(float))
                for group in lowered
                if size in ("", group["size"].iloc[0])
            ]
            if column != RANK:
                rows.append(_row("slope", "", column, trends, 0.0, size))
    return pd.DataFrame([row for row in rows if row is not None], columns=COLUMNS)


def comparisons(sweep: SweepData) -> list[tuple[str, str, pd.Series, pd.Series]]:
    """The intervention, what it is compared with (empty: the cell left alone), the cell of that, and its own."""
    with_none = [(name, "", alone, cell) for name, alone, cell in pairs(sweep)]
    return with_none + _against_controls(with_none)


def swapped(column: str, compared: list[tuple[pd.Series, pd.Series]]) -> list[tuple[Array, Array]]:
    """Slices for `trends.effect`, whose slope is then the mean change, of those in which both have the column."""
    values = [np.array([before[column], after[column]], float) for before, after in compared]
    return [(np.array([0.0, 1.0]), both) for both in values if np.isfinite(both).all()]


def _row(
    name: str, against: str, column: str, slices: list[tuple[str, Array, Array]], deviation: float, size: str
) -> tuple[object, ...] | None:  # fmt: skip
    kept = [(of, x, y) for of, x, y in slices if len(x) > 1 and np.isfinite(y).all()]
    if not kept:
        return None
    change = effect((x, y) for _, x, y in kept)
    times = change.value / deviation if deviation else math.nan
    return name, against, column, change.value, *change.interval, len(kept), len({of for of, _, _ in kept}), times, size


def _not_raised(sweep: SweepData, family: pd.DataFrame) -> pd.DataFrame:
    natural = family[RANK][sweep.is_untreated[family.index]].iloc[0]
    return family[family[RANK] <= natural]


def label(cell: pd.Series) -> str:
    """`rank 0.5 x 100` with the penalty's strength, `cap 15`; empty for a cell that is left alone."""
    parts = []
    if pd.notna(cell.get("effective_rank_target")):
        parts.append(f"rank {cell['effective_rank_target']:g} x {cell['effective_rank_penalty']:g}")
    if pd.notna(cell.get("spectral_norm_cap")):
        parts.append(f"cap {cell['spectral_norm_cap']:g}")
    return ", ".join(parts)


def pairs(sweep: SweepData) -> Iterator[tuple[str, pd.Series, pd.Series]]:
    """The intervention, the cell left alone, and the one that was not."""
    for cells in _families(sweep, capped=True):
        labels = cells.apply(label, axis=1)
        alone = cells[sweep.is_untreated[cells.index]]
        for name, (_, cell) in zip(labels, cells.iterrows(), strict=True):
            if name and len(alone):
                yield name, alone.iloc[0], cell


def _against_controls(
    comparisons: list[tuple[str, str, pd.Series, pd.Series]],
) -> list[tuple[str, str, pd.Series, pd.Series]]:
    """The penalty, its control's name, the cell of the control, and the cell of the penalty."""
    penalised = [
        (name, alone, cell)
        for name, _, alone, cell in comparisons
        if cell["effective_rank_penalty"] and not _capped(cell)
    ]
    moves: dict[float, dict[str, list[float]]] = {}
    for name, alone, cell in penalised:
        moves.setdefault(cell["effective_rank_penalty"], {}).setdefault(name, []).append(abs(cell[RANK] - alone[RANK]))
    controls = {}
    for strength, by_name in moves.items():
        least = min(by_name, key=lambda name: float(np.mean(by_name[name])))
        if np.mean(by_name[least]) < MAX_CONTROL_SHIFT:
            controls[strength] = least
    held = {
        (alone["id"], cell["effective_rank_penalty"]): cell
        for name, alone, cell in penalised
        if controls.get(cell["effective_rank_penalty"]) == name
    }
    return [
        (name, controls[strength], held[alone["id"], strength], cell)
        for name, alone, cell in penalised
        if (alone["id"], strength := cell["effective_rank_penalty"]) in held and name != controls[strength]
    ]


def _capped(cell: pd.Series) -> bool:
    return bool(pd.notna(cell.get("spectral_norm_cap")))


def _families(sweep: SweepData, capped: bool = False) -> list[pd.DataFrame]:
    """Cells that differ in their intervention only, with one that is left alone; those with a cap only where asked for."""
    if sweep.is_untreated.all():
        return []
    fixed = [s for s in sweep.free_settings if s not in INTERVENTIONS]
    cells = sweep.cells if capped else sweep.cells[sweep.cells["spectral_norm_cap"].isna()]
    groups = [group for _, group in cells.groupby(fixed, dropna=False, sort=False)]
    return [group for group in groups if len(group) > 1 and sweep.is_untreated[group.index].any()]
