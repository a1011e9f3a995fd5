import itertools
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from raysweep.analysis import drawing, noise, plots
from raysweep.analysis.columns import BASE_RATE
from raysweep.analysis.sweep_data import SweepData, from_tables
from raysweep.analysis.trends import (
    PERMUTATIONS,
    effect,
    of_lowest_and_middle,
    of_middle_and_highest,
    position,
    slopes,
    swing,
    trend,
)


def test_an_effect_without_noise_is_found_exactly() -> None:
    x = np.array([0, 0.5, 1.0])
    found = effect([(x, level + 0.7 * x) for level in (0.0, 3.0, -2.0, 9.0)])
    assert (found.value, found.low, found.high) == pytest.approx((0.7, 0.7, 0.7))
    assert (found.n, found.slices) == (12, 4)


def test_the_interval_excludes_zero_exactly_when_the_permutation_test_rejects() -> None:
    """Against scipy's exact permutation test of one slice's covariance, both sides at 2.5%."""
    rng = np.random.default_rng(0)
    decisions = set()
    x = position(np.arange(6.0), np.arange(6.0))
    for strength in np.linspace(0, 4, 25):
        y = strength * x + rng.standard_normal(6)
        found = effect([(x, y)])
        test = stats.permutation_test(
            (y,), lambda shuffled: shuffled @ (x - x.mean()), permutation_type="pairings", n_resamples=np.inf,
            alternative="greater", vectorized=False,
        )  # fmt: skip
        rejected = test.pvalue <= 0.025
        assert (found.low > 0) == rejected
        decisions.add(rejected)
    assert decisions == {True, False}


def test_the_interval_covers_the_effect_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    x = position(np.arange(3.0), np.arange(3.0))
    covered = []
    for _ in range(400):
        found = effect([(x, 5 * rng.standard_normal() + 0.7 * x + 0.5 * rng.standard_t(3, 3)) for _ in range(5)])
        covered.append(found.low <= 0.7 <= found.high)
    # 95% of 400, three standard errors.
    assert 0.917 <= np.mean(covered) <= 0.983


def test_too_few_permutations_give_no_interval() -> None:
    pair = (np.array([0.0, 1.0]), np.array([0.0, 1.0]))
    assert math.isinf(effect([pair] * 5).low)  # 1 of 32 is more than 2.5%
    assert effect([pair] * 6).low == pytest.approx(1.0)  # 1 of 64 is less


def test_permutations_at_random_agree_with_all_of_them() -> None:
    rng = np.random.default_rng(2)
    x = position(np.arange(4.0), np.arange(4.0))
    slices = [(x, x + 0.4 * rng.standard_normal(4)) for _ in range(3)]
    every = effect(slices)
    assert math.factorial(4) ** 3 < PERMUTATIONS
    many = effect([*slices, (np.array([0.0, 1.0, 0.5]), np.array([1.0, 1.0, 1.0]))])
    assert math.factorial(4) ** 3 * 6 > PERMUTATIONS
    # The slice that was added has no change in y and hardly moves the interval.
    assert many.low == pytest.approx(every.low, abs=0.3)
    assert many.high == pytest.approx(every.high, abs=0.3)


def test_the_ends_are_compared_with_the_value_in_the_middle() -> None:
    cells = pd.DataFrame({"batch_size": [32, 64, 128, 256, 512, 512]})
    assert list(of_lowest_and_middle(cells, cells["batch_size"])["batch_size"]) == [32, 128]
    assert list(of_middle_and_highest(cells, cells["batch_size"])["batch_size"]) == [128, 512, 512]
    levels = np.array([32, 64, 128, 256, 512])
    assert position(cells["batch_size"].to_numpy(float), levels) == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1])
    assert position(np.array([64.0, 512.0]), levels) == pytest.approx([0.25, 1])


def test_seeds_of_a_configuration_are_one_cell(simulated: SweepData) -> None:
    """Every cell again under another seed, all with the same error, changes neither the effect's n nor its slices."""
    again = simulated.cells.assign(
        seed=1, id=simulated.cells["id"] + "-again", effective_rank_W=simulated.cells["effective_rank_W"] + 0.2
    )
    cells = pd.concat([simulated.cells, again], ignore_index=True).drop(columns=[BASE_RATE])
    once, twice = (
        trend(s, "weight_decay", "effective_rank_W")
        for s in (simulated, from_tables("seeds", cells, simulated.trajectories))
    )
    assert once is not None
    assert twice is not None
    assert (twice.n, twice.slices) == (once.n, once.slices) == (18, 6)
    assert (twice.value, twice.low, twice.high) == pytest.approx((once.value, once.low, once.high))


