"""Planted effects of a moved rank are found, with intervals that hold them, and nothing is found where nothing is."""

from itertools import product

import numpy as np
import pandas as pd
import pytest

from raysweep.analysis import (
    claims,
    drawing,
    hypothesis_tests,
    noise,
    plots,
    regressions,
)
from raysweep.analysis import (
    intervention_effects as interventions,
)
from raysweep.analysis import (
    sweep_data as sweep,
)
from raysweep.analysis.columns import BASE_RATE
from raysweep.analysis.findings import Finding
from raysweep.analysis.findings import Tests as SweepTests
from raysweep.analysis.sweep_data import SweepData
from raysweep.space.hypotheses import Test as OneTest

TARGETS = (0.5, 0.7, 0.95)
ALONE = 0.86
PENALTY = {0.5: 0.08, 0.7: 0.02, 0.95: 0.0}
SLOPE = -0.3
MEASURED = {
    "effective_rank_W", "cosine_W", "isotropy_W", "in_distribution_loss", "forgetting_python_loss",
    "forgetting_python_loss_change",
}  # fmt: skip
RAISED = 5.0
"""What raising the rank adds to forgetting: off the line of those that lower it."""


def moved(simulated: SweepData) -> SweepData:
    """Three sizes x four seeds, left alone, pushed to three targets, and capped, with planted changes and little noise."""
    columns = ["effective_rank_target", "effective_rank_penalty", "spectral_norm_cap"]
    measured = [
        c for c in simulated.cells if c.endswith(("_loss", "_loss_change", "_byte", "_W", "_H")) and c not in MEASURED
    ]
    plain = simulated.cells.drop(columns=[BASE_RATE, *measured, *(c for c in columns if c in simulated.cells)])
    base = plain[(plain["tokens"] == 32e9) & (plain["batch_size"] == 128)].groupby("size").head(1).head(3)
    rng = np.random.default_rng(0)
    rows = []
    for (_, cell), seed in product(base.iterrows(), range(4)):
        level = rng.standard_normal()
        for target, cap in [(None, None), *((t, None) for t in TARGETS), (None, 15.0)]:
            rank = target or (0.98 if cap else ALONE)
            rows.append(
                cell.to_dict()
                | {"id": f"{cell['size']}-{seed}-{target}-{cap}", "seed": seed}
                | {"effective_rank_target": target, "effective_rank_penalty": 100.0 if target else 0.0}
                | {"spectral_norm_cap": cap, "effective_rank_W": rank}
                | {"in_distribution_loss": 4 + level + PENALTY.get(target or 0, 0) + 0.002 * rng.standard_normal()}
                | {
                    "forgetting_python_loss_change": 1
                    + level
                    + SLOPE * rank
                    + RAISED * (target == 0.95)
                    + 0.002 * rng.standard_normal()
                }
                | {"cosine_W": level + 0.05 * rng.standard_normal()}
            )
    return sweep.from_tables("moved", pd.DataFrame(rows), simulated.trajectories.head(0))


def test_planted_changes_are_found_and_others_are_not(simulated: SweepData) -> None:
    study = moved(simulated)
    found = interventions.interventions(study, noise.seed_noise(study))
    every = found[found["size"] == ""].set_index(["intervention", "column"])
    for target, change in PENALTY.items():
        row = every.loc[(f"rank {target:g} x 100", "in_distribution_loss")]
        assert row["low"] < row["change"] < row["high"]
        assert row["change"] == pytest.approx(change, abs=0.004)
        assert (row["comparisons"], row["sizes"]) == (12, 3)
    assert every.loc[("rank 0.5 x 100", "in_distribution_loss"), "low"] > 0
    assert every.loc[("cap 15", "effective_rank_W"), "change"] == pytest.approx(0.98 - ALONE)
    slope = every.loc[("slope", "forgetting_python_loss_change")]
    assert slope["low"] < SLOPE < slope["high"]
    assert slope["high"] < 0
    unmoved = every.loc[("rank 0.5 x 100", "cosine_W")]
    assert unmoved["low"] < 0 < unmoved["high"]
    assert set(found["size"]) == {"", *study.cells["size"]}


