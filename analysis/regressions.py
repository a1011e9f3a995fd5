"""Every task x metric x statistic of a sweep, each with a bootstrap 95% interval and the number of cells it used.

The statistics are those of the paper's appendix A.3, under the names of `paper_tables.csv`:

- `raw_spearman`: of metric and loss.
- `residual_spearman_linear`: of the metric and what is left of the loss after a regression on log N and log D.
- `residual_spearman_straight`: the same after a regression on N and D themselves; which of the two the paper means is open.
- `residual_spearman_chinchilla`: the same after E + A / N^alpha + B / D^beta.
- `partial_spearman`: of metric and loss given size, tokens, batch size, weight decay, learning rate, final learning rate
  and every other setting that varies (`SweepData.controls`).
- `predictive_r2`: what the metric adds to the R² of predictions from log N, log C and log D, in 5-fold cross-validation
  repeated over 5 partitions. Configurations stay whole: seeds of one are in one fold.
- `predictive_r2_new_size`: the same with each size held out in turn.

Intervals are over configurations: of correlations the BCa bootstrap's, of `predictive_r2` the jackknife's of the semipartial
correlation, of `predictive_r2_new_size` the basic bootstrap's (`statistics` says why). Cross-validation pays for the
metric's coefficient as well, so that a `predictive_r2` may lie a little below its interval. `baseline` is the R² that it is
added to.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from joblib import Parallel, delayed
from sklearn import config_context
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from raysweep.analysis import scaling_law, statistics
from raysweep.analysis.sweep_data import SweepData

Array = npt.NDArray[np.float64]

STATISTIC_WORDS = {
    "raw_spearman": "Raw Spearman",
    "residual_spearman_linear": "Residual Spearman (linear in logs)",
    "residual_spearman_straight": "Residual Spearman (linear in N, D)",
    "residual_spearman_chinchilla": "Residual Spearman (Chinchilla)",
    "partial_spearman": "Partial Spearman",
    "predictive_r2": "Predictive R²",
    "predictive_r2_new_size": "Predictive R² (new size)",
}
STATISTICS = tuple(STATISTIC_WORDS)
# What a statistic of these is held against: size, compute and tokens.
_OF_SIZE = set(STATISTICS) - {"raw_spearman", "partial_spearman"}
COLUMNS = ("task", "metric", "statistic", "value", "low", "high", "n", "reason", "column", "baseline")
LAW_COLUMNS = ("task", "parameter", "value", "low", "high", "n", "reason")
DRAWS = 2000
SEED = 0
_REPEATS = 5
_FEWEST = 8

FEWEST_FOR_FOLDS = 5 * 5
"""Configurations from which what a metric adds to predictions is cross-validated."""
"""Fewest cells for a statistic; one that fits parameters needs this many more than the number of parameters."""


def regressions(
    sweep: SweepData, draws: int = DRAWS, jobs: int = -1, step: Callable[[int, int], None] = lambda done, of: None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The regressions, with the columns `COLUMNS`, and the scaling law of each task, a row per parameter.

    An empty value has its reason beside it. `column` is the loss's column in `raysweep results`. `step` is told how many
    tasks are done.
    """
    tasks = list(sweep.tasks)
    step(0, len(tasks))
    rows: list[dict[str, Any]] = []
    laws: list[dict[str, Any]] = []
    pool = Parallel(n_jobs=jobs, return_as="generator")
    for done, (of_metrics, of_law) in enumerate(pool(delayed(of_task)(sweep, task, draws) for task in tasks), 1):
        rows += of_metrics
        laws += of_law
        step(done, len(tasks))
    return pd.DataFrame(rows, columns=COLUMNS), pd.DataFrame(laws, columns=LAW_COLUMNS)


