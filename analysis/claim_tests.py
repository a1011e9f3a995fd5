"""The tests of each claim of the paper, one method a claim, and the bounds that they use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from raysweep.analysis import statistics
from raysweep.analysis.columns import COSINE, ISOTROPY, PAPER_METRICS, PAPER_TASKS, RANK, column_of, outcome, words
from raysweep.analysis.findings import Array, Finding, Tests, of_effect, of_mean
from raysweep.analysis.regressions import DRAWS, SEED, folds_of
from raysweep.analysis.sweep_data import SweepData
from raysweep.analysis.trajectories import few_steps, late_rise
from raysweep.analysis.trends import effect, of_lowest_and_middle, of_middle_and_highest, slopes

LITTLE = 0.3
"""A correlation below this is little: what Cohen (1988) calls medium starts there."""
NEAR_LINEAR = 0.9
"""R² from which a relation counts as a line."""
NO_LINE = 0.5
"""R² up to which a relation counts as no strong line."""
ADDS_NOTHING = 0.05
"""Added R² below this is nothing: the largest that the paper prints."""
LATE_RISE = 0.01
"""A rise above the lowest loss of the run by this fraction of it counts as saturation."""
OVER_TRAINED = 200
"""Tokens for each parameter from which a run is long enough to saturate: ten times the compute-optimal (Hoffmann 2022)."""
COLLAPSE = 0.1
"""A difference in effective rank from which it counts as collapsed, a fraction of the width."""

FEWEST_SLOPES = 6
"""Comparisons of one hyperparameter from which their mean change is resampled."""


class ClaimTests(Tests):
    """The tests of each claim."""

    def claim_1(self) -> Iterator[Finding]:
        yield self.regression(self.sweep.main_task, RANK, "raw_spearman", "< 0")
        yield self.regression(self.sweep.main_task, RANK, "partial_spearman", f"within ±{LITTLE}")

    def claim_2(self) -> Iterator[Finding]:
        yield self.resampled(
            "spread of effective rank among the tenth of same-size pairs closest in loss / among all pairs", "> 0.5",
            (RANK, self.loss), self._spread_at_equal_loss,
        )  # fmt: skip
        for column, what in ((RANK, "effective rank"), (self.loss, self.loss_words)):
            yield self.resampled(
                f"mean within-size percentile of the {what} of cells with at most half the median steps and a batch above "
                "the median", "> 0.5",
                (column,), partial(_percentile_of_short_runs, column=column),
            )  # fmt: skip

    def _spread_at_equal_loss(self, cells: pd.DataFrame) -> Callable[[Array], Array]:
        first, second = np.triu_indices(len(cells), 1)
        size, rank, loss = (cells[c].to_numpy(float) for c in ("parameters", RANK, self.loss))
        configuration = self.sweep.configurations[cells.index]
        # Two seeds of one configuration are one model twice.
        same = (size[first] == size[second]) & (configuration[first] != configuration[second])
        first, second = first[same], second[same]
        apart, of_size = np.abs(loss[first] - loss[second]), size[first]
        close = np.zeros(len(first), dtype=bool)
        for s in np.unique(of_size):
            close[of_size == s] = apart[of_size == s] <= np.quantile(apart[of_size == s], 0.1)
        spread = np.abs(rank[first] - rank[second])

        def ratio(weights: Array) -> Array:
            pairs = weights[:, first] * weights[:, second]
            near = pairs * close
            return np.asarray((near @ spread / near.sum(axis=1)) / (pairs @ spread / pairs.sum(axis=1)))

        # There are many pairs of cells: some resamples at a time.
        at_once = max(1, 10_000_000 // max(1, len(first)))
        return lambda weights: np.concatenate(
            [ratio(some) for some in np.array_split(weights, -(-len(weights) // at_once))]
        )

    def claim_3(self) -> Iterator[Finding]:
        out = self.sweep.tasks.get("out_of_distribution", "out_of_distribution_loss")
        yield self.line(self.loss, out, "out-of-distribution loss", f"> {NEAR_LINEAR}")

        def closer(cells: pd.DataFrame) -> Callable[[Array], Array]:
            o, i, r = (cells[c].to_numpy(float) for c in (out, self.loss, RANK))
            return lambda w: np.abs(statistics.spearman(o, i, w)) - np.abs(statistics.spearman(o, r, w))

        yield self.resampled(
            f"|Spearman| of out-of-distribution loss with {self.loss_words} minus with effective rank", "> 0",
            (out, self.loss, RANK), closer,
        )  # fmt: skip

    def claim_4(self) -> Iterator[Finding]:
        change = "quantized_4bit_in_distribution_loss_change"
        sizes = sorted(self.cells["parameters"].unique()) if len(self.cells) else []

        def at(size: float) -> Callable[[pd.DataFrame], Callable[[Array], Array]]:
            def correlation(cells: pd.DataFrame) -> Callable[[Array], Array]:
                here = (cells["parameters"] == size).to_numpy(float)
                rank, hurt = cells[RANK].to_numpy(float), cells[change].to_numpy(float)
                return lambda w: statistics.spearman(rank, hurt, w * here)

            return correlation

        yield self.resampled(
            "Spearman of effective rank and 4-bit GPTQ's rise in loss at the smallest size", "< 0", (RANK, change),
            at(sizes[0]) if sizes else None, fewest=8, only=sizes[:1],
        )  # fmt: skip
        if len(sizes) > 1:
            smallest, largest = at(sizes[0]), at(sizes[-1])
            yield self.resampled(
                "Spearman of effective rank and 4-bit GPTQ's rise, smallest size minus largest", "< 0", (RANK, change),
                lambda cells: lambda w: smallest(cells)(w) - largest(cells)(w), fewest=8, only=[sizes[0], sizes[-1]],
            )  # fmt: skip
        yield self.trend(
            "weight_decay", change, "4-bit GPTQ's rise in loss, smaller half of the sizes", "< 0",
            keep=self._smaller_half,
        )  # fmt: skip

    def _smaller_half(self, cells: pd.DataFrame) -> pd.DataFrame:
        sizes = np.sort(self.cells["parameters"].unique())
        return cells[cells["parameters"].isin(sizes[: (len(sizes) + 1) // 2])]

    def claim_5(self) -> Iterator[Finding]:
        # The claim is about sequential blocks: the models that saturate have parallel ones.
        over_trained = self.cells["tokens"] >= OVER_TRAINED * self.cells["parameters"]
        if "block" in self.cells:
            over_trained &= self.cells["block"] == "sequential"
        late = replace(self, sweep=self.sweep.of(over_trained))
        runs = f"of runs of at least {OVER_TRAINED} tokens for each parameter"

        def extremes(cells: pd.DataFrame) -> pd.DataFrame:
            return cells[cells["batch_size"].isin([cells["batch_size"].min(), cells["batch_size"].max()])]

        yield late.trend("batch_size", RANK, f"effective rank {runs}", f"> {COLLAPSE}", keep=extremes)
        name = (
            f"mean rise of the validation loss above its lowest, at the smallest batch, {runs} (fraction of the loss)"
        )
        rise = late_rise(self.sweep.trajectories)
        smallest = [cells["id"].iloc[0] for cells in late.sweep.slices("batch_size")]
        rises = late.cells.assign(rise=late.cells["id"].map(rise))[late.cells["id"].isin(smallest)].dropna(
            subset=["rise"]
        )
        # Seeds of a configuration are one observation.
        means = rises.groupby(late.sweep.configurations[rises.index])["rise"].mean().to_numpy(float)
        yield of_mean(name, f"< {LATE_RISE}", means)

    def claim_6(self) -> Iterator[Finding]:
        tasks = [t for t in self.sweep.tasks if t.startswith("finetune_")]
        for task in tasks or ["finetune_starcoder_python"]:
            yield self.regression(task, RANK, "partial_spearman", f"within ±{LITTLE}")
            yield self.regression(task, RANK, "predictive_r2", f"< {ADDS_NOTHING}")
            column = column_of(task)
            yield self.line(self.loss, column, outcome(task), f"< {NO_LINE}")

    def claim_7(self) -> Iterator[Finding]:
        tasks = [t for t in self.sweep.tasks if t.startswith("forgetting_")]
        for task in tasks or ["forgetting_starcoder_python"]:
            yield self.regression(task, RANK, "partial_spearman", f"within ±{LITTLE}")
            change = f"{column_of(task)}_change"
            what = words(change)
            yield self.resampled(
                f"Spearman of the {what} and the base model's loss", "< 0", (change, self.loss),
                partial(_correlation, x=change, y=self.loss),
            )  # fmt: skip
            yield self.trend("weight_decay", change, what, "> 0")
            yield self.trend("weight_decay", column_of(task), outcome(task), "> 0")

    def claim_8(self) -> Iterator[Finding]:
        yield self.trend("batch_size", RANK, "effective rank", "> 0")
        yield self.trend("batch_size", COSINE, "cosine", "< 0")
        falling, rising = _u(self.sweep, self.loss) if self.loss else ([], [])
        for ends, pairs, rule in (
            ("lowest batch size to the bottom (where the other sizes have it)", falling, "< 0"),
            ("bottom to the highest batch size", rising, "> 0"),
        ):
            name = f"{self.loss_words}, from the {ends}"
            if pairs:
                yield of_effect(name, rule, effect(pairs))
            else:
                yield Finding(name, rule, reason="no three cells differ in batch size with all else equal")

    def claim_9(self) -> Iterator[Finding]:
        yield self.trend("weight_decay", RANK, "effective rank", "> 0")
        yield self.trend("weight_decay", COSINE, "cosine", "< 0")
        yield self.trend("weight_decay", ISOTROPY, "isotropy", "> 0")
        name = f"change of weight decay's effect on {self.loss_words} per e-fold of size"
        sizes, falls = slopes(self.sweep, "weight_decay", self.loss) if self.loss else (np.array([]), np.array([]))
        if len(np.unique(sizes)) < 3:
            yield Finding(name, "< 0", reason="weight decay was varied at fewer than 3 sizes")
        else:
            yield of_effect(name, "< 0", effect([(sizes, falls)]))
        yield self.trend(
            "weight_decay", self.loss, f"{self.loss_words}, smaller half of the sizes", "> 0", keep=self._smaller_half
        )

    def claim_10(self) -> Iterator[Finding]:
        margin = _within_size_spread(self.cells, RANK) / 2
        rule = f"within ±{margin:.3g}" if margin > 0 else "within ±0.01"
        for keep, ends in (
            (of_lowest_and_middle, "lowest to the middle"),
            (of_middle_and_highest, "middle to the highest"),
        ):
            yield self.trend(
                "learning_rate_factor", RANK, "effective rank (margin: half its spread within a size)", rule,
                keep=partial(_between, "learning_rate_factor", keep), ends=ends,
            )  # fmt: skip
        for side, of in (("lower", np.less_equal), ("higher", np.greater_equal)):
            finding = self.trend(
                "learning_rate_factor", self.loss, f"{self.loss_words} at the prescribed rate minus at {side} ones",
                "< 0", lambda values: (values == 1).astype(float), partial(_where_factor, of=of, bound=1),
            )  # fmt: skip
            if finding.reason and len(self.cells) and 1 not in self.cells.get("learning_rate_factor", []).to_numpy():
                most = self.cells["learning_rate_factor"].mode().iloc[0]
                finding = replace(finding, reason=f"no cell has the prescribed rate; most have {most:g} times it")
            yield finding

    def claim_11(self) -> Iterator[Finding]:
        yield self.trend("final_learning_rate_fraction", RANK, "effective rank", "> 0")
        yield self.trend("final_learning_rate_fraction", self.loss, self.loss_words, "> 0")

    def claim_12(self) -> Iterator[Finding]:
        for column, what, rule in (
            (RANK, "effective rank", "> 0"), (self.loss, self.loss_words, "< 0"), (COSINE, "cosine", "< 0"),
            (ISOTROPY, "isotropy", "> 0"),
        ):  # fmt: skip
            yield self.trend("tokens", column, what, rule, equal_steps=True)

    def claim_13(self) -> Iterator[Finding]:
        def bent(cells: pd.DataFrame) -> Callable[[Array], Array]:
            rank, cosine = cells[RANK].to_numpy(float), cells[COSINE].to_numpy(float)
            square = ((rank - rank.mean()) ** 2)[:, None]
            partitions = folds_of(np.unique(self.sweep.configurations[cells.index], return_inverse=True)[1], 3)
            return lambda w: np.mean(
                [statistics.added_r2(rank[:, None], square, cosine, p, w)[:, 0] for p in partitions], axis=0
            )

        yield self.resampled(
            "Spearman of effective rank and cosine", "< 0", (RANK, COSINE), partial(_correlation, x=RANK, y=COSINE)
        )
        yield self.resampled(
            "R² that the square of the effective rank adds to a line, for cosine",
            "> 0",
            (RANK, COSINE),
            bent,
            basic=True,
        )
        yield self.resampled(
            "interquartile range / median, of isotropy minus of effective rank", "< 0", (RANK, ISOTROPY),
            lambda cells: lambda w: np.round(_relative_range(cells[ISOTROPY], w) - _relative_range(cells[RANK], w), 12),
        )  # fmt: skip
        yield self._isotropy_and_decay()

    def _isotropy_and_decay(self) -> Finding:
        name = "mean |change| of isotropy over the range of weight decay minus over any other hyperparameter's"
        by_setting = {}
        for h in self.sweep.hyperparameters if ISOTROPY in self.cells else ():
            changes = np.abs(slopes(self.sweep, h, ISOTROPY, self.sweep.at_equal_steps(h))[1])
            # Resamples of fewer differ too little among each other for an interval.
            if len(changes) >= FEWEST_SLOPES:
                by_setting[h] = changes
        decay = by_setting.pop("weight_decay", np.array([]))
        if not len(decay) or not by_setting:
            needed = f"weight decay and another hyperparameter are needed, with {FEWEST_SLOPES} comparisons of each"
            return Finding(name, "> 0", reason=needed)
        rng = np.random.default_rng(SEED)

        def means(changes: Array) -> Array:
            return np.asarray(changes[rng.integers(len(changes), size=(DRAWS, len(changes)))].mean(axis=1))

        draws = means(decay) - np.max([means(changes) for changes in by_setting.values()], axis=0)
        value = float(decay.mean() - max(changes.mean() for changes in by_setting.values()))
        return Finding(name, "> 0", value, *statistics.percentile_interval(draws), n=len(decay))

    def claim_14(self) -> Iterator[Finding]:
        pair = ("effective_rank_H", RANK)
        yield self.resampled(
            "mean effective rank of H minus of W", "> 0", pair, lambda cells: _mean(cells[pair[0]] - cells[pair[1]])
        )
        yield self.resampled(
            "standard deviation of the effective rank across models, H minus W", "< 0", pair,
            lambda cells: lambda w: _deviation(cells[pair[0]], w) - _deviation(cells[pair[1]], w),
        )  # fmt: skip

    def claim_15(self) -> Iterator[Finding]:
        if not len(self.regressions):
            yield Finding("R² added", f"< {ADDS_NOTHING}", reason="no task has both a loss and a metric")
            return
        added = self.regressions.xs("predictive_r2", level="statistic").sort_values("high", ascending=False)
        # What the paper measured, where that was measured here: every further column would be a further chance to be wrong.
        papers = [(t, m) for t, m in added.index if t in PAPER_TASKS.values() and m in PAPER_METRICS]
        for task, metric in papers or added.index:
            yield self.regression(task, metric, "predictive_r2", f"< {ADDS_NOTHING}")


def _correlation(cells: pd.DataFrame, x: str, y: str) -> Callable[[Array], Array]:
    first, second = cells[x].to_numpy(float), cells[y].to_numpy(float)
    return lambda w: statistics.spearman(first, second, w)


def _between(name: str, keep: Callable[[pd.DataFrame, pd.Series], pd.DataFrame], cells: pd.DataFrame) -> pd.DataFrame:
    """A slice's cells at two of its values, where it has at least three."""
    return keep(cells, cells[name]) if cells[name].nunique() > 2 else cells.head(0)


