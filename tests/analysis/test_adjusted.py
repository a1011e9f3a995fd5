"""Effects of sampled settings: against scikit-learn and refits, by simulation, and through a whole analysis."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from sklearn.linear_model import LinearRegression

from raysweep.analysis import example, figures, sweep_data
from raysweep.analysis.adjusted import adjusted
from raysweep.cli.main import main
from raysweep.space.read import load
from raysweep.space.space import Space
from raysweep.store import Store

SPACE: dict[str, Any] = {
    "name": "sampled",
    "base": {"corpus": "pile", "tokens": 32e9, "batch_size": 128},
    "sample": {"count": 96, "seed": 1},
    "over": {
        "size": {"choice": ["4M", "16M", "75M"]},
        "batch_size": {"powers_of": 2, "between": [32, 512]},
        "weight_decay": {"log_uniform": [0.01, 0.5]},
        "final_learning_rate_fraction": {"uniform": [0, 0.5]},
    },
    "evaluations": ["in_distribution"],
}


def space(folder: Path, **changes: Any) -> Space:
    (folder / "space.yaml").write_text(yaml.safe_dump(SPACE | changes), encoding="utf-8")
    return load(folder / "space.yaml")


def measured(of: Space, y: np.ndarray[Any, Any]) -> sweep_data.SweepData:
    """The sweep with these losses, and no other numbers."""
    cells = pd.DataFrame([cell.describe() for cell in of.cells]).assign(status="done", in_distribution_loss=y)
    trajectories = pd.DataFrame({"cell": [], "step": []})
    return sweep_data.from_tables("x", cells, trajectories, **sweep_data.said_of_space(of, []))


def test_against_scikit_learn_and_leaving_points_out(tmp_path: Path) -> None:
    """Too few points for squares: the plain regression. Every point has two cells, which are left out together."""
    few = space(tmp_path, sample={"count": 24, "seed": 1}, ablate=[{"schedule": ["linear"]}])
    y = np.random.default_rng(0).standard_normal(48)
    sweep = measured(few, y)
    found = adjusted(sweep, "weight_decay", "in_distribution_loss")
    cells = sweep.cells
    assert len(cells) == 48
    decay = np.log(cells["weight_decay"])
    features = np.column_stack([
        (decay - decay.min()) / (decay.max() - decay.min()), np.log(cells["width"]), np.log2(cells["batch_size"]),
        cells["final_learning_rate_fraction"], cells["schedule"] == "linear",
    ]).astype(float)  # fmt: skip
    fitted = LinearRegression().fit(features, y)
    assert found.effect is not None
    assert found.effect.value == pytest.approx(fitted.coef_[0], abs=1e-9)
    # What is drawn has the regression's slope and its residuals.
    assert LinearRegression().fit(found.x[:, None], found.partial).coef_[0] == pytest.approx(fitted.coef_[0], abs=1e-9)
    residuals = y - fitted.predict(features)
    drawn = found.partial - fitted.coef_[0] * (found.x - found.x.mean())
    np.testing.assert_allclose(drawn, residuals, atol=1e-9)
    points = np.repeat(np.arange(24), 2)
    without = [LinearRegression().fit(features[points != p], y[points != p]).coef_[0] for p in range(24)]
    error = np.sqrt(23 / 24 * np.sum((np.array(without) - np.mean(without)) ** 2))
    # Student's t with 24 points less 6 columns.
    assert (found.effect.low, found.effect.high) == pytest.approx(
        (fitted.coef_[0] - 2.1009 * error, fitted.coef_[0] + 2.1009 * error), rel=1e-4
    )


@pytest.mark.parametrize("truth", ["line", "curves", "uneven noise"])
def test_intervals_hold_the_truth(tmp_path: Path, truth: str) -> None:
    """95% of them, also where the other settings' effects are U-shaped and where the noise grows with the size."""
    of = space(tmp_path)
    rng = np.random.default_rng(5)
    frame = pd.DataFrame([cell.describe() for cell in of.cells])
    decay, batch = np.log10(frame["weight_decay"] / 0.1), np.log2(frame["batch_size"] / 128)
    plain = 0.3 * decay + 0.05 * batch - 0.2 * np.log(frame["parameters"] / 1e7)
    if truth == "curves":
        plain += 0.2 * batch**2 + 0.1 * np.exp(frame["final_learning_rate_fraction"])
        # Its own U, about the middle of its range, has no slope over it.
        plain += 0.3 * (decay - (decay.max() + decay.min()) / 2) ** 2
    scale = np.where(frame["size"] == "4M", 0.3, 0.05) if truth == "uneven noise" else 0.1
    # Over the range tested, which ends a little within the one sampled.
    expected = 0.3 * (decay.max() - decay.min())
    held, shown = 0, 0
    for _ in range(80):
        sweep = measured(of, (plain + scale * rng.standard_normal(len(frame))).to_numpy())
        found = adjusted(sweep, "weight_decay", "in_distribution_loss").effect
        assert found is not None
        held += found.low <= expected <= found.high
        shown += found.low > 0
    # Of 80 draws at 95%, three standard deviations are seven points.
    assert 0.875 <= held / 80 <= 1
    assert shown / 80 > 0.95


