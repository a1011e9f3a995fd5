"""Hypotheses as data: an invented study of its own, what a file may say, and when it was declared."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from raysweep.analysis import claims, findings, hypothesis_statistics, hypothesis_tests, noise
from raysweep.analysis import sweep_data as sweep
from raysweep.analysis.columns import BASE_RATE
from raysweep.analysis.findings import Finding
from raysweep.analysis.findings import Tests as SweepTests
from raysweep.analysis.regressions import of_task
from raysweep.analysis.sweep_data import SweepData
from raysweep.errors import UserError
from raysweep.space import read as space
from raysweep.space.hypotheses import KINDS, Hypotheses, load_hypotheses, paper_hypotheses
from raysweep.space.hypotheses import Test as OneTest
from raysweep.store import Store, declarations

# A study of something else than the paper's: every kind of test once.
INVENTED = """
hypotheses:
  - id: width-helps
    says: Wider models are better, and their heads are not.
    where: our own figure 1
    tests:
      - {correlation: {of: parameters, with: loss}, expect: "< 0"}
      - {correlation: {of: spectral_norm_W, with: loss, given: size}, expect: within 0.4}
      - {correlation: {of: effective_rank_W, with: loss, given: settings}, expect: within 0.9}
      - {correlation: {of: effective_rank_W, with: loss, size: largest, minus_size: smallest}, expect: within 1.5}
      - {attenuation: {of: effective_rank_W, with: loss}, expect: "> -1"}
      - {closer: {of: loss, with: parameters, than: batch_size}, expect: "> -1"}
      - {line: {from: loss, to: out_of_distribution_loss}, expect: "> 0.5"}
      - {added_r2: {of: effective_rank_W, for: in_distribution_loss}, expect: "< 1"}
  - id: 2
    says: What moves what.
    tests:
      - {trend: {of: effective_rank_W, over: batch_size, from: lowest, to: middle}, expect: "> 0"}
      - {trend: {of: effective_rank_W, over: batch_size, from: middle, to: highest}, expect: "> 0"}
      - {at: {of: loss, over: learning_rate_factor, value: 1, than: lower}, expect: "< 0"}
      - {turn: {of: loss, over: batch_size, part: rise}, expect: "> -9"}
      - {trend_by_size: {of: loss, over: weight_decay}, expect: within 9}
      - {strongest: {of: isotropy_W, over: weight_decay}, expect: "> -9"}
      - {late_rise: {over: batch_size}, expect: "< 9"}
  - id: 4
    says: H and W.
    tests:
      - {spread: {of: effective_rank_H, minus: effective_rank_W}, expect: "< 9"}
      - {mean: {of: out_of_distribution_loss, minus: loss}, expect: "> -9"}
      - {curvature: {of: cosine_W, in: effective_rank_W}, expect: "> -9"}
  - id: 3
    says: How it spreads.
    for_each: forgetting_*_loss
    tests:
      - {spread_at_equal: {of: effective_rank_W, at: "{each}"}, called: "of {of}", expect: "> 0"}
      - {under_trained: {of: "{each}"}, expect: "> 0"}
      - {apart: {of: effective_rank_W, at: "{each}"}, expect: "> 0"}
      - {percentile: {of: "{each}", in: loss, end: highest}, needs: {fine_tuning_steps: 2}, expect: "> 0"}
