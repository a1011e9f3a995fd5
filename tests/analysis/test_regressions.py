"""The regressions of the simulated sweep against scipy, pingouin, statsmodels and scikit-learn; and what has no value."""

import numpy as np
import pandas as pd
import pingouin
import pytest
import statsmodels.api as sm
from scipy import stats
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict

from raysweep.analysis import regressions, scaling_law
from raysweep.analysis import sweep_data as sweep
from raysweep.analysis.columns import BASE_RATE
from raysweep.analysis.sweep_data import SweepData

PAPER_CONTROLS = [
    "parameters", "tokens", "batch_size", "weight_decay", "learning_rate", "final_learning_rate_fraction",
]  # fmt: skip


@pytest.fixture(scope="module")
def table(tables_of_example: tuple[pd.DataFrame, pd.DataFrame]) -> pd.DataFrame:
    return tables_of_example[0].set_index(["task", "metric", "statistic"])


def replace(simulated: SweepData, cells: pd.DataFrame) -> SweepData:
    return sweep.from_tables("changed", cells.drop(columns=[BASE_RATE]), simulated.trajectories)


PAIRS = [
    ("in_distribution", "effective_rank_W"),
    ("quantized_in_distribution", "cosine_W"),
    ("finetune_starcoder_python", "effective_rank_H"),
    ("forgetting_open_web_math", "isotropy_symmetric_W"),
]


@pytest.mark.parametrize(("task", "metric"), PAIRS)
def test_values_agree_with_independent_packages(
    simulated: SweepData, table: pd.DataFrame, task: str, metric: str
) -> None:
    cells = simulated.cells
    loss, values = cells[simulated.tasks[task]], cells[metric]
    found = table.sort_index().loc[(task, metric)]["value"]
    assert found["raw_spearman"] == pytest.approx(stats.spearmanr(values, loss).statistic, abs=1e-10)
    features = sm.add_constant(np.log(cells[["parameters", "tokens"]]))
    residuals = sm.OLS(loss, features).fit().resid
    assert found["residual_spearman_linear"] == pytest.approx(stats.spearmanr(values, residuals).statistic, abs=1e-10)
    plain = sm.OLS(loss, sm.add_constant(cells[["parameters", "tokens"]].astype(float) / 1e9)).fit().resid
    assert found["residual_spearman_straight"] == pytest.approx(stats.spearmanr(values, plain).statistic, abs=1e-10)
    partial = pingouin.partial_corr(cells, metric, simulated.tasks[task], PAPER_CONTROLS, method="spearman")
    assert found["partial_spearman"] == pytest.approx(partial["r"].iloc[0], abs=1e-10)
    N, D = cells["parameters"].to_numpy(float), cells["tokens"].to_numpy(float)
    law, _ = scaling_law.fit(N, D, loss.to_numpy())
    left = stats.spearmanr(values, loss - law.predict(N, D)).statistic
    assert found["residual_spearman_chinchilla"] == pytest.approx(left, abs=1e-10)
    # Compute is 6 N D, so that its logarithm adds nothing to those of size and of tokens in whole steps.
    trained = cells["steps"] * cells["batch_size"] * cells["sequence_length"]
    baseline = np.log(pd.DataFrame({"size": cells["parameters"], "tokens": trained}))
    r2 = [
        r2_score(loss, cross_val_predict(LinearRegression(), f, loss, groups=cells["size"], cv=LeaveOneGroupOut()))
        for f in (baseline, baseline.assign(metric=values))
    ]
    assert found["predictive_r2_new_size"] == pytest.approx(r2[1] - r2[0], abs=1e-10)


def test_every_number_has_an_interval_around_it_and_an_n(simulated: SweepData, table: pd.DataFrame) -> None:
    assert (table["n"] == 108).all()
    assert (table["reason"] == "").all()
    assert (table["low"] < table["high"]).all()
    # Cross-validation pays for the metric's coefficient as well: what it gains may lie below what the metric adds.
    price = np.where(table.index.get_level_values(2) == "predictive_r2", 0.002, 0)
    inside = (table["low"] - price <= table["value"]) & (table["value"] <= table["high"])
    assert inside.mean() > 0.98  # A basic or BCa interval may miss its own estimate, rarely.
    tasks = set(simulated.tasks)
    assert set(table.index.get_level_values(0)) == tasks
    assert len(table) == len(tasks) * len(simulated.metrics) * len(regressions.STATISTICS)