def of_task(sweep: SweepData, task: str, draws: int = DRAWS) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of one task: its regressions and its scaling law."""
    column = sweep.tasks[task]
    loss = sweep.cells[column].to_numpy(float)
    metrics = {name: sweep.cells[name].to_numpy(float) for name in sweep.metrics}
    present = {name: statistics.finite(loss, values) for name, values in metrics.items()}
    # Metrics that the same cells have share everything but themselves.
    outcomes = {
        cells.tobytes(): Outcome(
            sweep, loss, cells, draws, column, {m: metrics[m][cells] for m in metrics if (present[m] == cells).all()}
        )
        for cells in [*present.values(), statistics.finite(loss)]
    }
    rows = [
        {"task": task, "metric": m, "statistic": s, **outcomes[present[m].tobytes()].answer(s, m), "column": column}
        for m in metrics
        for s in STATISTICS
    ]
    return rows, outcomes[statistics.finite(loss).tobytes()].law_rows(task)


def of_metric(sweep: SweepData, column: str, metric: str, draws: int = DRAWS) -> Outcome:
    """A loss's column with one metric, whether or not the regressions have it, over the cells that have both."""
    loss, values = (sweep.cells[name].to_numpy(float) for name in (column, metric))
    present = statistics.finite(loss, values)
    return Outcome(sweep, loss, present, draws, column, {metric: values[present]})


@dataclass(frozen=True)
class _Missing:
    """Why a statistic has no value."""

    reason: str