"""


@pytest.fixture
def invented(tmp_path: Path) -> Hypotheses:
    (tmp_path / "own.hypotheses.yaml").write_text(INVENTED)
    return load_hypotheses(tmp_path / "own.hypotheses.yaml")


def test_a_study_of_its_own_is_judged_by_its_own_file(
    invented: Hypotheses, simulated: SweepData, tables_of_example: tuple[pd.DataFrame, pd.DataFrame]
) -> None:
    own = replace(simulated, hypotheses=invented)
    columns = ["effective_rank_W", "forgetting_python_loss", "forgetting_math_loss"]
    rows = [(column, 0.1, 0.05, 0.2, 18, 6, "") for column in columns]
    between_seeds = pd.DataFrame(rows, columns=noise.NOISE_COLUMNS)
    card, tests = claims.claims(own, tables_of_example[0], between_seeds)
    assert card["claim"].to_list() == ["width-helps", 2, 4, 3]
    assert card["place"].to_list() == ["our own figure 1", "", "", ""]
    # Of the last, both fine-tunings.
    assert tests["claim"].value_counts().to_dict() == {"width-helps": 8, 2: 7, 4: 3, 3: 8}
    used = {test.kind for hypothesis in invented.hypotheses for test in hypothesis.tests}
    # Of interventions the simulated sweep has none: test_moved_rank.py.
    assert used | {"intervention"} == set(KINDS) == set(hypothesis_tests._KINDS)
    assert tests[tests["reason"] != ""]["effect"].str.startswith("|raw| minus |partial|").all()
    assert np.isfinite(tests[["value", "low", "high"]].to_numpy(float)).all()
    raw = tests.iloc[0]
    expected = stats.spearmanr(simulated.cells["parameters"], simulated.cells["in_distribution_loss"]).statistic
    assert raw["value"] == pytest.approx(expected)


def of(found: SweepData, kind: str, expect: str = "> 0", **more: object) -> Finding:
    (finding,) = hypothesis_tests.findings(
        SweepTests(found, pd.DataFrame()), OneTest.model_validate({kind: more, "expect": expect})
    )
    return finding


def planted(simulated: SweepData, **columns: object) -> SweepData:
    return sweep.from_tables("x", simulated.cells.assign(**columns).drop(columns=[BASE_RATE]), simulated.trajectories)


def test_metrics_of_layers_are_tested_as_those_of_the_whole_model_are(simulated: SweepData) -> None:
    """The regressions leave them out: the same numbers under the name of a layer, and under one that is in them."""
    rng = np.random.default_rng(0)
    values = simulated.cells["in_distribution_loss"] ** 2 + 0.1 * rng.standard_normal(len(simulated.cells))
    of_layer = planted(simulated, effective_rank_blocks_0_mlp_up=values)
    whole = planted(simulated, another_W=values)
    assert "effective_rank_blocks_0_mlp_up" not in of_layer.metrics
    asked = {"for": ["in_distribution_loss", "finetune_python_loss"]}
    layer = list(
        hypothesis_tests.findings(
            SweepTests(of_layer, pd.DataFrame()),
            OneTest.model_validate({"added_r2": {"of": "effective_rank_blocks_0_mlp_up", **asked}, "expect": "< 0.05"}),
        )
    )
    rows = [row for task in ("in_distribution", "finetune_starcoder_python") for row in of_task(whole, task, 100)[0]]
    table = {row["task"]: row for row in rows if row["metric"] == "another_W" and row["statistic"] == "predictive_r2"}
    assert len(layer) == len(table) == 2
    expected = sorted(table.values(), key=lambda row: -row["high"])
    assert [(f.value, f.low, f.high, f.n) for f in layer] == [
        (row["value"], row["low"], row["high"], row["n"]) for row in expected
    ]
    assert layer[0].low > 0.05, "it does add to the prediction"
    correlation = {"of": "effective_rank_blocks_0_mlp_up", "with": "in_distribution_loss", "given": "line"}
    (given,) = hypothesis_tests.findings(
        SweepTests(of_layer, pd.DataFrame()), OneTest.model_validate({"correlation": correlation, "expect": "> 0"})
    )
    (row,) = [
        row for row in rows
        if (row["task"], row["metric"], row["statistic"]) == ("in_distribution", "another_W", "residual_spearman_linear")
    ]  # fmt: skip
    assert given.value == row["value"]


def test_a_correlation_within_sizes_against_scipy(simulated: SweepData) -> None:
    """Sizes of one length have ranks of one scale: the pooled one is the mean of scipy's."""
    found = of(simulated, "correlation", of="effective_rank_W", given="size", **{"with": "loss"})
    each = [
        stats.spearmanr(cells["effective_rank_W"], cells["in_distribution_loss"]).statistic
        for _, cells in simulated.cells.groupby("parameters")
    ]
    assert simulated.cells.groupby("parameters").size().nunique() == 1
    assert found.value == pytest.approx(np.mean(each))