def test_names_are_those_of_the_papers_tables(tables_of_example: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    paper = pd.read_csv(regressions.__file__.replace("regressions.py", "paper_tables.csv"))
    assert list(tables_of_example[0].columns[:8]) == [
        "task",
        "metric",
        "statistic",
        "value",
        "low",
        "high",
        "n",
        "reason",
    ]
    found = {tuple(row) for row in tables_of_example[0][["task", "metric", "statistic"]].itertuples(index=False)}
    for row in paper.to_dict("records"):
        for metric in sweep.PAPER_METRICS:
            assert (row["task"], metric, row["statistic"]) in found


def test_the_same_tables_every_time(simulated: SweepData) -> None:
    once, again = (regressions.of_task(simulated, "in_distribution", draws=50) for _ in range(2))
    pd.testing.assert_frame_equal(pd.DataFrame(once[0]), pd.DataFrame(again[0]))
    pd.testing.assert_frame_equal(pd.DataFrame(once[1]), pd.DataFrame(again[1]))


def rows_of(simulated: SweepData, cells: pd.DataFrame, task: str = "in_distribution") -> pd.DataFrame:
    rows, _ = regressions.of_task(replace(simulated, cells), task, draws=100)
    return pd.DataFrame(rows).set_index(["metric", "statistic"])


def test_a_constant_metric_has_a_reason_and_no_value(simulated: SweepData) -> None:
    rows = rows_of(simulated, simulated.cells.assign(cosine_W=0.1)).loc["cosine_W"]
    assert rows["value"].isna().all()
    assert set(rows["reason"]) == {"the metric is the same for all cells"}


def test_cells_without_the_metric_are_left_out_and_counted(simulated: SweepData) -> None:
    cells = simulated.cells.copy()
    cells.loc[:9, "cosine_H"] = np.nan
    rows = rows_of(simulated, cells)
    assert (rows.loc["cosine_H"]["n"] == 98).all()
    assert (rows.loc["cosine_W"]["n"] == 108).all()
    kept = cells[10:]
    expected = stats.spearmanr(kept["cosine_H"], kept["in_distribution_loss"]).statistic
    assert rows.loc[("cosine_H", "raw_spearman"), "value"] == pytest.approx(expected, abs=1e-10)


def test_too_few_cells_give_reasons_not_numbers(simulated: SweepData) -> None:
    rows = rows_of(simulated, simulated.cells.head(7))
    assert rows["value"].isna().all()
    assert set(rows["reason"]) == {"7 cells; at least 8 are needed"}
    rows = rows_of(simulated, simulated.cells.head(18)).loc["effective_rank_W"]
    assert rows.loc["raw_spearman", "reason"] == ""
    assert rows.loc["residual_spearman_chinchilla", "reason"] == (
        "the law needs 3 sizes and 3 token budgets, not 1 and 4"
    )
    assert rows.loc["predictive_r2", "reason"] == "18 configurations; at least 25 are needed for 5 folds"
    assert rows.loc["predictive_r2_new_size", "reason"] == "1 sizes; holding one out needs at least 3"
    assert rows[rows["value"].isna()]["reason"].ne("").all()


def test_a_metric_that_is_a_control_has_no_partial_correlation(simulated: SweepData) -> None:
    cells = simulated.cells.assign(copy_W=np.log(simulated.cells["batch_size"]))
    row = rows_of(simulated, cells).loc[("copy_W", "partial_spearman")]
    assert np.isnan(row["value"])
    assert row["reason"].startswith("the controls determine")


def test_seeds_of_one_configuration_stay_in_one_fold(simulated: SweepData) -> None:
    more = simulated.cells.assign(seed=simulated.cells["seed"] + 1)
    twice = replace(simulated, pd.concat([simulated.cells, more], ignore_index=True))
    assert (twice.configurations[:108] == twice.configurations[108:]).all()
    for fold in regressions.folds_of(twice.configurations, 3):
        assert (fold[:108] == fold[108:]).all()
        assert set(fold) == set(range(5))


def test_what_the_next_study_adds_is_picked_up_by_name(simulated: SweepData) -> None:
    rng = np.random.default_rng(0)
    cells = simulated.cells.assign(
        hellaswag_accuracy=rng.random(108), stable_rank_W=rng.random(108), dropout=np.tile([0.0, 0.1], 54),
        block=np.repeat(["sequential", "parallel"], 54),
    ).drop(columns=[BASE_RATE])  # fmt: skip
    study = sweep.from_tables("next", cells, simulated.trajectories, settings=(*simulated.settings, "dropout", "block"))
    assert study.tasks["hellaswag_accuracy"] == "hellaswag_accuracy"
    assert "stable_rank_W" in study.metrics
    assert {"dropout", "block_sequential"} <= set(study.controls)
    rows, _ = regressions.of_task(study, "hellaswag_accuracy", draws=50)
    assert {row["metric"] for row in rows} == set(study.metrics)


def test_columns_that_are_no_metric_of_the_cell_are_left_out(simulated: SweepData) -> None:
    cells = simulated.cells.assign(finetune_python_cosine_W=0.3)
    changed = replace(simulated, cells)
    assert "finetune_python_cosine_W" not in changed.metrics
    assert "finetune_python_loss_change" not in changed.tasks.values()
    assert "train_loss" not in changed.tasks.values()


def test_rounding_a_budget_to_steps_is_no_feature(simulated: SweepData) -> None:
    """The FLOPs of the tokens in whole steps are 1e-5 off 6 N D of the budget; no prediction may use that."""
    exact = 6.0 * simulated.cells["parameters"] * simulated.cells["tokens"]
    features = np.log(simulated.cells[["parameters", "tokens"]])
    loss = simulated.cells["in_distribution_loss"].to_numpy()
    present = np.ones(108, dtype=bool)
    baseline = regressions.Outcome(simulated, loss, present, 20, "in_distribution_loss", {}).baseline
    assert (simulated.cells["flops"] / exact - 1).abs().max() > 1e-5
    fold = regressions.folds_of(np.arange(108), 1)[0]
    by_three = regressions.out_of_fold_r2(baseline, loss, fold)
    assert by_three == pytest.approx(regressions.out_of_fold_r2(features.to_numpy(), loss, fold), abs=1e-4)


def test_one_cell_or_one_configuration_has_reasons(simulated: SweepData) -> None:
    assert set(rows_of(simulated, simulated.cells.head(1))["reason"]) == {"1 cells; at least 8 are needed"}
    seeds = pd.concat([simulated.cells.head(1).assign(seed=s) for s in range(10)], ignore_index=True)
    rng = np.random.default_rng(0)
    seeds = seeds.assign(in_distribution_loss=3 + rng.random(10), effective_rank_W=rng.random(10))
    rows = rows_of(simulated, seeds).loc["effective_rank_W"]
    assert rows["value"].isna().all()
    assert set(rows["reason"]) == {"1 configurations; at least 8 are needed"}


def test_an_infinite_loss_counts_as_not_measured(simulated: SweepData) -> None:
    cells = simulated.cells.copy()
    cells.loc[0, "in_distribution_loss"] = np.inf
    assert (rows_of(simulated, cells)["n"] == 107).all()


def test_no_law_of_an_accuracy_or_of_a_constant_loss(simulated: SweepData) -> None:
    cells = simulated.cells.assign(arc_accuracy=np.linspace(0, 1, 108), flat_loss=3.0)
    changed = replace(simulated, cells)
    for task, reason in (("arc_accuracy", "the law is one of losses"), ("flat", "the law needs losses above zero")):
        rows, laws = regressions.of_task(changed, task, draws=20)
        assert all(row["reason"].startswith(reason) for row in laws)
        assert all(row["reason"] for row in rows if np.isnan(row["value"]))


def test_a_metric_does_not_hide_another_that_ends_like_it(simulated: SweepData) -> None:
    assert "spectral_norm_W" in replace(simulated, simulated.cells.assign(norm_W=np.arange(108.0))).metrics


def test_diverged_cells_are_counted_and_left_out(simulated: SweepData) -> None:
    cells = simulated.cells.drop(columns=[BASE_RATE])
    cells.loc[3, "status"] = "diverged"
    found = sweep.from_tables("diverged", cells, simulated.trajectories)
    assert found.diverged == (cells.loc[3, "id"],)
    assert len(found.cells) == 107
    assert found.planned == 108
