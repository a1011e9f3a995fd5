"""Each statistic against scipy, scikit-learn, pingouin or statsmodels, on samples and on resamples as repeated rows."""

import numpy as np
import pandas as pd
import pingouin
import pytest
import statsmodels.api as sm
from scipy import stats
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from raysweep.analysis import statistics

N = 40


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def correlated(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A metric, a loss and four controls, with ties in the controls as a grid has them."""
    controls = np.column_stack([rng.integers(k, size=N).astype(float) for k in (6, 5, 3, 3)])
    metric = controls @ [0.5, 0.2, 0.0, 0.4] + rng.standard_normal(N)
    loss = controls @ [-1.0, 0.3, 0.2, 0.0] + 0.5 * metric + rng.standard_normal(N)
    return metric, loss, controls


def spelled_out(weights: np.ndarray) -> np.ndarray:
    """The indices of a resample, each as often as its weight says."""
    return np.repeat(np.arange(N), weights.astype(int))


def test_ranks_are_those_of_scipy_in_the_sample_and_in_resamples(rng: np.random.Generator) -> None:
    values = rng.integers(6, size=N).astype(float)
    weights = statistics.resamples(np.arange(N), 20, seed=1)
    for ranked in (statistics.ranks(values, weights), statistics.ranks(np.tile(values, (20, 1)), weights)):
        for row, w in zip(ranked, weights, strict=True):
            rows = spelled_out(w)
            np.testing.assert_allclose(row[rows], stats.rankdata(values[rows]), atol=1e-12)


def test_spearman_is_scipys(rng: np.random.Generator) -> None:
    metric, loss, controls = correlated(rng)
    for x in (metric, controls[:, 2]):
        ours = statistics.spearman(x, loss, statistics.sample(N))[0]
        assert ours == pytest.approx(stats.spearmanr(x, loss).statistic, abs=1e-10)
    weights = statistics.resamples(np.arange(N), 10, seed=2)
    for value, w in zip(statistics.spearman(metric, loss, weights), weights, strict=True):
        rows = spelled_out(w)
        assert value == pytest.approx(stats.spearmanr(metric[rows], loss[rows]).statistic, abs=1e-10)


def test_partial_spearman_is_pingouins(rng: np.random.Generator) -> None:
    metric, loss, controls = correlated(rng)
    weights = np.vstack([statistics.sample(N), statistics.resamples(np.arange(N), 5, seed=3)])
    for value, w in zip(statistics.partial_spearman(metric, loss, controls, weights), weights, strict=True):
        rows = spelled_out(w)
        frame = pd.DataFrame(np.column_stack([metric, loss, controls])[rows], columns=["x", "y", *"abcd"])
        theirs = pingouin.partial_corr(frame, "x", "y", list("abcd"), method="spearman")["r"].iloc[0]
        assert value == pytest.approx(theirs, abs=1e-10)


def test_partial_spearman_does_not_mind_a_control_twice(rng: np.random.Generator) -> None:
    metric, loss, controls = correlated(rng)
    once = statistics.partial_spearman(metric, loss, controls, statistics.sample(N))
    twice = statistics.partial_spearman(metric, loss, np.column_stack([controls, controls]), statistics.sample(N))
    np.testing.assert_allclose(twice, once, atol=1e-9)


def test_partial_spearman_of_what_the_controls_determine_is_nothing(rng: np.random.Generator) -> None:
    _, loss, controls = correlated(rng)
    assert np.isnan(statistics.partial_spearman(controls[:, 0], loss, controls, statistics.sample(N)))[0]


def test_linear_residuals_are_those_of_statsmodels(rng: np.random.Generator) -> None:
    _, loss, controls = correlated(rng)
    weights = statistics.resamples(np.arange(N), 5, seed=4)
    for residuals, w in zip(statistics.linear_residuals(loss, controls, weights), weights, strict=True):
        rows = spelled_out(w)
        fitted = sm.OLS(loss[rows], sm.add_constant(controls[rows])).fit()
        np.testing.assert_allclose(residuals[rows], fitted.resid, atol=1e-10)


def test_a_squared_semipartial_correlation_is_the_r2_that_scikit_learn_adds(rng: np.random.Generator) -> None:
    metric, loss, controls = correlated(rng)
    weights = np.vstack([statistics.sample(N), statistics.resamples(np.arange(N), 10, seed=3)])
    ours = statistics.semipartial(controls, np.column_stack([metric, -metric]), loss, weights)
    for row, weight in zip(ours, weights, strict=True):
        kept = spelled_out(weight)

        def r2(features: np.ndarray, kept: np.ndarray = kept) -> float:
            return float(LinearRegression().fit(features[kept], loss[kept]).score(features[kept], loss[kept]))

        assert row[0] ** 2 == pytest.approx(r2(np.column_stack([controls, metric])) - r2(controls), abs=1e-10)
        assert row[1] == pytest.approx(-row[0])
    assert np.isnan(statistics.semipartial(controls, controls[:, :1] * 3 + 1, loss, weights)).all()


def test_the_interval_of_an_added_r2_is_the_jackknifes_of_its_root_by_hand(rng: np.random.Generator) -> None:
    """Of pairs that stay together, each left out in turn."""
    metric, loss, controls = correlated(rng)
    pairs = np.arange(N) // 2

    def root(kept: np.ndarray) -> float:
        both = np.column_stack([controls, metric])[kept]
        gained = [LinearRegression().fit(f, loss[kept]).score(f, loss[kept]) for f in (both, controls[kept])]
        sign = np.sign(LinearRegression().fit(both, loss[kept]).coef_[-1])
        return float(sign * np.sqrt(gained[0] - gained[1]))

    left_out = np.array([root(pairs != pair) for pair in range(N // 2)])
    error = np.sqrt((len(left_out) - 1) ** 2 / len(left_out)) * left_out.std(ddof=1)
    reach = stats.t.ppf(0.975, N // 2 - 4 - 2) * error
    value = abs(root(np.ones(N, dtype=bool)))
    low, high = statistics.added_r2_interval(controls, metric, loss, pairs)
    assert high == pytest.approx((value + reach) ** 2)
    assert low == pytest.approx(np.sign(value - reach) * (value - reach) ** 2)


def test_the_interval_of_an_added_r2_holds_the_truth_as_often_as_it_says() -> None:
    """At nothing and at a tenth of what the baseline leaves: of 400 at 95%, 93 to 97% are three standard errors."""
    n, sets = 100, 400
    for share in (0.0, 0.1):
        held = 0
        for seed in range(sets):
            rng = np.random.default_rng(seed)
            base, noise, own = rng.standard_normal((n, 3)), rng.standard_normal(n), rng.standard_normal(n)
            metric = np.sqrt(share) * noise + np.sqrt(1 - share) * own
            low, high = statistics.added_r2_interval(base, metric, base @ [1.0, 0.5, 0.5] + noise, np.arange(n))
            # The baseline explains 1.5 of a variance of 2.5.
            held += low <= share / 2.5 <= high
        assert 0.92 <= held / sets <= 0.98, (share, held)


def test_added_r2_is_that_of_scikit_learn_pipelines(rng: np.random.Generator) -> None:
    metric, loss, controls = correlated(rng)
    metrics = np.column_stack([metric, rng.standard_normal(N)])
    fold = rng.integers(5, size=N)
    weights = np.vstack([statistics.sample(N), statistics.resamples(np.arange(N), 4, seed=5)])
    ours = statistics.added_r2(controls, metrics, loss, fold, weights)

    def out_of_fold(features: np.ndarray, rows: np.ndarray) -> float:
        predicted = np.zeros(len(rows))
        for k in range(5):
            out = fold[rows] == k
            pipeline = make_pipeline(StandardScaler(), LinearRegression())
            pipeline.fit(features[rows][~out], loss[rows][~out])
            predicted[out] = pipeline.predict(features[rows][out])
        return r2_score(loss[rows], predicted)

    for row, w in zip(ours, weights, strict=True):
        rows = spelled_out(w)
        for m in range(2):
            both = np.column_stack([controls, metrics[:, m]])
            assert row[m] == pytest.approx(out_of_fold(both, rows) - out_of_fold(controls, rows), abs=1e-10)


def test_a_copy_of_the_baseline_adds_nothing(rng: np.random.Generator) -> None:
    _, loss, controls = correlated(rng)
    added = statistics.added_r2(controls, controls[:, :1] * 3 + 1, loss, np.arange(N) % 5, statistics.sample(N))
    assert added[0, 0] == 0


def test_resamples_draw_whole_configurations() -> None:
    groups = np.array([0, 0, 1, 2, 2, 2, 3])
    weights = statistics.resamples(groups, 200, seed=6)
    for group in range(4):
        assert (weights[:, groups == group] == weights[:, groups == group][:, :1]).all()
    counts = np.stack([weights[:, groups == g][:, 0] for g in range(4)], axis=1)
    assert (counts.sum(axis=1) == 4).all()
    assert counts.mean(axis=0) == pytest.approx(1.0, abs=0.2)
    assert (statistics.jackknife(groups) == (groups[None, :] != np.arange(4)[:, None])).all()


def test_bca_interval_is_scipys_for_the_same_draws(rng: np.random.Generator) -> None:
    metric, loss, _ = correlated(rng)
    theirs = stats.bootstrap(
        (metric, loss), lambda x, y: stats.pearsonr(x, y).statistic, paired=True, vectorized=False, n_resamples=999,
        method="BCa", rng=np.random.default_rng(0),
    )  # fmt: skip
    left_out = statistics.pearson(metric, loss, statistics.jackknife(np.arange(N)))
    low, high = statistics.bca_interval(stats.pearsonr(metric, loss).statistic, theirs.bootstrap_distribution, left_out)
    assert (low, high) == pytest.approx((theirs.confidence_interval.low, theirs.confidence_interval.high), abs=1e-10)


def test_basic_interval_mirrors_the_percentiles() -> None:
    draws = np.linspace(0, 1, 1001)
    assert statistics.percentile_interval(draws) == pytest.approx((0.025, 0.975))
    assert statistics.basic_interval(0.4, draws) == pytest.approx((0.8 - 0.975, 0.8 - 0.025))


def test_no_interval_where_a_tenth_of_the_draws_has_no_value() -> None:
    draws = np.full(100, 0.5)
    draws[:11] = np.nan
    assert np.isnan(statistics.percentile_interval(draws)).all()
    assert np.isnan(statistics.bca_interval(0.5, draws, draws)).all()