def test_a_difference_between_sizes_is_none_within_them(simulated: SweepData) -> None:
    """The paradox, planted: the larger sizes are better and of higher rank, within each the higher rank is worse."""
    rng = np.random.default_rng(0)
    inside = pd.Series(rng.standard_normal(108))
    size = np.log(simulated.cells["parameters"])
    opposed = planted(simulated, effective_rank_W=size + 0.1 * inside, in_distribution_loss=-size + 0.1 * inside)
    assert of(opposed, "correlation", "< 0", of="effective_rank_W", **{"with": "loss"}).verdict == "supported"
    within = of(opposed, "correlation", "> 0.9", of="effective_rank_W", given="size", **{"with": "loss"})
    assert within.verdict == "supported"


def test_what_a_test_is_about_counts_for_every_kind_of_correlation(simulated: SweepData) -> None:
    """Related in the smaller half of the sizes, planted, and not in the other."""
    rng = np.random.default_rng(3)
    sizes = np.sort(simulated.cells["parameters"].unique())
    small = simulated.cells["parameters"].isin(sizes[:3])
    noise = pd.Series(rng.standard_normal(108))
    half = planted(
        simulated, effective_rank_W=noise.where(small, pd.Series(rng.standard_normal(108))), in_distribution_loss=-noise
    )
    table = pd.DataFrame(
        {"value": -0.5, "low": -0.6, "high": -0.4, "n": 108, "reason": ""},
        index=pd.MultiIndex.from_product(
            [["in_distribution"], ["effective_rank_W"], ["raw_spearman", "partial_spearman"]]
        ),
    )
    for given in ("nothing", "size", "settings"):
        spec = {"of": "effective_rank_W", "with": "in_distribution_loss", "given": given}
        for among, rule, verdict in (
            ("smaller half", "< -0.8", "supported"),
            ("larger half", "< -0.8", "contradicted"),
        ):
            test = OneTest.model_validate({"correlation": spec, "expect": rule, "among": {"sizes": among}})
            (found,) = hypothesis_tests.findings(SweepTests(half, table), test)
            assert (found.verdict, found.n) == (verdict, 54), (given, among, found)


def test_attenuation_is_what_the_settings_explain(simulated: SweepData) -> None:
    rng = np.random.default_rng(1)
    size, decay = np.log(simulated.cells["parameters"]), simulated.cells["weight_decay"].rank()
    explained = planted(
        simulated,
        effective_rank_W=size + 0.02 * decay + 0.05 * rng.standard_normal(108),
        in_distribution_loss=-size - 0.02 * decay + 0.05 * rng.standard_normal(108),
    )
    found = of(explained, "attenuation", "> 0.2", of="effective_rank_W", **{"with": "loss"})
    assert found.verdict == "supported"
    raw, partial = (float(x) for x in re.findall(r"-?[0-9.]+", found.reason))
    assert abs(raw) - abs(partial) == pytest.approx(found.value, abs=2e-3)


