import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from raysweep.analysis import claims, findings, hypothesis_statistics, hypothesis_tests, regressions, trajectories
from raysweep.analysis import sweep_data as sweep
from raysweep.analysis.columns import BASE_RATE
from raysweep.analysis.findings import Finding
from raysweep.analysis.findings import Tests as SweepTests
from raysweep.analysis.sweep_data import SweepData
from raysweep.space.hypotheses import Test as OneTest


@pytest.mark.parametrize(
    ("rule", "low", "high", "verdict"),
    [
        ("> 0", 0.1, 0.3, "supported"),
        ("> 0", -0.1, 0.3, "undecided"),
        ("> 0", -0.3, -0.1, "contradicted"),
        ("< 0.05", -0.2, 0.04, "supported"),
        ("< 0.05", 0.06, 0.2, "contradicted"),
        ("< 0.05", 0.04, 0.2, "undecided"),
        ("within ±0.3", -0.2, 0.29, "supported"),
        ("within ±0.3", -0.5, -0.31, "contradicted"),
        ("within ±0.3", 0.2, 0.4, "undecided"),
        ("> 0", np.nan, np.nan, "undecided"),
        ("> 0", -np.inf, np.inf, "undecided"),
    ],
)
def test_a_verdict_follows_from_the_interval(rule: str, low: float, high: float, verdict: str) -> None:
    assert Finding("effect", rule, (low + high) / 2, low, high, 10).verdict == verdict


def findings_of(found: SweepData, table: pd.DataFrame, number: int) -> list[Finding]:
    """The tests of one of the paper's claims."""
    hypothesis = found.hypotheses.hypotheses[number - 1]
    assert hypothesis.id == number
    keys = ["task", "metric", "statistic"]
    tests = SweepTests(found, table.set_index(keys) if len(table) else table)
    expanded = claims.expanded(hypothesis, found)
    return [f for test in expanded if isinstance(test, OneTest) for f in hypothesis_tests.findings(tests, test)]


@pytest.fixture(scope="module")
def main_regressions(tables_of_example: tuple[pd.DataFrame, pd.DataFrame]) -> pd.DataFrame:
    return tables_of_example[0]


@pytest.fixture(scope="module")
def card(simulated: SweepData, main_regressions: pd.DataFrame) -> pd.DataFrame:
    return claims.claims(simulated, main_regressions)[0].set_index("claim")


FURTHER = ["A.2.1", "A.2.2", "A.2.4", "section-5", "over-training", "best-models"]


def test_every_claim_has_its_deciding_test(
    simulated: SweepData, main_regressions: pd.DataFrame, card: pd.DataFrame
) -> None:
    assert list(card.index) == [*range(1, 16), *FURTHER]
    _, tests = claims.claims(simulated, main_regressions)
    says = {hypothesis.id: hypothesis.says for hypothesis in simulated.hypotheses.hypotheses}
    for number, row in card.iterrows():
        own = tests[tests["claim"] == number]
        against = (own["verdict"] == "contradicted") & (own["p_against"] >= 0.025)
        verdicts = set(own["verdict"].mask(against, "undecided"))
        expected = next((v for v in ("contradicted", "undecided") if v in verdicts), "supported")
        assert row["verdict"] == expected
        of_its_own = own[own["effect"] == row["effect"]]["verdict"].to_list()
        assert expected in of_its_own or (against.any() and "contradicted" in of_its_own)
        assert row["statement"] == says[number]


def test_what_the_example_plants_is_supported(card: pd.DataFrame) -> None:
    """Each follows from a formula of `example`: effects of batch, decay and tokens, a line, H."""
    assert {n: card.loc[n, "verdict"] for n in (3, 8, 12, 14)} == dict.fromkeys((3, 8, 12, 14), "supported")


def changed(simulated: SweepData, **columns: pd.Series) -> SweepData:
    cells = simulated.cells.assign(**columns).drop(columns=[BASE_RATE])
    return sweep.from_tables("changed", cells, simulated.trajectories)


def test_the_opposite_of_what_is_claimed_is_contradicted(simulated: SweepData, main_regressions: pd.DataFrame) -> None:
    cells = simulated.cells
    upside_down = changed(
        simulated, effective_rank_W=1 - cells["effective_rank_W"], cosine_W=-cells["cosine_W"],
        out_of_distribution_loss=pd.Series(np.random.default_rng(0).standard_normal(108)),
        effective_rank_H=cells["effective_rank_W"] - 0.5,
    )  # fmt: skip
    card, _ = claims.claims(upside_down, main_regressions)
    verdicts = card.set_index("claim")["verdict"]
    assert {n: verdicts[n] for n in (3, 8, 9, 12, 14)} == dict.fromkeys((3, 8, 9, 12, 14), "contradicted")


