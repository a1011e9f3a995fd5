"""The fifteen claims of the paper as a scorecard: each an effect with a 95% interval, and a verdict that follows from it.

A claim is one or more tests. A test asks that an effect is above or below a bound or within a margin of zero:

- *supported* where the whole interval is on the claimed side of the bound (inside the margin),
- *contradicted* where the whole interval is on the other side (outside the margin),
- *undecided* otherwise, and wherever there is no interval.

A claim is supported if all of its tests are, contradicted if one of them is, and undecided otherwise; beside it stands the
test that decided. No correction is made for the number of claims.

Effects of hyperparameters have exact permutation intervals (`trends`); everything else resamples configurations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from raysweep.analysis import statistics
from raysweep.analysis.regressions import DRAWS, SEED, STATISTIC_WORDS, folds_of
from raysweep.analysis.sweep import PAPER_METRICS, PAPER_TASKS, Sweep, column_of, outcome, words
from raysweep.analysis.trends import Effect, effect, of_lowest_and_middle, of_middle_and_highest, slopes, trend

Array = npt.NDArray[np.float64]

STATEMENTS = {
    1: "Higher effective rank goes with lower in-distribution loss over all models, but little remains with training "
    "choices held equal.",
    2: "The relation is not strict: models of one size and nearly equal loss differ widely in effective rank, and "
    "under-trained large-batch models have a high rank and a poor loss.",
    3: "Out-of-distribution loss is a near-linear function of in-distribution loss and tracks it better than it tracks "
    "effective rank.",
    4: "GPTQ hurts low-rank models more at the smallest sizes, most with low weight decay, and not so at the largest.",
    5: "Saturation is not caused by low effective rank alone: small-batch runs collapse in rank without a late rise in "
    "loss.",
    6: "Effective rank does not predict fine-tuning loss, and fine-tuning loss has no strong line with pretraining loss.",
    7: "In-distribution loss after fine-tuning hardly depends on the base model's rank, and rises less where the base "
    "model's loss is higher; low-weight-decay models forget least and are best after it, too.",
    8: "Larger batch: higher effective rank, lower cosine; loss is U-shaped in batch size.",
    9: "Stronger weight decay: higher effective rank, lower cosine, higher isotropy; small models are best with little, "
    "larger ones bear more.",
    10: "Learning rate: effective rank nearly flat; the prescribed rate gives the best loss.",
    11: "A higher final learning rate: higher effective rank, higher loss.",
    12: "More tokens at equal steps: higher effective rank, lower loss, lower cosine, higher isotropy.",
    13: "Effective rank and cosine of W: a moon-shaped, mostly falling relation; isotropy is concentrated and mainly "
    "sensitive to weight decay.",
    14: "H varies less than W: a higher effective rank with less spread across models.",
    15: "No metric adds predictive R² beyond size, compute and tokens, on any task.",
}

PLACES = {
    1: "Figure 2, Table 2",
    2: "Figure 2",
    3: "Figure 3, Table 3",
    4: "Figure 4, Table 4",
    5: "Figure 5",
    6: "Figure 6, Tables 6-7",
    7: "Figure 7, Tables 8-9",
    **{claim: f"Figure {claim}" for claim in range(8, 15)},
    15: "Tables 2-9",
}
"""Where the paper shows each claim; the statements are ours."""

COLUMNS = ("claim", "statement", "verdict", "effect", "value", "low", "high", "n", "rule", "reason")

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
WINDOWS = 20
"""Parts of the training over which the validation loss is averaged before its rise is taken."""
OVER_TRAINED = 200
"""Tokens for each parameter from which a run is long enough to saturate: ten times the compute-optimal (Hoffmann 2022)."""
COLLAPSE = 0.1
"""A difference in effective rank from which it counts as collapsed, a fraction of the width."""

FEWEST_SLOPES = 6
"""Comparisons of one hyperparameter from which their mean change is resampled."""

RANK, COSINE, ISOTROPY = "effective_rank_W", "cosine_W", "isotropy_W"


@dataclass(frozen=True)
class Finding:
    """One effect and what a claim says of it."""

    effect: str
    rule: str
    """`> x`, `< x` or `within ±x`."""
    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    reason: str = ""

    @property
    def verdict(self) -> str:
        """supported, contradicted or undecided, as the module says."""
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            return "undecided"
        sign, _, bound = self.rule.partition(" ")
        limit = float(bound.removeprefix("±"))
        if sign == "within":
            inside, outside = -limit < self.low and self.high < limit, self.low > limit or self.high < -limit
        elif sign == ">":
            inside, outside = self.low > limit, self.high < limit
        else:
            inside, outside = self.high < limit, self.low > limit
        return "supported" if inside else "contradicted" if outside else "undecided"


def claims(sweep: Sweep, regressions: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The scorecard, one row per claim with the columns `COLUMNS`, and every test behind it.

    `regressions` is the first table of `regressions.regressions`.
    """
    keys = ["task", "metric", "statistic"]
    evidence = _Evidence(sweep, regressions.set_index(keys) if len(regressions) else regressions)
    card, tests = [], []
    for number, statement in STATEMENTS.items():
        found = list(getattr(evidence, f"claim_{number}")())
        verdicts = [test.verdict for test in found]
        verdict = next((v for v in ("contradicted", "undecided") if v in verdicts), "supported")
        rows = [{"claim": number, "statement": statement, **vars(t), "verdict": t.verdict} for t in found]
        # Where no interval of a claim exists, the first test says why.
        card.append(rows[verdicts.index(verdict)])
        tests += rows
    return pd.DataFrame(card, columns=COLUMNS), pd.DataFrame(tests, columns=COLUMNS)