def test_each_size_is_held_against_its_own_noise_of_cells_left_alone(simulated: SweepData) -> None:
    study = moved(simulated)
    between = noise.seed_noise(study)
    found = interventions.interventions(study, between).set_index(["size", "intervention", "column"])
    alone = study.cells[study.cells["effective_rank_target"].isna() & study.cells["spectral_norm_cap"].isna()]
    for size, cells in alone.groupby("size"):
        row = found.loc[(size, "rank 0.5 x 100", "in_distribution_loss")]
        deviation = cells["in_distribution_loss"].std(ddof=1)
        assert row["seed_standard_deviations"] == pytest.approx(row["change"] / deviation)
    # The claims are about the cells left alone.
    assert len(study.design.cells) == 12


def test_cells_with_and_without_a_target_are_analysed_together(simulated: SweepData) -> None:
    study = moved(simulated)
    assert bool(np.isfinite(study.controls.to_numpy()).all())
    found, _ = regressions.regressions(study, draws=50, jobs=1)
    of_loss = found[(found["task"] == "in_distribution") & (found["metric"] == "effective_rank_W")].set_index(
        "statistic"
    )
    assert np.isfinite(of_loss.loc["raw_spearman", "value"])
    assert np.isfinite(of_loss.loc["partial_spearman", "value"])
    card, _ = claims.claims(study, found)
    assert len(card) == len(study.hypotheses.hypotheses)


def test_penalties_of_other_strengths_are_other_interventions(simulated: SweepData) -> None:
    study = moved(simulated)
    pushed = study.cells["effective_rank_target"] == 0.5
    stronger = study.cells[pushed].assign(
        id=study.cells["id"] + "-x",
        effective_rank_penalty=1000.0,
        in_distribution_loss=lambda c: c["in_distribution_loss"] + 1,
    )
    cells = pd.concat([study.cells, stronger], ignore_index=True).drop(columns=[BASE_RATE])
    found = interventions.interventions(
        sweep.from_tables("x", cells, study.trajectories), noise.seed_noise(study)
    ).set_index(["size", "intervention", "column"])
    for name, change in (("rank 0.5 x 100", 0.08), ("rank 0.5 x 1000", 1.08)):
        row = found.loc[("", name, "in_distribution_loss")]
        assert (row["comparisons"], row["sizes"]) == (12, 3)
        assert row["change"] == pytest.approx(change, abs=0.004)


def test_what_a_penalty_does_by_itself_is_taken_off(simulated: SweepData) -> None:
    """A penalty whose target is where the rank ends anyway, and which costs as much loss as the others' own part."""
    study = moved(simulated)
    cost = 0.05
    alone = study.cells["effective_rank_target"].isna() & study.cells["spectral_norm_cap"].isna()
    control = study.cells[alone].assign(
        id=study.cells["id"] + "-held",
        effective_rank_target=0.865,
        effective_rank_penalty=100.0,
        effective_rank_W=0.865,
    )
    cells = pd.concat([study.cells, control], ignore_index=True).drop(columns=[BASE_RATE])
    cells["in_distribution_loss"] += cost * cells["effective_rank_target"].notna()
    with_control = sweep.from_tables("x", cells, study.trajectories)
    found = interventions.interventions(with_control, noise.seed_noise(with_control))
    of_all = found[found["size"] == ""].set_index(["intervention", "against", "column"])["change"]
    for target, change in PENALTY.items():
        name = f"rank {target:g} x 100"
        assert of_all[name, "", "in_distribution_loss"] == pytest.approx(change + cost, abs=0.004)
        assert of_all[name, "rank 0.865 x 100", "in_distribution_loss"] == pytest.approx(change, abs=0.004)
    assert of_all["rank 0.865 x 100", "", "in_distribution_loss"] == pytest.approx(cost)
    against = {(name, control) for name, control, _ in of_all.index if control}
    assert against == {(f"rank {target:g} x 100", "rank 0.865 x 100") for target in TARGETS}
    # Where none leaves the rank where it was there is nothing to take off.
    assert set(interventions.interventions(study, noise.seed_noise(study))["against"]) == {""}