def test_a_line_within_sizes_is_not_made_by_the_sizes(simulated: SweepData) -> None:
    """Larger models are better in both, planted; within a size the two have nothing to do with each other."""
    rng = np.random.default_rng(4)
    size, first, second = np.log(simulated.cells["parameters"]), *rng.standard_normal((2, 108)) * 0.1
    both = planted(simulated, in_distribution_loss=size + first, finetune_python_loss=size + second)
    ends = {"from": "loss", "to": "finetune_python_loss"}
    assert of(both, "line", "> 0.9", **ends).verdict == "supported"
    within = of(both, "line", "< 0.5", given="size", **ends)
    centred = both.cells.groupby("parameters")[["in_distribution_loss", "finetune_python_loss"]].transform(
        lambda values: values - values.mean()
    )
    assert within.value == pytest.approx(centred.corr().iloc[0, 1] ** 2)
    assert within.verdict == "supported"


def test_a_spread_over_another_within_sizes(simulated: SweepData) -> None:
    """Half as wide about the means of the sizes, which are far apart."""
    inside = pd.Series(np.random.default_rng(5).standard_normal(108))
    inside -= inside.groupby(simulated.cells["parameters"]).transform("mean")
    size = 100 * np.log(simulated.cells["parameters"])
    halved = planted(simulated, forgetting_python_loss=size + inside / 2, in_distribution_loss=-size + inside)
    found = of(halved, "spread", "< 0.6", of="forgetting_python_loss", over="loss", given="size")
    assert (found.value, found.verdict) == (pytest.approx(0.5), "supported")


def test_where_the_ends_of_one_column_are_in_another(simulated: SweepData) -> None:
    """Of 18 cells of a size the two worst: planted as the two of the highest rank, at percentiles of 16.5 and 17.5 of 18."""
    rank = pd.Series(np.random.default_rng(6).permutation(108).astype(float))
    worst = planted(simulated, effective_rank_W=rank, in_distribution_loss=rank**3)
    found = of(worst, "percentile", of="effective_rank_W", end="highest", **{"in": "loss"})
    assert found.value == pytest.approx((16.5 + 17.5) / 2 / 18)
    best = of(worst, "percentile", of="effective_rank_W", end="lowest", **{"in": "loss"})
    assert best.value == pytest.approx((0.5 + 1.5) / 2 / 18)


def test_how_far_apart_models_of_one_loss_are_in_seeds(simulated: SweepData) -> None:
    """Two losses in each size, far apart, and ranks of 0, 1, 2 in turn: the mean distance of pairs, by hand."""
    order = simulated.cells.groupby("parameters").cumcount()
    placed = planted(simulated, effective_rank_W=(order % 3).astype(float), in_distribution_loss=10.0 * (order % 2))
    rows = [("effective_rank_W", 0.5, 0, 0, 50, 1, ""), ("in_distribution_loss", 0.1, 0, 0, 50, 1, "")]
    between_seeds = pd.DataFrame(rows, columns=noise.NOISE_COLUMNS)
    test = OneTest.model_validate({"apart": {"of": "effective_rank_W", "at": "loss"}, "expect": "> 1"})
    (found,) = hypothesis_tests.findings(SweepTests(placed, pd.DataFrame(), between_seeds), test)
    # Of nine cells of one loss each rank is there three times: 9 pairs are equal, 18 are 1 apart and 9 are 2 apart.
    # A deviation from 50 degrees of freedom is too small by 0.5% on average: c4 of 51 values is 0.995.
    assert found.value == pytest.approx((18 * 1 + 9 * 2) / 36 / 0.5, rel=0.02)
    assert found.low < found.value < found.high
    (none,) = hypothesis_tests.findings(SweepTests(placed, pd.DataFrame()), test)
    assert none.reason == "fewer than three seeds of a configuration: their noise is not known"
    between_seeds.loc[0, "standard_deviation"] = 0.0
    (equal,) = hypothesis_tests.findings(SweepTests(placed, pd.DataFrame(), between_seeds), test)
    assert equal.reason == "seeds of a configuration do not differ in it: there is no noise"
    assert equal.verdict == "undecided"


def test_the_mean_reciprocal_of_a_deviation_between_few_seeds() -> None:
    values = np.random.default_rng(9).standard_normal((200_000, 4))
    assert hypothesis_statistics.mean_reciprocal(3) == pytest.approx((1 / values.std(axis=1, ddof=1)).mean(), rel=0.02)