def test_what_cannot_be_told_apart_or_is_too_little(tmp_path: Path) -> None:
    of = space(tmp_path, sample={"count": 10, "seed": 1})
    found = adjusted(measured(of, np.arange(10.0)), "weight_decay", "in_distribution_loss")
    assert found.effect is not None
    assert not np.isfinite(found.effect.low)
    assert found.reason == "10 points for 5 columns; at least 8 more are needed for an interval"
    tied = measured(of, np.arange(10.0))
    both = tied.cells.assign(warmup_fraction=tied.cells["weight_decay"])
    found = adjusted(sweep_data.replace(tied, cells=both), "weight_decay", "in_distribution_loss")
    assert found.reason == "weight decay goes with the other settings: it cannot be told apart from them"
    same = sweep_data.replace(tied, cells=tied.cells.assign(weight_decay=0.1))
    assert adjusted(same, "weight_decay", "in_distribution_loss").reason == "no two cells differ in weight decay"


def test_a_setting_that_changes_the_number_of_parameters_is_told_from_the_width(tmp_path: Path) -> None:
    """The loss follows the width alone, and then the MLP too: what the one does is not put on the other."""
    over = {"size": {"choice": ["4M", "16M", "75M"]}, "mlp_ratio": {"powers_of": 2, "between": [1, 16]}}
    over |= {"weight_decay": {"log_uniform": [0.01, 0.5]}}
    of = space(tmp_path, over=over, ablate=[], base=SPACE["base"] | {"learning_rate": 0.01})
    rng = np.random.default_rng(0)
    width = np.array([cell.size.width for cell in of.cells])
    ratio = np.log2([cell.mlp_ratio for cell in of.cells]) / 4
    for planted in (0.0, -0.3):
        y = 3 - 0.3 * np.log(width / 64) + planted * ratio + 0.02 * rng.standard_normal(len(width))
        found = adjusted(measured(of, y), "mlp_ratio", "in_distribution_loss").effect
        assert found is not None
        assert found.low <= planted <= found.high
        assert found.high - found.low < 0.05


def test_seeds_and_kinds_that_were_sampled(tmp_path: Path) -> None:
    """No cell is left out for its seed; a cell without a precision of its own is another kind than one in bfloat16."""
    over = {
        "seed": {"uniform": [0, 1000]},
        "precision": {"choice": [None, "bfloat16"]},
        "batch_size": {"choice": [32, 64]},
    }
    of = space(tmp_path, over=over, base=SPACE["base"] | {"size": "4M"}, sample={"count": 64, "design": "random"})
    sweep = measured(of, np.array([cell.precision == "bfloat16" for cell in of.cells], dtype=float))
    assert len(sweep.design.cells) == len(of.cells)
    assert sweep.kinds == ["precision"]
    found = adjusted(sweep, "batch_size", "in_distribution_loss").effect
    assert found is not None
    # All that differs is explained by the precision.
    assert abs(found.value) < 1e-9