def test_a_loss_that_only_rises_is_not_u_shaped(simulated: SweepData, main_regressions: pd.DataFrame) -> None:
    """Convex and rising: the ends together are above the bottom, but the lowest batch is not."""
    rising = changed(simulated, in_distribution_loss=3 + 0.01 * np.log2(simulated.cells["batch_size"] / 16) ** 2)
    tests = findings_of(rising, main_regressions, 8)[4:]
    assert [test.verdict for test in tests] == ["contradicted", "supported"]


def test_two_seeds_of_a_model_are_no_pair_of_models(simulated: SweepData) -> None:
    test = OneTest.model_validate({"spread_at_equal": {"of": "effective_rank_W", "at": "loss"}, "expect": "> 0.5"})
    (once,) = hypothesis_tests.findings(SweepTests(simulated, pd.DataFrame()), test)
    again = pd.concat([simulated.cells, simulated.cells.assign(seed=1)], ignore_index=True)
    twice = sweep.from_tables("seeds", again.drop(columns=[BASE_RATE]), simulated.trajectories)
    (repeated,) = hypothesis_tests.findings(SweepTests(twice, pd.DataFrame()), test)
    assert repeated.value == pytest.approx(once.value, abs=0.05)
    assert repeated.low < repeated.value < repeated.high


def test_a_late_rise_in_loss_contradicts_the_claim_on_saturation(
    simulated: SweepData, main_regressions: pd.DataFrame
) -> None:
    rising = simulated.trajectories.copy()
    last = rising.groupby("cell")["step"].transform("max") == rising["step"]
    rising.loc[last, "validation_loss"] *= 1.2
    rose = sweep.from_tables("rising", simulated.cells.drop(columns=[BASE_RATE]), rising)
    assert set(trajectories.late_rise(rising).values()) != {0.0}
    card, _ = claims.claims(rose, main_regressions)
    assert card.set_index("claim").loc[5, "verdict"] == "contradicted"


def test_a_u_is_found_wherever_its_bottom_is(simulated: SweepData, main_regressions: pd.DataFrame) -> None:
    """At batch 64, not in the middle of 32 to 512; with noise, of which no slice's bottom is chosen by its own."""
    noise = 0.01 * np.random.default_rng(0).standard_normal(108)
    bent = changed(simulated, in_distribution_loss=3 + 0.1 * np.log2(simulated.cells["batch_size"] / 64) ** 2 + noise)
    falling, rising, middles = hypothesis_statistics.u(bent, "in_distribution_loss", "batch_size")
    assert (len(falling), len(rising), middles) == (12, 12, 0)
    drops = np.array([y[1] - y[0] for _, y in falling])
    assert drops.mean() == pytest.approx(-0.1, abs=4 * 0.01 * np.sqrt(2 / 12))
    assert np.mean([y[1] - y[0] for _, y in rising]) == pytest.approx(0.9, abs=4 * 0.01 * np.sqrt(2 / 12))
    assert [t.verdict for t in findings_of(bent, main_regressions, 8)[4:]] == ["supported"] * 2


def test_noise_alone_is_no_u(simulated: SweepData, main_regressions: pd.DataFrame) -> None:
    """The lowest of five losses lies below the first; the fall to a bottom that others chose is zero on average."""
    rng = np.random.default_rng(1)
    falls = []
    for _ in range(20):
        flat = changed(simulated, in_distribution_loss=pd.Series(3 + 0.1 * rng.standard_normal(108)))
        falls.append(
            np.mean([y[1] - y[0] for _, y in hypothesis_statistics.u(flat, "in_distribution_loss", "batch_size")[0]])
        )
    assert np.mean(falls) == pytest.approx(0, abs=4 * 0.1 * np.sqrt(2 / 12 / 20))


def test_runs_that_are_not_over_trained_say_nothing_of_saturation(
    simulated: SweepData, main_regressions: pd.DataFrame
) -> None:
    short = changed(simulated, parameters=simulated.cells["parameters"] * 1000)
    rise = findings_of(short, main_regressions, 5)[1]
    assert (rise.verdict, rise.n) == ("undecided", 0)
    assert rise.reason.startswith("0 configurations")
    # Nor does their rank: both halves of the claim are about the same runs.
    assert findings_of(short, main_regressions, 5)[0].n == 0
    assert findings_of(simulated, main_regressions, 5)[1].verdict == "supported"