def test_the_strongest_for_each_factor_of_ten(simulated: SweepData) -> None:
    """1 for each factor of ten, of the rate's hundred and of the decay's fifty, planted."""
    cells = simulated.cells
    moved = planted(simulated, isotropy_W=np.log10(cells["learning_rate_factor"] * cells["weight_decay"]))
    over_range = of(moved, "strongest", of="isotropy_W", over="learning_rate_factor")
    per_decade = of(moved, "strongest", of="isotropy_W", over="learning_rate_factor", per="decade")
    assert over_range.value == pytest.approx(2 - np.log10(50))
    assert per_decade.value == pytest.approx(0, abs=1e-12)


def test_a_setting_that_is_no_number_has_no_at(simulated: SweepData) -> None:
    kinds = planted(simulated, block=np.where(simulated.cells["batch_size"] > 64, "parallel", "sequential"))
    found = of(kinds, "at", of="loss", over="block", value=1, than="lower")
    assert found.reason == "block is no number: it has parallel, sequential"
    assert found.verdict == "undecided"


def test_the_learning_rate_of_a_search_space_is_the_one_before_the_factor(simulated: SweepData) -> None:
    """A grid over it: the same cells, with their batch sizes as rates."""
    cells = simulated.cells
    rate = cells["batch_size"] * 1e-5
    rates = planted(
        simulated, **{BASE_RATE: rate, "learning_rate": rate * cells["learning_rate_factor"], "batch_size": 1}
    )
    for kind, more in (("trend", {}), ("trend_by_size", {}), ("turn", {"part": "rise"})):
        by_batch = of(simulated, kind, of="effective_rank_W", over="batch_size", **more)
        by_rate = of(rates, kind, of="effective_rank_W", over="learning_rate", **more)
        assert by_rate.value == pytest.approx(by_batch.value)
        assert by_rate.low == pytest.approx(by_batch.low)
    at = of(rates, "at", of="effective_rank_W", over="learning_rate", value=float(rate.max()), than="lower")
    assert np.isfinite(at.low)


def test_an_upside_down_u(simulated: SweepData) -> None:
    noise_of = 0.01 * np.random.default_rng(0).standard_normal(108)
    bent = planted(simulated, isotropy_W=1 - 0.1 * np.log2(simulated.cells["batch_size"] / 64) ** 2 + noise_of)
    spec = {"of": "isotropy_W", "over": "batch_size", "inverted": True}
    rise, fall = of(bent, "turn", part="rise", **spec), of(bent, "turn", "< 0", part="fall", **spec)
    assert (rise.verdict, fall.verdict) == ("supported", "supported")
    assert rise.value == pytest.approx(0.1, abs=0.02)
    assert fall.value == pytest.approx(-0.9, abs=0.02)
    assert rise.effect == "isotropy of W, from the lowest batch size to the top (where the other sizes have it)"
    assert fall.effect == "isotropy of W, from the top to the highest batch size"


def test_where_no_other_size_shows_the_turn_that_is_said(simulated: SweepData) -> None:
    """One size has other tokens than the others, or all have."""
    smallest = simulated.cells["parameters"].min()
    several = simulated.cells["parameters"].unique()
    alone = simulated.cells["tokens"] + (simulated.cells["parameters"] == smallest)
    each = simulated.cells["tokens"] + np.searchsorted(np.sort(several), simulated.cells["parameters"])
    for tokens, said in (
        (alone, "where the other sizes have it, and of 2 of 12 comparisons taken to be in the middle"),
        (each, "taken to be in the middle"),
    ):
        found = of(planted(simulated, tokens=tokens), "turn", of="in_distribution_loss", over="batch_size", part="fall")
        assert found.effect.endswith(f"to the bottom ({said})")


