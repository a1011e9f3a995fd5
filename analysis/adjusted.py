"""What a sampled setting does to a column, the other settings adjusted for by regression.

In a sampled design no two cells are equal but for one setting, so that nothing can be compared at equal settings (`trends`).
There the effect is the coefficient of the setting in a least-squares regression of the column on all settings that vary, the
width among them, and on the squares of those that are numbers where there are cells enough. A setting runs from 0 at the
lowest value tested to 1 at the highest, on the scale that it was sampled on: so the effect is the change over the range, as
it is of a grid. Where the rule sets the learning rate, a setting that changes N moves the rate with it.

The interval is Student's, with the error of the jackknife over points (a point's cells are left out together), which holds
where errors differ in size and where the regression's form is not quite that of the truth (MacKinnon and White 1985).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import linalg, stats

from raysweep.analysis.columns import BASE_RATE, column_of_setting, words
from raysweep.analysis.sweep_data import SweepData
from raysweep.analysis.trends import Effect

Array = npt.NDArray[np.float64]

FEWEST_SPARE = 8
"""Points beyond the columns of the regression from which an effect has an interval."""

_FOR_SQUARES = 5
"""Points for each column from which the squares of settings are adjusted for too."""


@dataclass(frozen=True)
class Adjustment:
    """The regression of one setting and one column."""

    effect: Effect | None
    reason: str
    """Why there is no effect; empty where there is one."""
    x: Array
    """(n,) the setting, 0 at its lowest value and 1 at its highest."""
    partial: Array
    """(n,) the column without what the other settings explain, about its mean."""
    cells: pd.DataFrame
    """The n cells, one for each configuration."""


def adjusted(sweep: SweepData, setting: str, column: str) -> Adjustment:
    """The effect of a sampled setting on a column over the range tested."""
    setting = column_of_setting(setting)
    cells = sweep.over_seeds.cells
    cells = cells.dropna(subset=[column, setting]) if {column, setting} <= set(cells) else cells.head(0)
    nothing = Adjustment(None, "", np.empty(0), np.empty(0), cells)
    if len(cells) < 2 or cells[setting].nunique() < 2:
        return _without(nothing, f"no two cells differ in {words(setting)}")
    numbers, kinds = _columns(sweep, setting, cells)
    points = _points(sweep, cells)
    count = len(np.unique(points))
    x = _scaled(sweep, setting, cells)
    # About their means, so that the coefficient of the setting is its slope over the whole range.
    squares = [(values - values.mean()) ** 2 for values in (x, *numbers) if len(np.unique(values)) > 2]
    others = [*numbers, *kinds]
    if count >= _FOR_SQUARES * (2 + len(others) + len(squares)):
        others += squares
    controls = _independent(np.column_stack([np.ones(len(cells)), *others]))
    y = cells[column].to_numpy(float)
    rest_of_x, rest_of_y = (values - controls @ np.linalg.lstsq(controls, values, rcond=None)[0] for values in (x, y))
    if rest_of_x @ rest_of_x < 1e-6 * ((x - x.mean()) ** 2).sum():
        return _without(nothing, f"{words(setting)} goes with the other settings: it cannot be told apart from them")
    value = float(rest_of_x @ rest_of_y / (rest_of_x @ rest_of_x))
    spare = count - controls.shape[1] - 1
    low, high = -math.inf, math.inf
    if spare >= FEWEST_SPARE:
        error = _jackknife(np.column_stack([x, controls]), y, points)
        reach = float(stats.t.ppf(0.975, spare)) * error
        low, high = value - reach, value + reach
    reason = "" if spare >= FEWEST_SPARE else (
        f"{count} points for {controls.shape[1] + 1} columns; at least {FEWEST_SPARE} more are needed for an interval"
    )  # fmt: skip
    return Adjustment(
        Effect(value, low, high, len(cells), 0),
        reason,
        x,
        value * (x - x.mean()) + rest_of_y - value * rest_of_x,
        cells,
    )


def _without(nothing: Adjustment, reason: str) -> Adjustment:
    return Adjustment(None, reason, nothing.x, nothing.partial, nothing.cells)


def _columns(sweep: SweepData, setting: str, cells: pd.DataFrame) -> tuple[list[Array], list[Array]]:
    """The other settings that vary, each about its mean: those that are numbers, and 0 or 1 for each further kind."""
    numbers, kinds = [], []
    for name in sweep.free_settings:
        if name in (setting, "seed") or name not in cells:
            continue
        values = cells[name]
        if values.nunique(dropna=False) < 2:
            continue
        if name == BASE_RATE and cells.groupby("parameters")[name].nunique().max() == 1:
            continue  # The rule's, which goes with the size and what changes it.
        if not pd.api.types.is_numeric_dtype(values):
            kinds += [one.to_numpy(float) for _, one in pd.get_dummies(values, drop_first=True).items()]
            continue
        absent = values.isna().to_numpy()
        if absent.any():
            kinds.append(absent.astype(float))
        scaled = _scaled(sweep, name, cells.assign(**{name: values.fillna(values.min())}))
        numbers.append(np.where(absent, 0.0, scaled - scaled[~absent].mean()))
    return numbers, kinds


def _scaled(sweep: SweepData, name: str, cells: pd.DataFrame) -> Array:
    """0 at the lowest value of a setting and 1 at its highest, on its scale."""
    values = cells[name].to_numpy(float)
    # Settings of a grid are mostly spaced by factors.
    if sweep.sampled.get(name, bool((values > 0).all())):
        values = np.log(values)
    return np.asarray((values - values.min()) / max(float(np.ptp(values)), 1e-300))


def _points(sweep: SweepData, cells: pd.DataFrame) -> npt.NDArray[np.int64]:
    """(n,) the number of each cell's point: those of one point are beside each other in all that was sampled."""
    sampled = [name for name in sweep.sampled if name in cells]
    return np.asarray(cells.groupby(sampled, dropna=False, sort=False).ngroup(), dtype=np.int64)


def _independent(columns: Array) -> Array:
    """Columns that span the same, none of which follows from others."""
    scaled = columns / np.maximum(np.abs(columns).max(axis=0), 1e-300)
    triangle, order = linalg.qr(scaled, mode="r", pivoting=True)
    sizes = np.abs(np.diag(triangle[: len(order)]))
    return np.asarray(scaled[:, order[: int((sizes > 1e-7 * sizes[0]).sum())]])


def _jackknife(columns: Array, y: Array, points: npt.NDArray[np.int64]) -> float:
    """The standard error of the first coefficient, each point left out in turn."""
    numbers, group = np.unique(points, return_inverse=True)
    shape = (len(numbers), columns.shape[1])
    squares, products = np.zeros((*shape, shape[1])), np.zeros(shape)
    np.add.at(squares, group, columns[:, :, None] * columns[:, None, :])
    np.add.at(products, group, columns * y[:, None])
    left = np.linalg.pinv(squares.sum(axis=0) - squares, hermitian=True)
    first = np.einsum("gj,gj->g", left[:, 0, :], products.sum(axis=0) - products)
    return math.sqrt((len(numbers) - 1) / len(numbers) * float(((first - first.mean()) ** 2).sum()))