def _u(sweep: SweepData, loss: str) -> tuple[list[tuple[Array, Array]], list[tuple[Array, Array]]]:
    """For each slice over the batch size, the losses at its lowest value and at the bottom, and at the bottom and the end.

    The bottom is where the mean loss of the other sizes with the same tokens is lowest, between the ends; the middle where
    there are none. The lowest of a slice's own losses is below the ends by chance.
    """
    slices = [cells.dropna(subset=[loss]).groupby("batch_size", as_index=False).first() for cells in
              sweep.over_seeds.slices("batch_size")]  # fmt: skip
    falling, rising = [], []
    for cells in slices:
        if len(cells) < 3:
            continue
        between = cells["batch_size"].iloc[1:-1]
        others = [
            other.assign(centred=other[loss] - other[loss].mean())
            for other in slices
            if other["tokens"].iloc[0] == cells["tokens"].iloc[0]
            and other["parameters"].iloc[0] != cells["parameters"].iloc[0]
        ]
        means = pd.concat(others).groupby("batch_size")["centred"].mean() if others else pd.Series(dtype=float)
        means = means[means.index.isin(between)]
        bottom = means.idxmin() if len(means) else between.iloc[len(between) // 2]
        low, deep, high = (
            float(cells[loss][cells["batch_size"] == at].iloc[0])
            for at in (cells["batch_size"].iloc[0], bottom, cells["batch_size"].iloc[-1])
        )
        falling.append((np.array([0.0, 1.0]), np.array([low, deep])))
        rising.append((np.array([0.0, 1.0]), np.array([deep, high])))
    return falling, rising


def _where_factor(cells: pd.DataFrame, of: Callable[[Any, float], Any], bound: float) -> pd.DataFrame:
    return cells[of(cells["learning_rate_factor"], bound)]


def _percentile_of_short_runs(cells: pd.DataFrame, column: str) -> Callable[[Array], Array]:
    by_size = cells.groupby("parameters")
    percentile = (by_size[column].rank() - 0.5) / by_size[column].transform("size")
    large = cells["batch_size"] > by_size["batch_size"].transform("median")
    short = (few_steps(cells) & large).to_numpy(float)
    return lambda w: (w * short) @ percentile.to_numpy(float) / (w * short).sum(axis=1)


def _within_size_spread(cells: pd.DataFrame, column: str) -> float:
    """Standard deviation of a column about the mean of its size."""
    if column not in cells or not len(cells):
        return 0.0
    centred = cells[column] - cells.groupby("parameters")[column].transform("mean")
    return float(centred.std())


def _mean(values: pd.Series) -> Callable[[Array], Array]:
    return lambda w: w @ values.to_numpy(float) / w.sum(axis=1)


def _deviation(values: pd.Series, weights: Array) -> Array:
    v = values.to_numpy(float)
    total = weights.sum(axis=1)
    mean = weights @ v / total
    return np.asarray(np.sqrt(np.maximum(weights @ v**2 / total - mean**2, 0)))


def _relative_range(values: pd.Series, weights: Array) -> Array:
    """Interquartile range over median, of each resample."""
    v = values.to_numpy(float)
    order = np.argsort(v)
    share = np.cumsum(weights[:, order], axis=1) / weights.sum(axis=1, keepdims=True)
    low, middle, high = (v[order][np.argmax(share >= q - 1e-12, axis=1)] for q in (0.25, 0.5, 0.75))
    return np.asarray((high - low) / np.abs(middle))