def test_what_a_test_needs_of_a_sweep(simulated: SweepData) -> None:
    spec = {"of": "forgetting_python_loss", "with": "loss"}
    few = replace(simulated, fine_tuning_steps={"finetune_python": 32, "finetune_math": 500})
    # 0.55% of the base run at 4M, 1.5% at 75M; more where steps are fewer.
    decay = "weight decay acts over 1.3% of the median run; at most 0.5% is needed"
    for needs, column, reason in (
        ({"fine_tuning_steps": 200}, "forgetting_python_loss", "32 steps of finetune_python; at least 200 are needed"),
        ({"fine_tuning_steps": 200}, "forgetting_math_loss", ""),
        ({"fine_tuning_steps": 200}, "effective_rank_W", ""),
        ({"decay_within": 0.15}, "effective_rank_W", ""),
        # 1 / (1.1e-2 x 0.1 x 122,070) of the base run at 8M and 0.7% are the paper's middle.
        ({"decay_within": 0.005}, "effective_rank_W", decay),
    ):
        test = OneTest.model_validate({"correlation": spec | {"of": column}, "needs": needs, "expect": "< 9"})
        (found,) = hypothesis_tests.findings(SweepTests(few, pd.DataFrame()), test)
        assert found.reason == reason, (needs, column)
        assert (found.verdict == "undecided") == bool(reason)
        assert found.effect.startswith("Spearman of ")
    # Of the search space itself: 104,857,600 tokens in batches of 32 sequences of 2,048.
    assert simulated.fine_tuning_steps == {"finetune_python": 1600, "finetune_math": 1600}


def test_a_hypothesis_is_contradicted_after_correction_for_its_tests(simulated: SweepData, tmp_path: Path) -> None:
    """The same test against it, alone and among twenty others; p is about 0.01."""
    rng = np.random.default_rng(8)
    x, y = rng.standard_normal((2, 108))
    y += 0.23 * x - x * (x @ y) / (x @ x)
    weak = planted(simulated, effective_rank_W=x, cosine_W=y)
    test = '      - {correlation: {of: effective_rank_W, with: cosine_W}, expect: "< 0"}\n'
    passing = '      - {mean: {of: out_of_distribution_loss, minus: loss}, expect: "> -9"}\n'
    verdicts = {}
    for others in (0, 20):
        file = tmp_path / f"{others}.yaml"
        file.write_text("hypotheses:\n  - id: 1\n    says: x\n    tests:\n" + test + others * passing)
        card, tests = claims.claims(replace(weak, hypotheses=load_hypotheses(file)), pd.DataFrame())
        assert tests["verdict"][0] == "contradicted"
        assert tests["p_against"][0] == pytest.approx(min(1, (1 + others) * (1 - tests["p"][0])))
        verdicts[others] = (card["verdict"][0], card["reason"][0])
    assert verdicts[0] == ("contradicted", "")
    assert verdicts[20] == ("undecided", "contradicted alone, not among the 21 tests of the hypothesis")


def test_noise_is_rarely_called_a_relation(simulated: SweepData) -> None:
    """Of tests of no effect at most one in twenty may say that there is one: of 40 more than 7 have a chance of 0.2%."""
    rng = np.random.default_rng(2)
    false = {"size": 0, "nothing": 0}
    for _ in range(40):
        none = planted(simulated, effective_rank_W=pd.Series(rng.standard_normal(108)))
        for given in false:
            found = of(none, "correlation", of="effective_rank_W", given=given, **{"with": "spectral_norm_W"})
            false[given] += found.verdict != "undecided"
    assert max(false.values()) <= 7, false