def test_slices_of_the_papers_grid(simulated: SweepData) -> None:
    """By hand: at each of 6 sizes the batch is varied at two budgets, and 1, 2 and 2 values are added to the base."""
    assert len(simulated.cells) == 108
    assert len(simulated.slices("batch_size")) == 12
    assert {len(s) for s in simulated.slices("batch_size")} == {5}
    for name in ("weight_decay", "learning_rate_factor", "final_learning_rate_fraction"):
        assert [len(s) for s in simulated.slices(name)] == [3] * 6
    by_steps = simulated.slices("tokens", equal_steps=True)
    # 8B/32 - 32B/128 - 64B/256 - 128B/512, 8B/64 - 32B/256 and 8B/128 - 32B/512, all at sequence length 2048.
    assert sorted(len(s) for s in by_steps) == [2] * 12 + [4] * 6
    for cells in itertools.chain(by_steps, simulated.slices("weight_decay")):
        assert cells["steps"].nunique() == 1
        assert cells["size"].nunique() == 1
    assert simulated.hyperparameters == [
        "tokens", "batch_size", "learning_rate_factor", "final_learning_rate_fraction", "weight_decay",
    ]  # fmt: skip


def test_trend_finds_what_was_planted(simulated: SweepData) -> None:
    """The example's effective rank rises by 0.075 per doubling of the batch, so by 0.3 from 32 to 512."""
    found = trend(simulated, "batch_size", "effective_rank_W")
    assert found is not None
    assert found.low < 0.3 < found.high
    assert found.value == pytest.approx(0.3, abs=0.02)
    sizes, changes = slopes(simulated, "weight_decay", "effective_rank_W")
    assert len(sizes) == 6
    assert changes.mean() == pytest.approx(0.1 * np.log10(50), abs=0.03)
    assert trend(simulated, "warmup_fraction", "effective_rank_W") is None


def test_a_slice_with_some_of_the_values_tells_of_its_part_of_the_range(simulated: SweepData) -> None:
    """Budgets at equal steps: 8, 32, 64, 128 billion tokens in one slice of a size, 8 and 32 in its two others."""
    level = simulated.cells["tokens"].map({8e9: 0, 32e9: 1, 64e9: 2, 128e9: 3})
    planted = replace(simulated, cells=simulated.cells.assign(cosine_W=0.1 * level))
    found = trend(planted, "tokens", "cosine_W", equal_steps=True)
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((0.3, 0.3, 0.3))
    assert swing(planted, "tokens", "cosine_W", equal_steps=True) == pytest.approx(0.3)


def test_a_swing_sees_what_a_line_does_not(simulated: SweepData) -> None:
    batch = np.log2(simulated.cells["batch_size"] / 128)
    planted = replace(simulated, cells=simulated.cells.assign(cosine_W=0.05 * batch**2))
    found = trend(planted, "batch_size", "cosine_W")
    assert found is not None
    assert found.value == pytest.approx(0, abs=1e-12)
    assert swing(planted, "batch_size", "cosine_W") == pytest.approx(0.2)
    assert math.isnan(swing(planted, "warmup_fraction", "cosine_W"))


def test_seeds_that_few_have_and_cells_with_interventions_are_not_of_the_design(simulated: SweepData) -> None:
    """What they add has an error that would show: the effects stay those of the cells that were there before."""
    base = simulated.cells[simulated.cells["id"].isin(s["id"].iloc[0] for s in simulated.slices("weight_decay"))]
    assert len(base) == 6
    far = {column: base[column] + 10 for column in ("in_distribution_loss", "effective_rank_W")}
    seeds = [base.assign(seed=seed, id=base["id"] + f"-{seed}", **far) for seed in (1, 2, 3)]
    capped = base.assign(spectral_norm_cap=1.0, id=base["id"] + "-capped", **far)
    cells = pd.concat([simulated.cells, *seeds, capped], ignore_index=True).drop(columns=[BASE_RATE])
    study = from_tables("study", cells, simulated.trajectories)
    assert len(study.cells) == 108 + 18 + 6
    pd.testing.assert_frame_equal(
        study.design.cells[simulated.cells.columns], simulated.cells, check_exact=True, check_dtype=False
    )
    assert trend(study.design, "weight_decay", "effective_rank_W") == trend(
        simulated, "weight_decay", "effective_rank_W"
    )
    # Asking for the design changes nothing of the study itself: the noise is of all seeds that were left alone.
    assert study.is_untreated.sum() == 108 + 18
    # Seeds that all have are all of the design, and cells that all have a cap are.
    assert simulated.design is simulated
    crossed = pd.concat([simulated.cells, simulated.cells.assign(seed=1)], ignore_index=True).drop(columns=[BASE_RATE])
    assert len(from_tables("x", crossed.assign(spectral_norm_cap=2.0), simulated.trajectories).design.cells) == 216


def test_the_rise_by_quantization_is_on_the_text_of_the_loss_after(simulated: SweepData) -> None:
    """The in-distribution loss may be of more sequences: that it differs is no rise."""
    column = "quantized_4bit_in_distribution_loss"
    other = simulated.cells.assign(in_distribution_loss=simulated.cells["in_distribution_loss"] + 1)
    drawn = plots.quantization(replace(simulated, cells=other), "quantized_in_distribution")
    smallest = other[other["parameters"] == other["parameters"].min()]
    shown = np.concatenate([line.get_ydata() for line in drawn.axes[0].lines if line.get_marker() != "None"])
    np.testing.assert_array_equal(np.sort(shown), np.sort(smallest[f"{column}_change"]))


