"""What an analysis makes of models that others trained: of what is not known, and of losses that do not compare."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from raysweep.analysis import over_training, plots, regressions, side_by_side, suite_data, sweep_data, views
from raysweep.analysis.analyze import analyze_sweep
from raysweep.errors import UserError
from raysweep.exchange.published import read_published
from raysweep.space.hypotheses import Hypotheses
from raysweep.space.read import load_to_read


def models(**changes: Any) -> pd.DataFrame:
    """Thirty models of three tokenizers, with planted numbers."""
    rng = np.random.default_rng(0)
    count = 30
    parameters = np.repeat([1e6, 4e6, 16e6], 10)
    loss = 4 - 0.1 * np.log(parameters) + 0.05 * rng.standard_normal(count)
    cells = pd.DataFrame(
        {
            "id": [f"m{i}" for i in range(count)], "size": [f"{p:.0f}" for p in parameters], "parameters": parameters,
            "tokens": 1e9, "flops": 6 * parameters * 1e9, "steps": 1000, "batch_size": 32, "sequence_length": 2048,
            "width": np.repeat([64, 128, 256], 10), "seed": 1, "corpus": [f"c{i}" for i in range(10)] * 3, "status": "done",
            "tokenizer_sha256": ["a", "b", "c"] * 10, "in_distribution_loss": loss,
            "in_distribution_bits_per_byte": loss / np.tile([2.0, 3.0, 4.0], 10), "out_of_distribution_loss": loss + 0.2,
            "out_of_distribution_bits_per_byte": (loss + 0.2) / 3, "quantized_4bit_in_distribution_loss": loss + 0.1,
            "quantized_4bit_out_of_distribution_loss": loss + 0.3, "effective_rank_W": rng.uniform(0.4, 0.9, count),
        }
    )  # fmt: skip
    return cells.assign(**changes)


def test_losses_of_several_tokenizers_are_taken_for_each_byte() -> None:
    cells = models()
    units = {name: "nats per token" for name in cells if name.endswith("_loss")}
    cells["z_loss"] = 1e-4  # A setting, and no loss.
    found, said = suite_data._comparable(cells, units)
    pd.testing.assert_series_equal(
        found["in_distribution_loss"], cells["in_distribution_bits_per_byte"], check_names=False
    )
    pd.testing.assert_series_equal(
        found["out_of_distribution_loss"], cells["out_of_distribution_bits_per_byte"], check_names=False
    )
    # Of the same text: with as many bits for each nat as the loss before has.
    wanted = cells["quantized_4bit_in_distribution_loss"] / np.tile([2.0, 3.0, 4.0], 10)
    np.testing.assert_allclose(found["quantized_4bit_in_distribution_loss"], wanted)
    assert "quantized_4bit_out_of_distribution_loss" not in found
    assert said["losses"].startswith("in bits per byte, since the models have 3 tokenizers; left out")
    assert "quantized_4bit_out_of_distribution_loss" in said["losses"]
    assert (found["z_loss"] == 1e-4).all()
    assert units["in_distribution_loss"] == "bits per byte"
    # Of other sequences nobody knows it.
    apart, _ = suite_data._comparable(cells, dict.fromkeys(units, "nats per token"), same_text=False)
    assert "quantized_4bit_in_distribution_loss" not in apart
    # Of one tokenizer nothing is changed.
    same, nothing = suite_data._comparable(models(tokenizer_sha256="a"), {})
    assert not nothing
    pd.testing.assert_frame_equal(same, models(tokenizer_sha256="a"))


def sweep(cells: pd.DataFrame) -> sweep_data.SweepData:
    rows = pd.DataFrame(
        [
            {
                "cell": cell,
                "step": step,
                "tokens": step * 1e6,
                "validation_loss": 4 - 0.1 * step,
                "effective_rank_W": 0.5,
            }
            for cell in cells["id"]
            for step in (0, 1, 2)
        ]
    )
    settings = tuple(
        name for name in ("id", "size", "parameters", "tokens", "seed", "corpus", "width") if name in cells
    )
    about = pd.DataFrame({"model": cells["id"], "not known": "weight_decay"})
    return sweep_data.from_tables(
        "theirs", suite_data.as_cells(cells), rows, len(cells), settings=settings, models=about
    )


@pytest.mark.parametrize(
    ("seeds", "kept"), [(None, 30), ([1] * 29 + [None], 30), (["default", "small-aux-2"] * 15, 30)]
)
def test_models_whose_seed_is_not_known_or_a_name_are_of_the_design(seeds: list[Any] | None, kept: int) -> None:
    models_ = models().drop(columns="seed") if seeds is None else models(seed=seeds)
    of_them = sweep(models_)
    assert len(of_them.design.cells) == kept
    assert len(views.views(of_them))  # The comparison between seeds takes their names.


def test_models_of_two_learning_rates_are_two_configurations() -> None:
    cells = models(learning_rate=np.tile([1e-3, 1e-2], 15), corpus="c", weight_decay=0.1)
    one = sweep_data.from_tables(
        "theirs", suite_data.as_cells(cells), pd.DataFrame({"cell": []}), 30,
        settings=("id", "size", "width", "parameters", "learning_rate", "weight_decay", "corpus"),
    )  # fmt: skip
    assert len(set(one.configurations)) == 2 * 3
    assert "base_learning_rate" in one.hyperparameters


def test_a_figure_has_every_model_and_its_own_unit() -> None:
    cells = models(batch_size=[32.0, np.nan] * 15, weight_decay=np.nan, corpus="c")
    column = "quantized_4bit_in_distribution_loss"
    cells = cells.assign(**{f"{column}_change": 0.1, f"{column}_before": cells["in_distribution_loss"]})
    one = replace(sweep(cells), units={column: "bits per byte"})
    figure = plots.loss_by_size(one, "in_distribution", "effective_rank_W")
    drawn = sum(len(line.get_xdata()) for ax in figure.axes for line in ax.lines if line.get_marker() == "o")
    assert drawn == 30
    assert "batch not known" in [text.get_text() for of in figure.legends for text in of.get_texts()]
    figure = plots.quantization(one, "quantized_in_distribution")
    labels = [ax.get_ylabel() for ax in figure.axes]
    assert "rise in loss (bits per byte)" in labels
    assert not [label for label in labels if "nats" in label]


def test_what_needs_tokens_has_a_reason_where_nobody_knows_them() -> None:
    known, _ = regressions.regressions(sweep(models()), draws=50, jobs=1)
    unknown, laws = regressions.regressions(
        sweep(models(tokens=np.nan, flops=np.nan, batch_size=np.nan)), draws=50, jobs=1
    )
    of_tokens = unknown["statistic"].isin(regressions._OF_SIZE)
    assert (unknown.loc[of_tokens, "reason"] == "tokens, and so FLOP, are not known of 30 of 30 models").all()
    assert unknown.loc[of_tokens, "value"].isna().all()
    assert laws["reason"].str.startswith("tokens, and so FLOP, are not known").all()
    # What needs none is what it was.
    raw = [of[of["statistic"] == "raw_spearman"]["value"].reset_index(drop=True) for of in (known, unknown)]
    assert raw[0].notna().all()
    pd.testing.assert_series_equal(*raw)


def test_tokens_that_are_given_outright_serve_as_well() -> None:
    """Published models have tokens where nobody knows their batch size."""
    by_steps, _ = regressions.regressions(sweep(models(steps=1000, batch_size=500, sequence_length=2000)), 50, 1)
    outright, _ = regressions.regressions(sweep(models(batch_size=np.nan, sequence_length=np.nan)), 50, 1)
    pd.testing.assert_series_equal(by_steps["value"], outright["value"])


def test_a_line_for_each_model_over_training() -> None:
    drawn = over_training.draw(sweep(models()))
    axes = drawn.axes
    assert len(axes) == 2
    assert {len(ax.lines) for ax in axes} == {30}
    assert list(axes[0].lines[0].get_xdata()) == [1e6, 2e6]
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == ["1000000", "4000000", "16000000"]


def test_a_sweep_beside_itself_agrees_in_everything(tmp_path: Path) -> None:
    mini = sweep_data.published(read_published(Path("results/mini")))
    small = mini.where("width <= 16")
    found = side_by_side.compare(small, small, lambda *step: None)
    assert (found.card["verdict_a"] == found.card["verdict_b"]).all()
    assert set(found.card["agreement"]) <= {"holds in both", "contradicted in both", "undecided in both"}
    assert (found.tests["value_a"].fillna(0) == found.tests["value_b"].fillna(0)).all()
    side_by_side.write(found, small, small, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "comparison.csv", "comparison.md", "comparison.png", "comparison.html"
    }  # fmt: skip
    other = load_to_read(Path("search_spaces/demo.yaml"))
    assert other.hypotheses is None or isinstance(other.hypotheses, Hypotheses)

    claims = small.hypotheses.model_copy(update={"hypotheses": small.hypotheses.hypotheses[:2]})
    with pytest.raises(UserError, match="have other hypotheses"):
        side_by_side.compare(small, replace(small, hypotheses=claims), lambda *step: None)


def test_a_report_has_the_models_and_what_is_not_known(tmp_path: Path) -> None:
    analyze_sweep(sweep(models(tokens=np.nan, flops=np.nan, batch_size=np.nan)), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "The models, and what is not known of them" in page
    assert "<td>weight_decay</td>" in page
    assert "tokens per cell" in page
    assert "not known" in page
    assert (tmp_path / "figures" / "further_over_training.png").exists()