def test_the_p_of_an_interval_and_the_rate_of_false_discoveries() -> None:
    # A normal effect of 2 standard errors above the bound: 2.3% of the other side.
    reach = stats.norm.ppf(0.975)
    found = Finding("x", "> 1", 3.0, 3 - reach, 3 + reach)
    assert found.p_value == pytest.approx(stats.norm.sf(2))
    assert Finding("x", "< 1", 3.0, 3 - reach, 3 + reach).p_value == pytest.approx(stats.norm.cdf(2))
    inside = Finding("x", "within \N{PLUS-MINUS SIGN}4", 3.0, 3 - reach, 3 + reach)
    assert inside.p_value == pytest.approx(stats.norm.sf(1))
    assert np.isnan(Finding("x", "> 1").p_value)
    # An added R² of 0.09 has a root of 0.3; the bound of 0.04 one of 0.2, two standard errors below.
    error = 0.05
    low, high = ((0.3 + sign * reach * error) ** 2 for sign in (-1, 1))
    assert Finding("x", "> 0.04", 0.08, low, high, squared=True).p_value == pytest.approx(stats.norm.sf(2))
    low, high = (sign * (0.05 + sign * reach * error) ** 2 for sign in (-1, 1))
    assert Finding("x", "> 0", 0.001, low, high, squared=True).p_value == pytest.approx(stats.norm.sf(1))
    p = pd.Series([0.01, 0.04, np.nan, 0.03])
    # By hand: p times 3 over its rank, made monotone from the largest down.
    assert findings.false_discovery_rates(p).to_list() == pytest.approx([0.03, 0.04, np.nan, 0.04], nan_ok=True)


@pytest.mark.parametrize(
    ("before", "after", "line", "said"),
    [
        ("of: parameters, with: loss", "of: parameters, whit: loss", 7, "unknown field; did you mean 'with'?"),
        (
            'expect: "< 0"',
            'expect: "<= 0"',
            7,
            "one of '> 0.1', '< 0.1', 'within 0.3' and 'within 0.5 spreads' is needed",
        ),
        ("trend: {", "trnd: {", 18, "unknown field; did you mean 'trend'?"),
        ("id: 2", "id: width-helps", 15, "the id 'width-helps' is there twice"),
        ("given: size}", "given: siez}", 8, "siez"),
        ("{mean: {", "{late_rise: {}, mean: {", 29, "one kind of test is needed, not mean, late_rise"),
        ("minus: effective_rank_W}", "minus: effective_rank_W, over: loss}", 28, "minus or over is needed"),
        ("size: largest, minus_size", "minus_size", 10, "minus_size needs another size to be taken from"),
        ("size: largest,", "size: largest, given: size,", 10, "size goes with given: nothing"),
        ("from: middle, to: highest}", "from: middle, to: middle}", 19, "from and to are both the middle"),
        ("to: middle}", "to: middle, only_ends: true}", 18, "only_ends goes from the lowest to the highest"),
        ('expect: "> 0.5"', "expect: within 1 spreads", 13, "line is no change of a column, and has no spreads"),
        ('expect: "< 1"', 'expect: "< 1", among: {block: parallel}', 14, "are over all cells: leave among out"),
        (
            "over: weight_decay}, expect: within 9",
            "over: weight_decays}, expect: within 9",
            22,
            'weight_decays": no setting of a cell; ',
        ),
        ('at: "{each}"', "at: loss", 31, "with for_each every test needs {each}"),
        ("for_each: forgetting_*_loss", "where: nowhere", 31, "{each} needs for_each"),
        ("hypotheses:", "hypothesis:", 2, "unknown key; allowed: hypotheses"),
        ("hypotheses:", "paper: all\nhypotheses:", 2, 'paper: "all" must be true or false'),
        ("hypotheses:", "paper: true\nhypotheses:", 16, "the id 2 is there twice"),
    ],
)
def test_a_mistake_names_file_and_line(before: str, after: str, line: int, said: str, tmp_path: Path) -> None:
    file = tmp_path / "own.hypotheses.yaml"
    assert before in INVENTED
    file.write_text(INVENTED.replace(before, after, 1))
    with pytest.raises(UserError) as refused:
        load_hypotheses(file)
    assert str(refused.value).startswith(f"{file}:{line}:"), refused.value
    assert said in str(refused.value)