def test_the_analysis_of_a_sampled_design(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The planted effects have their signs; the page and the summary say how the cells were chosen and compared."""
    hypotheses = {"hypotheses": [
        {"id": 1, "says": "more decay, more rank", "tests": [
            {"trend": {"of": "effective_rank_W", "over": "weight_decay"}, "expect": "> 0"}]},
        {"id": 2, "says": "a U over the batch size", "tests": [
            {"turn": {"of": "loss", "over": "batch_size", "part": "rise"}, "expect": "> 0"}]},
        {"id": 4, "says": "at equal steps", "tests": [
            {"trend": {"of": "loss", "over": "batch_size", "equal_steps": True}, "expect": "> 0"}]},
        {"id": 3, "says": "more decay, more loss", "tests": [
            {"trend": {"of": "loss", "over": "weight_decay"}, "expect": "> 0"}]},
        {"id": 5, "says": "mistyped", "tests": [
            {"trend": {"of": "cosine_w", "over": "weight_decay"}, "expect": "> 0"}]},
    ]}  # fmt: skip
    (tmp_path / "own.hypotheses.yaml").write_text(yaml.safe_dump(hypotheses), encoding="utf-8")
    of = space(tmp_path, sample={"count": 24, "seed": 1}, hypotheses="own.hypotheses.yaml")
    whole = figures.catalogue
    monkeypatch.setattr(
        figures, "catalogue", lambda sweep, *tables: [entry for entry in whole(sweep) if entry.number in (8, 16, 20)]
    )
    store = Store(str(tmp_path / "store"))
    example.fill(store, of)
    arguments = ["analyze", str(tmp_path / "space.yaml"), "--store", str(tmp_path / "store")]
    with pytest.raises(SystemExit, match=r"^0$"):
        main(
            [
                *arguments,
                "--output",
                str(tmp_path / "report"),
                "--next",
                str(tmp_path / "next.yaml"),
                "--hours",
                "1e9",
                "--json",
            ]
        )
    card = pd.read_csv(tmp_path / "report" / "claims.csv")
    assert list(card["verdict"]) == ["supported", "undecided", "undecided", "undecided", "undecided"]
    assert card["reason"][2] == "batch size was sampled: no two cells have equal steps and all else"
    assert card["effect"][0].endswith("weight decay, adjusted for the other settings")
    assert card["reason"][1] == (
        "batch size was sampled: of its effects only a trend from the lowest to the highest has a test"
    )
    # The next points: as many as the third claim needs, or none would do.
    needs = pd.read_csv(tmp_path / "report" / "next.csv")
    assert list(needs["claim"]) == [2, 4, 3, 5]
    number = needs["needed"][2]
    assert number > 24
    more = load(tmp_path / "next.yaml")
    assert len(more.cells) == number
    assert more.cells[:24] == of.cells
    hours = sum(cell.flops for cell in more.cells[24:]) / 2e14 / 3600  # As `example` has it, which counts no steps.
    assert needs["core_hours"][2] == pytest.approx(hours, rel=0.02)
    assert caplog.messages == ["a test is undecided: hypothesis 5: no column cosine_w; did you mean 'cosine_W'?"]
    answer = json.loads(capsys.readouterr().out)
    assert answer["next"] == {"file": str(tmp_path / "next.yaml"), "cells": number, "new": number - 24}
    assert [one["verdict"] for one in answer["claims"]] == list(card["verdict"])
    effects = pd.read_csv(tmp_path / "report" / "effects.csv").set_index(["hyperparameter", "column"])
    assert (effects["comparisons"] == 0).all()
    # example.simulate: + 0.075 for each factor of two of the batch size, + 0.1 for each of ten of the decay.
    for name, planted in (("batch_size", 0.075 * 4), ("weight_decay", 0.1 * np.log10(50))):
        row = effects.loc[(name, "effective_rank_W")]
        assert row["low"] < planted * 1.02
        assert row["high"] > planted * 0.95
        assert row["low"] > 0
    drawn = pd.read_csv(tmp_path / "report" / "figures" / "figures.csv").set_index("name")
    assert drawn.loc["batch_size", "title"].startswith(
        "Raising the batch size, with the other settings adjusted for, raises"
    )
    summary = (tmp_path / "report" / "summary.md").read_text(encoding="utf-8")
    assert "24 points (sobol, seed 1) over batch_size, final_learning_rate_fraction, size, weight_decay" in summary
    assert "no two cells are equal but for one setting" in summary
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "how they were chosen" in page
    assert "weight decay (0.0" in page
    # A setting whose name ends as a task's does is no task.
    assert "z_and_metrics" not in drawn.index