@dataclass(frozen=True)
class _Evidence:
    """The tests of each claim."""

    sweep: Sweep
    regressions: pd.DataFrame
    """By task, metric and statistic."""

    @property
    def cells(self) -> pd.DataFrame:
        return self.sweep.cells

    @property
    def loss(self) -> str:
        """Its column; empty where there is none."""
        return self.sweep.tasks.get(self.sweep.main_task, "")

    @property
    def loss_words(self) -> str:
        return outcome(self.sweep.main_task)

    def claim_1(self) -> Iterator[Finding]:
        yield self._regression(self.sweep.main_task, RANK, "raw_spearman", "< 0")
        yield self._regression(self.sweep.main_task, RANK, "partial_spearman", f"within ±{LITTLE}")

    def claim_2(self) -> Iterator[Finding]:
        yield self._resampled(
            "spread of effective rank among the tenth of same-size pairs closest in loss / among all pairs", "> 0.5",
            (RANK, self.loss), self._spread_at_equal_loss,
        )  # fmt: skip
        for column, what in ((RANK, "effective rank"), (self.loss, self.loss_words)):
            yield self._resampled(
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
        yield self._line(self.loss, out, "out-of-distribution loss", f"> {NEAR_LINEAR}")

        def closer(cells: pd.DataFrame) -> Callable[[Array], Array]:
            o, i, r = (cells[c].to_numpy(float) for c in (out, self.loss, RANK))
            return lambda w: np.abs(statistics.spearman(o, i, w)) - np.abs(statistics.spearman(o, r, w))

        yield self._resampled(
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

        yield self._resampled(
            "Spearman of effective rank and 4-bit GPTQ's rise in loss at the smallest size", "< 0", (RANK, change),
            at(sizes[0]) if sizes else None, fewest=8, only=sizes[:1],
        )  # fmt: skip
        if len(sizes) > 1:
            smallest, largest = at(sizes[0]), at(sizes[-1])
            yield self._resampled(
                "Spearman of effective rank and 4-bit GPTQ's rise, smallest size minus largest", "< 0", (RANK, change),
                lambda cells: lambda w: smallest(cells)(w) - largest(cells)(w), fewest=8, only=[sizes[0], sizes[-1]],
            )  # fmt: skip
        yield self._trend(
            "weight_decay", change, "4-bit GPTQ's rise in loss, smaller half of the sizes", "< 0",
            keep=self._smaller_half,
        )  # fmt: skip

    def _smaller_half(self, cells: pd.DataFrame) -> pd.DataFrame:
        sizes = np.sort(self.cells["parameters"].unique())
        return cells[cells["parameters"].isin(sizes[: (len(sizes) + 1) // 2])]

    def claim_5(self) -> Iterator[Finding]:
        # The claim is about sequential blocks: the models that saturate have parallel ones.
        chosen = self.cells["tokens"] >= OVER_TRAINED * self.cells["parameters"]
        if "block" in self.cells:
            chosen &= self.cells["block"] == "sequential"
        late = replace(self, sweep=self.sweep.of(chosen))
        runs = f"of runs of at least {OVER_TRAINED} tokens for each parameter"

        def extremes(cells: pd.DataFrame) -> pd.DataFrame:
            return cells[cells["batch_size"].isin([cells["batch_size"].min(), cells["batch_size"].max()])]

        yield late._trend("batch_size", RANK, f"effective rank {runs}", f"> {COLLAPSE}", keep=extremes)
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
        yield _of_mean(name, f"< {LATE_RISE}", means)

    def claim_6(self) -> Iterator[Finding]:
        tasks = [t for t in self.sweep.tasks if t.startswith("finetune_")]
        for task in tasks or ["finetune_starcoder_python"]:
            yield self._regression(task, RANK, "partial_spearman", f"within ±{LITTLE}")
            yield self._regression(task, RANK, "predictive_r2", f"< {ADDS_NOTHING}")
            column = column_of(task)
            yield self._line(self.loss, column, outcome(task), f"< {NO_LINE}")

    def claim_7(self) -> Iterator[Finding]:
        tasks = [t for t in self.sweep.tasks if t.startswith("forgetting_")]
        for task in tasks or ["forgetting_starcoder_python"]:
            yield self._regression(task, RANK, "partial_spearman", f"within ±{LITTLE}")
            change = f"{column_of(task)}_change"
            what = words(change)
            yield self._resampled(
                f"Spearman of the {what} and the base model's loss", "< 0", (change, self.loss),
                partial(_correlation, x=change, y=self.loss),
            )  # fmt: skip
            yield self._trend("weight_decay", change, what, "> 0")
            yield self._trend("weight_decay", column_of(task), outcome(task), "> 0")

    def claim_8(self) -> Iterator[Finding]:
        yield self._trend("batch_size", RANK, "effective rank", "> 0")
        yield self._trend("batch_size", COSINE, "cosine", "< 0")
        falling, rising = _u(self.sweep, self.loss) if self.loss else ([], [])
        for ends, pairs, rule in (
            ("lowest batch size to the bottom (where the other sizes have it)", falling, "< 0"),
            ("bottom to the highest batch size", rising, "> 0"),
        ):
            name = f"{self.loss_words}, from the {ends}"
            if pairs:
                yield _of_effect(name, rule, effect(pairs))
            else:
                yield Finding(name, rule, reason="no three cells differ in batch size with all else equal")

    def claim_9(self) -> Iterator[Finding]:
        yield self._trend("weight_decay", RANK, "effective rank", "> 0")
        yield self._trend("weight_decay", COSINE, "cosine", "< 0")
        yield self._trend("weight_decay", ISOTROPY, "isotropy", "> 0")
        name = f"change of weight decay's effect on {self.loss_words} per e-fold of size"
        sizes, found = slopes(self.sweep, "weight_decay", self.loss) if self.loss else (np.array([]), np.array([]))
        if len(np.unique(sizes)) < 3:
            yield Finding(name, "< 0", reason="weight decay was varied at fewer than 3 sizes")
        else:
            yield _of_effect(name, "< 0", effect([(sizes, found)]))
        yield self._trend(
            "weight_decay", self.loss, f"{self.loss_words}, smaller half of the sizes", "> 0", keep=self._smaller_half
        )

    def claim_10(self) -> Iterator[Finding]:
        margin = _within_size_spread(self.cells, RANK) / 2
        rule = f"within ±{margin:.3g}" if margin > 0 else "within ±0.01"
        for keep, ends in (
            (of_lowest_and_middle, "lowest to the middle"),
            (of_middle_and_highest, "middle to the highest"),
        ):
            yield self._trend(
                "learning_rate_factor", RANK, "effective rank (margin: half its spread within a size)", rule,
                keep=partial(_between, "learning_rate_factor", keep), ends=ends,
            )  # fmt: skip
        for side, of in (("lower", np.less_equal), ("higher", np.greater_equal)):
            found = self._trend(
                "learning_rate_factor", self.loss, f"{self.loss_words} at the prescribed rate minus at {side} ones",
                "< 0", lambda values: (values == 1).astype(float), partial(_where_factor, of=of, bound=1),
            )  # fmt: skip
            if found.reason and len(self.cells) and 1 not in self.cells.get("learning_rate_factor", []).to_numpy():
                most = self.cells["learning_rate_factor"].mode().iloc[0]
                found = replace(found, reason=f"no cell has the prescribed rate; most have {most:g} times it")
            yield found

    def claim_11(self) -> Iterator[Finding]:
        yield self._trend("final_learning_rate_fraction", RANK, "effective rank", "> 0")
        yield self._trend("final_learning_rate_fraction", self.loss, self.loss_words, "> 0")

    def claim_12(self) -> Iterator[Finding]:
        for column, what, rule in (
            (RANK, "effective rank", "> 0"), (self.loss, self.loss_words, "< 0"), (COSINE, "cosine", "< 0"),
            (ISOTROPY, "isotropy", "> 0"),
        ):  # fmt: skip
            yield self._trend("tokens", column, what, rule, equal_steps=True)

    def claim_13(self) -> Iterator[Finding]:
        def bent(cells: pd.DataFrame) -> Callable[[Array], Array]:
            rank, cosine = cells[RANK].to_numpy(float), cells[COSINE].to_numpy(float)
            square = ((rank - rank.mean()) ** 2)[:, None]
            partitions = folds_of(np.unique(self.sweep.configurations[cells.index], return_inverse=True)[1], 3)
            return lambda w: np.mean(
                [statistics.added_r2(rank[:, None], square, cosine, p, w)[:, 0] for p in partitions], axis=0
            )

        yield self._resampled(
            "Spearman of effective rank and cosine", "< 0", (RANK, COSINE), partial(_correlation, x=RANK, y=COSINE)
        )
        yield self._resampled(
            "R² that the square of the effective rank adds to a line, for cosine",
            "> 0",
            (RANK, COSINE),
            bent,
            basic=True,
        )
        yield self._resampled(
            "interquartile range / median, of isotropy minus of effective rank", "< 0", (RANK, ISOTROPY),
            lambda cells: lambda w: np.round(_relative_range(cells[ISOTROPY], w) - _relative_range(cells[RANK], w), 12),
        )  # fmt: skip
        yield self._isotropy_and_decay()

    def _isotropy_and_decay(self) -> Finding:
        name = "mean |change| of isotropy over the range of weight decay minus over any other hyperparameter's"
        found = {}
        for h in self.sweep.hyperparameters if ISOTROPY in self.cells else ():
            changes = np.abs(slopes(self.sweep, h, ISOTROPY, self.sweep.at_equal_steps(h))[1])
            # Resamples of fewer differ too little among each other for an interval.
            if len(changes) >= FEWEST_SLOPES:
                found[h] = changes
        decay = found.pop("weight_decay", np.array([]))
        if not len(decay) or not found:
            needed = f"weight decay and another hyperparameter are needed, with {FEWEST_SLOPES} comparisons of each"
            return Finding(name, "> 0", reason=needed)
        rng = np.random.default_rng(SEED)

        def means(changes: Array) -> Array:
            return np.asarray(changes[rng.integers(len(changes), size=(DRAWS, len(changes)))].mean(axis=1))

        draws = means(decay) - np.max([means(changes) for changes in found.values()], axis=0)
        value = float(decay.mean() - max(changes.mean() for changes in found.values()))
        return Finding(name, "> 0", value, *statistics.percentile_interval(draws), n=len(decay))

    def claim_14(self) -> Iterator[Finding]:
        pair = ("effective_rank_H", RANK)
        yield self._resampled(
            "mean effective rank of H minus of W", "> 0", pair, lambda cells: _mean(cells[pair[0]] - cells[pair[1]])
        )
        yield self._resampled(
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
            yield self._regression(task, metric, "predictive_r2", f"< {ADDS_NOTHING}")

    # The kinds of test.

    def _regression(self, task: str, metric: str, statistic: str, rule: str) -> Finding:
        name = f"{STATISTIC_WORDS[statistic]}, {words(metric)} and {outcome(task)}"
        if (task, metric, statistic) not in self.regressions.index:
            return Finding(name, rule, reason=f"no cell has both {words(metric)} and {outcome(task)}")
        row = self.regressions.loc[(task, metric, statistic)]
        return Finding(
            name, rule, float(row["value"]), float(row["low"]), float(row["high"]), int(row["n"]), row["reason"]
        )

    def _trend(
        self, hyperparameter: str, column: str, what: str, rule: str, contrast: Callable[[Array], Array] | None = None,
        keep: Callable[[pd.DataFrame], pd.DataFrame] = lambda cells: cells, equal_steps: bool = False,
        ends: str = "lowest to the highest",
    ) -> Finding:  # fmt: skip
        over = words(hyperparameter)
        name = f"{what}, from the {ends} {over}" if contrast is None else f"{what} ({over})"
        if column not in self.cells:
            return Finding(name, rule, reason=f"no cell has {words(column) or 'a loss'}")
        found = trend(self.sweep, hyperparameter, column, contrast, keep, equal_steps)
        if found is None:
            equal = "steps and all else" if equal_steps else "all else"
            return Finding(name, rule, reason=f"no two cells that this compares differ in {over} with {equal} equal")
        return _of_effect(name, rule, found)

    def _line(self, x: str, y: str, what: str, rule: str) -> Finding:
        return self._resampled(
            f"R² of a line from {self.loss_words} to {what}", rule, (x, y),
            lambda cells: lambda w: statistics.pearson(cells[x].to_numpy(float), cells[y].to_numpy(float), w) ** 2,
        )  # fmt: skip

    def _resampled(
        self, name: str, rule: str, columns: tuple[str, ...],
        statistic: Callable[[pd.DataFrame], Callable[[Array], Array]] | None,
        fewest: int = 8, basic: bool = False, only: list[float] | None = None,
    ) -> Finding:  # fmt: skip
        """A statistic of the cells that have `columns`, and its bootstrap interval over configurations."""
        cells = self.cells
        if missing := [c for c in columns if c not in cells]:
            return Finding(name, rule, reason=f"no cell has {words(missing[0]) or 'a loss'}")
        cells = cells.dropna(subset=list(columns))
        if only is not None:
            cells = cells[cells["parameters"].isin(only)]
        groups = self.sweep.configurations[cells.index]
        count = len(np.unique(groups))
        of_kind = [count] if only is None else [len(np.unique(groups[cells["parameters"] == size])) for size in only]
        if min(of_kind) < fewest or statistic is None:
            reason = f"{count} configurations; at least {fewest} of a kind are needed"
            return Finding(name, rule, n=len(cells), reason=reason)
        with np.errstate(invalid="ignore", divide="ignore"):
            of = statistic(cells)
            value = float(of(statistics.sample(len(cells)))[0])
            draws, left_out = of(statistics.resamples(groups, DRAWS, SEED)), of(statistics.jackknife(groups))
        if not math.isfinite(value):
            return Finding(
                name, rule, n=len(cells), reason="not defined: one side is constant, or no cell is of the kind"
            )
        interval = statistics.basic_interval(value, draws) if basic else statistics.bca_interval(value, draws, left_out)
        reason = "" if math.isfinite(interval[0]) else "no interval: too few resamples have a value"
        return Finding(name, rule, value, *interval, n=len(cells), reason=reason)


def _correlation(cells: pd.DataFrame, x: str, y: str) -> Callable[[Array], Array]:
    first, second = cells[x].to_numpy(float), cells[y].to_numpy(float)
    return lambda w: statistics.spearman(first, second, w)


def _between(name: str, keep: Callable[[pd.DataFrame, pd.Series], pd.DataFrame], cells: pd.DataFrame) -> pd.DataFrame:
    """A slice's cells at two of its values, where it has at least three."""
    return keep(cells, cells[name]) if cells[name].nunique() > 2 else cells.head(0)


def _u(sweep: Sweep, loss: str) -> tuple[list[tuple[Array, Array]], list[tuple[Array, Array]]]:
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


def late_rise(trajectories: pd.DataFrame) -> dict[str, float]:
    """Cell -> how far its validation loss ends above its lowest, as a fraction of the lowest.

    Over the means of each twentieth of the training: the lowest of many noisy readings is low by chance.
    """
    known = trajectories.dropna(subset=["validation_loss"])
    known = known[known["step"] > 0]
    share = known["step"] / known.groupby("cell")["step"].transform("max")
    part = np.ceil(share * WINDOWS - 1e-9).astype(int)
    means = known.groupby(["cell", part.rename("part")])["validation_loss"].mean().groupby("cell")
    return dict((means.last() / means.min() - 1).items())


def _of_mean(name: str, rule: str, values: Array) -> Finding:
    """A mean with Student's t interval."""
    if len(values) < 3:
        return Finding(name, rule, n=len(values), reason=f"{len(values)} configurations; at least 3 are needed")
    value, error = float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))
    reach = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return Finding(name, rule, value, value - reach, value + reach, n=len(values))


def _of_effect(name: str, rule: str, found: Effect) -> Finding:
    if not math.isfinite(found.low):
        reason = f"{found.slices} comparisons at equal settings allow too few permutations for a 95% interval"
        return Finding(name, rule, found.value, n=found.n, reason=reason)
    return Finding(name, rule, found.value, found.low, found.high, found.n)


def few_steps(cells: pd.DataFrame) -> pd.Series:
    """(n,) of each cell, whether it was trained for at most half the median steps of its size."""
    return cells["steps"] <= cells.groupby("parameters")["steps"].transform("median") / 2


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