def test_a_base_rate_that_is_not_the_prescribed_one_decides_nothing_about_it(
    simulated: SweepData, main_regressions: pd.DataFrame
) -> None:
    scaled = changed(simulated, learning_rate_factor=0.4 * simulated.cells["learning_rate_factor"])
    tests = findings_of(scaled, main_regressions, 10)[2:]
    assert [t.reason for t in tests] == ["no cell has learning rate factor 1; most have 0.4"] * 2
    assert [t.verdict for t in findings_of(simulated, main_regressions, 10)[2:]] == ["supported"] * 2


def test_missing_data_leaves_a_claim_undecided_with_its_reason(simulated: SweepData) -> None:
    few = sweep.from_tables(
        "few", simulated.cells[["id", "status", *simulated.free_settings[:-1], "size", "parameters", "steps", "flops",
                                "learning_rate", "validation_loss", "effective_rank_W"]].head(5),
        simulated.trajectories.head(0),
    )  # fmt: skip
    found, _ = regressions.regressions(few, draws=20, jobs=1)
    card, tests = claims.claims(few, found)
    assert set(card["verdict"]) == {"undecided"}
    assert card["reason"].ne("").all()
    assert tests[tests["value"].isna()]["reason"].ne("").all()


def test_effective_rank_flat_in_the_learning_rate_is_within_the_margin(simulated: SweepData) -> None:
    """Planted flat, with noise of a hundredth of the spread."""
    cells = simulated.cells
    noise = 1e-3 * np.random.default_rng(0).standard_normal(108)
    flat = changed(simulated, effective_rank_W=0.4 + 0.1 * np.log2(cells["batch_size"] / 128) + noise)
    evidence = findings_of(flat, pd.DataFrame(), 10)
    assert [test.verdict for test in evidence[:2]] == ["supported"] * 2
    assert [test.n for test in evidence[:2]] == [12, 12]


def test_both_halves_of_the_claim_on_saturation_are_about_sequential_blocks(simulated: SweepData) -> None:
    """The batch size moves the rank of parallel blocks alone, planted."""
    plain = simulated.cells.drop(columns=[BASE_RATE])
    collapsing = 0.1 * np.log2(plain["batch_size"] / 32)
    cells = pd.concat(
        [
            plain.assign(block="sequential", effective_rank_W=0.5),
            plain.assign(block="parallel", effective_rank_W=0.3 + collapsing, id=plain["id"] + "-p"),
        ],
        ignore_index=True,
    )
    both = sweep.from_tables("blocks", cells, simulated.trajectories)
    rank = findings_of(both, pd.DataFrame(), 5)[0]
    assert (rank.value, rank.verdict) == (pytest.approx(0, abs=1e-12), "contradicted")


def test_the_lowest_of_many_noisy_losses_is_no_bottom() -> None:
    """A loss that only falls, read 200 times with noise of 1%: the lowest reading lies some 2% below the last on average."""
    rng = np.random.default_rng(0)
    steps = np.arange(1, 201)
    runs = [
        pd.DataFrame({"cell": str(i), "step": steps, "validation_loss": (4 - steps / 1000) * (1 + 0.01 * noise)})
        for i, noise in enumerate(rng.standard_normal((50, 200)))
    ]
    rises = list(trajectories.late_rise(pd.concat(runs)).values())
    assert np.mean(rises) < 0.003
    lowest = [run["validation_loss"].iloc[-1] / run["validation_loss"].min() - 1 for run in runs]
    assert np.mean(lowest) > 0.015
    rising = runs[0].assign(validation_loss=3 + steps / 100)
    # The mean of the last twentieth over that of the first.
    assert trajectories.late_rise(rising)["0"] == pytest.approx((3 + 1.955) / (3 + 0.055) - 1)


def test_a_mean_has_student_s_interval() -> None:
    values = np.array([0.01, 0.03, 0.02, 0.06])
    found = findings.of_mean("mean", "> 0", values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.value, found.low, found.high) == pytest.approx((0.03, expected.low, expected.high))
    assert findings.of_mean("mean", "> 0", values[:2]).verdict == "undecided"


def test_few_comparisons_decide_nothing_about_isotropy_and_decay(simulated: SweepData) -> None:
    assert math.isfinite(findings_of(simulated, pd.DataFrame(), 13)[3].low)
    five = simulated.of(simulated.cells["width"] > simulated.cells["width"].min())
    assert "with 6 comparisons of each" in findings_of(five, pd.DataFrame(), 13)[3].reason