class Outcome:
    """One task's loss and the metrics over the cells that have them, with all that their statistics share."""

    def __init__(
        self,
        sweep: SweepData,
        loss: Array,
        present: npt.NDArray[np.bool_],
        draws: int,
        column: str,
        metrics: dict[str, Array],
    ) -> None:
        self.metrics = metrics
        cells = sweep.cells[present]
        self.loss = loss[present]
        self.n = int(present.sum())
        self.draws = draws
        # Tokens in whole steps, as the FLOPs count them, and not as the budget asks for: for short runs with large batches
        # the rounding would be a feature of its own.
        trained = cells["steps"] * cells["batch_size"] * cells["sequence_length"]
        # Of models that others have trained, the number that they give.
        trained = trained.fillna(cells["tokens"])
        self.N, self.D = cells["parameters"].to_numpy(float), trained.to_numpy(float)
        with np.errstate(divide="ignore"):
            self.baseline = np.log(np.column_stack([self.N, cells["flops"].to_numpy(float), self.D]))
        self.unknown = int((~np.isfinite(self.baseline).all(axis=1)).sum())
        controls = sweep.controls[present]
        self.controls = controls.loc[:, controls.nunique() > 1].to_numpy(float)
        self.is_loss = column.endswith(("_loss", "_bits_per_byte"))
        self.groups = np.unique(sweep.configurations[present], return_inverse=True)[1]
        self.configurations = len(np.unique(self.groups))
        self._baselines: dict[bytes, float] = {}

    def drawn(self, loss: Array, metrics: dict[str, Array]) -> Outcome:
        """The same cells, and the same resamples of them, with another loss and other metrics: for simulations."""
        cached = {name for name, member in vars(type(self)).items() if isinstance(member, cached_property)} - {
            "_weights"
        }
        _ = self._weights
        other = copy(self)
        for name in cached:
            vars(other).pop(name, None)
        other.loss, other.metrics, other._baselines = loss, metrics, {}
        return other

    def answer(self, statistic: str, metric: str) -> dict[str, Any]:
        """value, low, high, n and reason of one statistic of one metric."""
        answer: dict[str, Any] = dict.fromkeys(("value", "low", "high", "baseline"), np.nan) | {
            "n": self.n,
            "reason": "",
        }
        if self.n < _FEWEST:
            return answer | {"reason": f"{self.n} cells; at least {_FEWEST} are needed"}
        if self.configurations < _FEWEST:
            return answer | {"reason": f"{self.configurations} configurations; at least {_FEWEST} are needed"}
        for name, values in (("metric", self.metrics[metric]), ("loss", self.loss)):
            if np.ptp(values) <= 1e-12 * np.abs(values).max():
                return answer | {"reason": f"the {name} is the same for all cells"}
        if self.unknown and statistic in _OF_SIZE:
            return answer | {"reason": self._not_known}
        statistic_value = getattr(self, f"_{statistic}")(metric)
        if isinstance(statistic_value, _Missing):
            return answer | {"reason": statistic_value.reason}
        value, low, high = statistic_value
        if not np.isfinite(value):
            return answer | {"reason": "the controls determine the metric or the loss: nothing is left to correlate"}
        if not np.isfinite(low):
            return answer | {"value": value, "reason": "no interval: too few resamples have a value"}
        answer |= {"value": value, "low": low, "high": high, "baseline": self._r2_without_metric(statistic)}
        if statistic == "residual_spearman_chinchilla" and self._law is not None and self._law[0].doubtful:
            answer["reason"] = f"of a law that is in doubt: {self._law[0].problem}"
        return answer

    @cached_property
    def _weights(self) -> tuple[Array, Array, Array]:
        """The sample, its resamples and its jackknife."""
        groups = self.groups
        return (
            statistics.sample(self.n),
            statistics.resamples(groups, self.draws, SEED),
            statistics.jackknife(groups),
        )

    def _interval(self, values: list[Array]) -> tuple[float, float, float]:
        value = float(values[0][0])
        return value, *statistics.bca_interval(value, values[1], values[2])

    def _raw_spearman(self, metric: str) -> Any:
        return self._interval([statistics.spearman(self.metrics[metric], self.loss, w) for w in self._weights])

    def _residual_spearman_linear(self, metric: str) -> Any:
        return self._of_residuals(metric, self._log_linear_residuals) if self.n >= _FEWEST + 2 else self._too_few

    def _residual_spearman_straight(self, metric: str) -> Any:
        return self._of_residuals(metric, self._straight_residuals) if self.n >= _FEWEST + 2 else self._too_few

    def _residual_spearman_chinchilla(self, metric: str) -> Any:
        return _Missing(self._no_law) if self._law is None else self._of_residuals(metric, self._law_residuals)

    def _of_residuals(self, metric: str, residuals: list[Array]) -> tuple[float, float, float]:
        values = self.metrics[metric]
        return self._interval(
            [statistics.spearman(values, r, w) for r, w in zip(residuals, self._weights, strict=True)]
        )

    @property
    def _not_known(self) -> str:
        return f"tokens, and so FLOP, are not known of {self.unknown} of {self.n} models"

    @property
    def _too_few(self) -> _Missing:
        return _Missing(f"{self.n} cells; at least {_FEWEST + 2} are needed")

    @cached_property
    def _log_linear_residuals(self) -> list[Array]:
        return self._residuals(np.log(np.column_stack([self.N, self.D])))

    @cached_property
    def _straight_residuals(self) -> list[Array]:
        return self._residuals(np.column_stack([self.N, self.D]))

    def _residuals(self, features: Array) -> list[Array]:
        return [statistics.linear_residuals(self.loss, features, w) for w in self._weights]

    @property
    def _no_law(self) -> str:
        """Why there is no scaling law of this task, or nothing."""
        if not self.is_loss:
            return "the law is one of losses"
        if self.n and (self.loss.min() <= 0 or np.ptp(self.loss) == 0):
            return "the law needs losses above zero that differ"
        if self.unknown:
            return self._not_known
        return scaling_law.enough(self.N, self.D)

    @cached_property
    def _law(self) -> tuple[scaling_law.Law, list[scaling_law.Fits]] | None:
        if self._no_law:
            return None
        law, best = scaling_law.fit(self.N, self.D, self.loss)
        _, resampled, left_out = self._weights
        return law, [best, *(scaling_law.refit(best, self.N, self.D, self.loss, w) for w in (resampled, left_out))]

    @cached_property
    def _law_residuals(self) -> list[Array]:
        assert self._law is not None
        return [self.loss - np.exp(fits.log_predictions(self.N, self.D)) for fits in self._law[1]]

    def _partial_spearman(self, metric: str) -> Any:
        fewest = _FEWEST + self.controls.shape[1]
        if self.n < fewest:
            return _Missing(f"{self.n} cells; at least {fewest} are needed for {self.controls.shape[1]} controls")
        return self._interval(
            [statistics.partial_spearman(self.metrics[metric], self.loss, self.controls, w) for w in self._weights]
        )

    def _predictive_r2(self, metric: str) -> Any:
        if self.configurations < FEWEST_FOR_FOLDS:
            return _Missing(f"{self.configurations} configurations; at least {FEWEST_FOR_FOLDS} are needed for 5 folds")
        value = float(np.mean([self._added(metric, fold) for fold in self._partitions]))
        low, high = statistics.added_r2_interval(self.baseline, self.metrics[metric], self.loss, self.groups)
        return (value, low, high) if np.isfinite(low) else _Missing("size, compute and tokens determine the metric")

    @cached_property
    def _partitions(self) -> list[npt.NDArray[np.int64]]:
        return folds_of(self.groups, _REPEATS)

    @cached_property
    def _sizes(self) -> npt.NDArray[np.int64]:
        """(n,) the number of each cell's size."""
        return np.asarray(np.unique(self.N, return_inverse=True)[1])

    def _predictive_r2_new_size(self, metric: str) -> Any:
        sizes = self._sizes.max() + 1
        if sizes < 3:
            return _Missing(f"{sizes} sizes; holding one out needs at least 3")
        left = self.n - int(np.bincount(self._sizes).max())
        fewest = _FEWEST + self.baseline.shape[1] + 1
        if left < fewest:
            return _Missing(f"{left} cells where the largest size is held out; at least {fewest} are needed")
        value = self._added(metric, self._sizes)
        return value, *statistics.basic_interval(value, self._draws_of_new_size[metric])

    @cached_property
    def _draws_of_new_size(self) -> dict[str, Array]:
        metrics = np.column_stack(list(self.metrics.values()))
        draws = statistics.added_r2(self.baseline, metrics, self.loss, self._sizes, self._weights[1])
        return dict(zip(self.metrics, draws.T, strict=True))

    def _added(self, metric: str, fold: npt.NDArray[np.int64]) -> float:
        features = np.column_stack([self.baseline, self.metrics[metric]])
        return out_of_fold_r2(features, self.loss, fold) - self._baseline_r2(fold)

    def _r2_without_metric(self, statistic: str) -> float:
        """R² of the predictions that a metric's are compared with; NaN for statistics that predict nothing."""
        folds = {"predictive_r2": lambda: self._partitions, "predictive_r2_new_size": lambda: [self._sizes]}
        return (
            float(np.mean([self._baseline_r2(fold) for fold in folds[statistic]()])) if statistic in folds else np.nan
        )

    def _baseline_r2(self, fold: npt.NDArray[np.int64]) -> float:
        key = fold.tobytes()
        if key not in self._baselines:
            self._baselines[key] = out_of_fold_r2(self.baseline, self.loss, fold)
        return self._baselines[key]

    def law_rows(self, task: str) -> list[dict[str, Any]]:
        """One row per parameter of the scaling law, its R² and how many of its starts agree."""
        rows: list[dict[str, Any]] = [
            {"task": task, "parameter": p, "value": np.nan, "low": np.nan, "high": np.nan, "n": self.n, "reason": ""}
            for p in (*scaling_law.NAMES, "r2", "agreement_of_starts")
        ]
        if self._law is None:
            return [row | {"reason": self._no_law} for row in rows]
        law, (_, resampled, _) = self._law
        predicted = np.exp(resampled.log_predictions(self.N, self.D))
        weights = self._weights[1]
        mean = (weights @ self.loss / weights.sum(axis=1))[:, None]
        r2 = 1 - (weights * (self.loss - predicted) ** 2).sum(axis=1) / (weights * (self.loss - mean) ** 2).sum(axis=1)
        values = [law.E, law.A, law.B, law.alpha, law.beta, law.r2, law.agreement]
        for row, value, draws in zip(rows, values, [*resampled.parameters().T, r2, None], strict=True):
            row |= {"value": value, "reason": law.problem}
            if draws is not None:
                row["low"], row["high"] = statistics.percentile_interval(draws)
        return rows


def folds_of(groups: npt.NDArray[np.int64], repeats: int) -> list[npt.NDArray[np.int64]]:
    """The fold, 0 to 4, of each cell in `repeats` random partitions that keep groups whole."""
    partitions = []
    for repeat in range(repeats):
        fold = np.zeros(len(groups), dtype=np.int64)
        splits = GroupKFold(5, shuffle=True, random_state=repeat).split(groups, groups=groups)
        for k, (_, held_out) in enumerate(splits):
            fold[held_out] = k
        partitions.append(fold)
    return partitions


def out_of_fold_r2(features: Array, y: Array, fold: npt.NDArray[np.int64]) -> float:
    """R² of all out-of-fold predictions of a scikit-learn pipeline that scales and regresses inside the folds."""
    pipeline = make_pipeline(StandardScaler(), LinearRegression())
    predicted = np.empty_like(y)
    # Thousands of small fits: most of their time would go into checking their input again.
    with config_context(assume_finite=True, skip_parameter_validation=True):
        for k in np.unique(fold):
            held_out = fold == k
            predicted[held_out] = pipeline.fit(features[~held_out], y[~held_out]).predict(features[held_out])
    return float(r2_score(y, predicted))