SPACE = "name: x\nbase: {size: 4M, corpus: installed, tokens: 1e6, batch_size: 4, sequence_length: 128}\n"


def test_a_search_space_names_its_file(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(SPACE + "hypotheses: own.hypotheses.yaml\n")
    with pytest.raises(UserError, match=r"own\.hypotheses\.yaml: no such file of hypotheses"):
        space.load(tmp_path / "x.yaml")
    (tmp_path / "own.hypotheses.yaml").write_text(INVENTED)
    loaded = space.load(tmp_path / "x.yaml").hypotheses
    assert loaded is not None
    assert [hypothesis.id for hypothesis in loaded.hypotheses] == ["width-helps", 2, 4, 3]
    for name in ("../own.hypotheses.yaml", "[a]", "''", "hypotheses.json"):
        (tmp_path / "x.yaml").write_text(SPACE + f"hypotheses: {name}\n")
        with pytest.raises(
            UserError, match=r"x\.yaml:3: hypotheses: the name of a .yaml file beside this one is needed"
        ):
            space.load(tmp_path / "x.yaml")
    (tmp_path / "x.yaml").write_text(SPACE)
    assert space.load(tmp_path / "x.yaml").hypotheses is None


def test_words_do_not_change_what_was_declared_and_tests_do(invented: Hypotheses, tmp_path: Path) -> None:
    for change, same in ((("better", "worse"), True), (('expect: "< 0"', 'expect: "< 0.1"'), False)):
        (tmp_path / "b.yaml").write_text(INVENTED.replace(*change, 1))
        assert (load_hypotheses(tmp_path / "b.yaml").digest == invented.digest) is same


def test_the_papers_claims_may_come_first(tmp_path: Path) -> None:
    ours = "  - {id: ours, says: x, tests: [{line: {from: loss, to: validation_loss}, expect: '> 0'}]}\n"
    (tmp_path / "a.yaml").write_text(f"paper: true\nhypotheses:\n{ours}")
    (tmp_path / "b.yaml").write_text(f"paper: false\nhypotheses:\n{ours}")
    papers, both, alone = paper_hypotheses(), load_hypotheses(tmp_path / "a.yaml"), load_hypotheses(tmp_path / "b.yaml")
    assert both.hypotheses == (*papers.hypotheses, *alone.hypotheses)
    assert [one.id for one in alone.hypotheses] == ["ours"]
    assert len({one.digest for one in (papers, both, alone)}) == 3


def test_when_they_were_declared_is_kept(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assert declarations.said(declarations.read(store), "a") == "not declared before this analysis"
    declarations.record(store, "x", "a", 0, 108)
    declarations.record(store, "x", "a", 50, 108)
    assert declarations.said(declarations.read(store), "a") == "declared before any cell was finished"
    declarations.record(store, "x", "b", 60, 108)
    said = declarations.said(declarations.read(store), "b")
    assert said == "changed when 60 of 108 cells were finished"
    assert declarations.said(declarations.read(store, "x"), "a").startswith("not declared")
    # What another search space declares on the same store is its own.
    declarations.record(store, "y", "c", 0, 5)
    assert declarations.said(declarations.read(store, "x"), "b") == said
    assert declarations.said(declarations.read(store, "y"), "c") == "declared before any cell was finished"
    # Back to the first ones is a change, too.
    declarations.record(store, "x", "a", 80, 108)
    assert declarations.said(declarations.read(store, "x"), "a") == (
        "changed when 80 of 108 cells were finished, the last of 2 changes"
    )
    (tmp_path / "hypotheses.json").write_text('{"declared": []}')
    assert declarations.read(store) == []
    assert list(tmp_path.glob("hypotheses.json.damaged-*"))
