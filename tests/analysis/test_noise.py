"""The noise of seeds against a planted one and scipy's own variance, and effects in units of it."""

import numpy as np
import pandas as pd
import pytest

from raysweep.analysis import noise
from raysweep.analysis import sweep_data as sweep
from raysweep.analysis.columns import BASE_RATE
from raysweep.analysis.sweep_data import SweepData

KEPT = ("cosine_W", "isotropy_W", "in_distribution_loss")


def with_seeds(simulated: SweepData, deviation: float, seeds: int = 4) -> SweepData:
    """The simulated sweep, its base cells trained with several seeds that differ by a planted deviation."""
    others = [c for c in simulated.cells if c.endswith(("_loss", "_change", "_W", "_H")) and c not in KEPT]
    cells = simulated.cells.drop(columns=[BASE_RATE, *others])
    base = cells[
        (cells["tokens"] == 32e9) & (cells["batch_size"] == 128) & (cells["weight_decay"] == 0.1)
        & (cells["learning_rate_factor"] == 1) & (cells["final_learning_rate_fraction"] == 0.1)
    ]  # fmt: skip
    assert len(base) == 6
    rng = np.random.default_rng(0)
    copies = [cells]
    for seed in range(1, seeds):
        shift = deviation * rng.standard_normal(len(base))
        copies.append(base.assign(id=base["id"] + f"-{seed}", seed=seed, cosine_W=base["cosine_W"] + shift))
    return sweep.from_tables("seeds", pd.concat(copies, ignore_index=True), simulated.trajectories)


def test_the_noise_is_the_pooled_standard_deviation(simulated: SweepData) -> None:
    study = with_seeds(simulated, 0.03)
    every = noise.seed_noise(study)
    found = every[every["size"] == ""].set_index("column")
    seeds = study.cells[study.cells["cosine_W"].groupby(study.configurations).transform("size") > 1]
    by_size = seeds.groupby("parameters")["cosine_W"]
    assert by_size.ngroups == 6
    assert found.loc["cosine_W", "standard_deviation"] == pytest.approx(np.sqrt(by_size.var(ddof=1).mean()), rel=1e-12)
    assert found.loc["cosine_W", ["degrees_of_freedom", "configurations"]].tolist() == [18, 6]
    of_size = every[every["column"] == "cosine_W"].set_index("size")["standard_deviation"]
    for size, cells in seeds.groupby("size"):
        assert of_size[size] == pytest.approx(cells["cosine_W"].std(ddof=1), rel=1e-12)
    assert noise.standard_deviations(every, "4M")["cosine_W"] == of_size["4M"]
    # What does not differ between the copies has no noise.
    assert found.loc["isotropy_W", "standard_deviation"] == 0


def test_the_interval_holds_the_planted_deviation_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    held = []
    for _ in range(400):
        cells = pd.DataFrame({"id": [str(i) for i in range(12)], "width": np.repeat([8, 16, 24], 4), "seed": range(12)})
        cells["size"] = cells["width"].astype(str)
        cells["x_loss"] = np.repeat([1.0, 5.0, 9.0], 4) + 0.2 * rng.standard_normal(12)
        row = noise.seed_noise(SweepData("x", cells, pd.DataFrame(), 12)).iloc[0]
        held.append(row["low"] < 0.2 < row["high"])
    assert np.mean(held) == pytest.approx(0.95, abs=0.03)


def test_effects_are_held_against_the_noise(simulated: SweepData) -> None:
    study = with_seeds(simulated, 0.03)
    between = noise.seed_noise(study)
    found = noise.effects(study.design, between).set_index(["hyperparameter", "column"])
    row = found.loc[("weight_decay", "cosine_W")]
    deviation = noise.standard_deviations(between)["cosine_W"]
    assert row["low"] < row["effect"] < row["high"]
    assert row["seed_standard_deviations"] == pytest.approx(row["effect"] / deviation)
    assert set(found.index.get_level_values(0)) == set(study.hyperparameters)


def test_without_seeds_there_is_no_noise_and_effects_stand_alone(simulated: SweepData) -> None:
    study = with_seeds(simulated, 0.0, seeds=1)
    between = noise.seed_noise(study)
    assert not len(between)
    assert noise.effects(study, between)["seed_standard_deviations"].isna().all()