def test_a_seed_less_takes_no_cell_out_of_its_slice(simulated: SweepData) -> None:
    """The mean of three equal rates differs from that of two in the last bit, at widths 384 and 768."""
    seeds = [simulated.cells.assign(seed=seed, id=simulated.cells["id"] + f"-{seed}") for seed in range(6)]
    cells = pd.concat(seeds, ignore_index=True).drop(columns=[BASE_RATE])
    lost = cells.groupby("size")["id"].idxmin()
    unequal = from_tables("x", cells.drop(index=lost), simulated.trajectories)
    for name in ("weight_decay", "learning_rate_factor", "final_learning_rate_fraction"):
        assert [len(s) for s in unequal.over_seeds.slices(name)] == [3] * 6


def test_configurations_may_have_other_seeds(simulated: SweepData) -> None:
    """A planted effect is found whatever seeds the values have, and whether or not some have several."""
    cells = simulated.cells.assign(cosine_W=simulated.cells["weight_decay"]).drop(columns=[BASE_RATE])
    cells["seed"] = np.arange(len(cells))
    again = cells.head(1).assign(seed=1000, id="again")
    for of in (cells, pd.concat([cells, again], ignore_index=True)):
        found = trend(from_tables("x", of, simulated.trajectories), "weight_decay", "cosine_W")
        assert found is not None
        assert found.slices == 6
    assert "weight_decay" in from_tables("x", cells, simulated.trajectories).hyperparameters


def test_one_name_for_two_corpora_makes_two_configurations(simulated: SweepData) -> None:
    plain = simulated.cells.drop(columns=[BASE_RATE])
    half = plain.assign(
        corpus_fingerprint="abcdefgh", id=plain["id"] + "-half", effective_rank_W=plain["effective_rank_W"] + 5
    )
    both = from_tables("x", pd.concat([plain, half], ignore_index=True), simulated.trajectories)
    assert len(np.unique(both.configurations)) == 216
    assert both.kinds == ["corpus"]
    found, alone = (trend(s, "batch_size", "effective_rank_W") for s in (both, simulated))
    assert found is not None
    assert alone is not None
    assert (found.value, found.slices) == (pytest.approx(alone.value), 2 * alone.slices)
    assert simulated.kinds == []


@pytest.mark.parametrize("equal_steps", [True, False])
def test_budgets_are_a_hyperparameter_however_they_were_varied(simulated: SweepData, equal_steps: bool) -> None:
    """Only with the batch size, in as many steps; and only at one batch size."""
    cells = simulated.cells
    chosen = cells["steps"] == 122_070 if equal_steps else cells["batch_size"] == 128
    study = simulated.of(chosen & (cells["weight_decay"] == 0.1) & (cells["learning_rate_factor"] == 1))
    assert study.at_equal_steps("tokens") == equal_steps
    assert "tokens" in study.hyperparameters
    table = noise.effects(study, noise.seed_noise(study))
    assert set(table[table["hyperparameter"] == "tokens"]["comparisons"]) == {6}


def test_a_column_of_one_domain_is_no_task_or_metric_by_its_name(simulated: SweepData) -> None:
    names = (
        "out_of_distribution_loss_George_H",
        "out_of_distribution_bits_per_byte_weight_loss",
        "out_of_distribution_loss_change",
    )
    odd = replace(simulated, cells=simulated.cells.assign(**dict.fromkeys(names, 1.0)))
    assert odd.tasks == simulated.tasks
    assert odd.metrics == simulated.metrics
    assert noise.outcomes(odd) == noise.outcomes(simulated)
    assert "quantized_4bit_out_of_distribution_loss_change" in noise.outcomes(simulated)


def test_scaled_losses_are_of_the_size_where_depth_changes_the_parameters(simulated: SweepData) -> None:
    cells = simulated.cells[simulated.cells["weight_decay"] == 0.1].drop(columns=[BASE_RATE])
    deeper = cells.assign(
        depth=12, id=cells["id"] + "-deep", parameters=cells["parameters"] * 2, learning_rate=cells["learning_rate"],
        in_distribution_loss=cells["in_distribution_loss"] * 0.9,
    )  # fmt: skip
    both = from_tables("x", pd.concat([cells, deeper], ignore_index=True), simulated.trajectories)
    figure = plots.hyperparameter(both, "depth", ("effective_rank_W",))
    drawn = np.concatenate([line.get_ydata() for line in figure.axes[1].lines])
    assert drawn.min() == pytest.approx(1)
    assert np.ptp(drawn) > 0.1


def test_labels_that_would_run_into_each_other_are_left_out() -> None:
    figure, (ax, *_) = drawing.figure(1, 1)
    drawing.scale(ax, [0, 0.01, 0.1, 0.3, 0.5, 0.7, 1.0])
    figure.canvas.draw()
    assert [label.get_text() for label in ax.get_xticklabels() if label.get_text()] == ["0", "0.01", "0.1", "0.5", "1"]