def finding(study: SweepData, expect: str, among: dict[str, str] | None = None, **spec: str) -> Finding:
    test = OneTest.model_validate({"intervention": spec, "expect": expect, "among": among or {}})
    (found,) = hypothesis_tests.findings(SweepTests(study.design, pd.DataFrame()), test)
    return found


def test_a_hypothesis_may_be_about_an_intervention(simulated: SweepData) -> None:
    study = moved(simulated)
    by = {"of": "in_distribution_loss", "by": "rank 0.5 x 100"}
    table = interventions.interventions(study, noise.seed_noise(study)).set_index(["size", "intervention", "column"])
    costs = finding(study, "> 0.07", **by)
    assert costs.verdict == "supported"
    row = table.loc[("", "rank 0.5 x 100", "in_distribution_loss")]
    assert (costs.value, costs.low, costs.high) == (row["change"], row["low"], row["high"])
    assert costs.effect == "in-distribution loss under rank 0.5 x 100 minus left alone"
    assert finding(study, "< 0", **by).verdict == "contradicted"
    # Of the largest size there are four pairs: too few to swap.
    largest = finding(study, "> 0", {"sizes": "largest"}, **by)
    sizes = study.cells.groupby("parameters")["size"].first()
    expected = table.loc[(sizes.iloc[-1], "rank 0.5 x 100", "in_distribution_loss"), "change"]
    assert largest.value == pytest.approx(expected)
    assert largest.reason == "4 comparisons at equal settings allow too few permutations for a 95% interval"
    other = finding(study, "> 0", of="in_distribution_loss", by="rank 0.4 x 100")
    assert other.reason.endswith("there are cap 15, rank 0.5 x 100, rank 0.7 x 100, rank 0.95 x 100")


@pytest.mark.slow
def test_an_intervention_that_does_nothing_has_a_verdict_in_one_sweep_of_twenty(simulated: SweepData) -> None:
    study = moved(simulated)
    rng = np.random.default_rng(1)
    verdicts = []
    for _ in range(400):
        cells = study.cells.assign(in_distribution_loss=rng.standard_normal(len(study.cells)))
        of_noise = sweep.from_tables("x", cells.drop(columns=[BASE_RATE]), study.trajectories)
        verdicts.append(finding(of_noise, "> 0", of="in_distribution_loss", by="rank 0.5 x 100").verdict)
    shares = [verdicts.count(verdict) / 400 for verdict in ("supported", "contradicted")]
    print(*shares)
    # Of 400 at 5%, 8.3% are three standard errors above.
    assert 0 < sum(shares) < 0.083


def test_the_isotropy_under_a_cap_is_left_out(simulated: SweepData) -> None:
    study = moved(simulated)
    found = set(interventions.interventions(study, noise.seed_noise(study)).set_index(["intervention", "column"]).index)
    assert ("cap 15", "isotropy_W") not in found
    assert {("cap 15", "effective_rank_W"), ("rank 0.5 x 100", "isotropy_W")} <= found


def test_a_sweep_without_interventions_has_none(simulated: SweepData) -> None:
    assert not len(interventions.interventions(simulated, noise.seed_noise(simulated)))
    with pytest.raises(drawing.NoData, match="no cell has an intervention"):
        plots.moved_rank(simulated)


def test_the_figure_has_a_line_for_each_size(simulated: SweepData) -> None:
    figure = plots.moved_rank(moved(simulated))
    assert [len(ax.get_lines()) for ax in figure.axes] == [2 + 3 * 3] * len(figure.axes)
    title = " ".join(figure.get_suptitle().split())
    assert title.startswith(
        "Pushing the effective rank of W from 0.86 to 0.50 changes the in-distribution loss by +0.08"
    )
