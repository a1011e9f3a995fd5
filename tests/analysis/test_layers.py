"""What was measured across layers: planted in one of them, it is found there and nowhere else."""

import numpy as np
import pandas as pd
import pytest

from raysweep.analysis import figures, layer_plots, layers
from raysweep.analysis import sweep_data as sweep
from raysweep.analysis.columns import BASE_RATE, of_whole_model, place
from raysweep.analysis.sweep_data import SweepData
from raysweep.space.measure import column, matrix_names
from raysweep.space.size import Size

LAYERS = [f"blocks.{layer}.mlp.up" for layer in range(4)]


@pytest.fixture(scope="module")
def planted(simulated: SweepData) -> SweepData:
    """`gini` of the third block follows what is left of the loss; that of the others, and of the embedding, is noise."""
    cells = simulated.cells
    rng = np.random.default_rng(0)
    kept = [c for c in cells if not c.endswith(("_loss", "_change", "_W", "_H")) and c != BASE_RATE]
    own = rng.standard_normal(len(cells))
    loss = 10 - 0.3 * np.log(cells["parameters"]) + 0.05 * own
    values = {name: rng.standard_normal(len(cells)) for name in [*LAYERS, "embedding"]}
    values["blocks.2.mlp.up"] = own + 0.3 * rng.standard_normal(len(cells))
    wide = {column("gini", matrix): of_cells for matrix, of_cells in values.items()}
    rows = [
        {"cell": cell, "step": at, "matrix": matrix, "metric": "gini", "value": float(of_cells[i])}
        for i, (cell, steps) in enumerate(zip(cells["id"], cells["steps"], strict=True))
        for matrix, of_cells in values.items()
        for at in (0, int(steps))
    ]  # fmt: skip
    table = cells[kept].assign(in_distribution_loss=loss, **wide)
    return sweep.from_tables("planted", table, pd.DataFrame({"cell": [], "step": []}), measures=pd.DataFrame(rows))


def test_it_is_found_in_its_layer_alone(planted: SweepData) -> None:
    found = layers.layers(planted, draws=400).set_index("layer")
    assert list(found.index) == ["0", "1", "2", "3"]
    assert set(found["part"]) == {"blocks.*.mlp.up"}
    assert found.loc["2", "partial_low"] > 0.8
    assert found.loc["2", "added_low"] > 0
    for layer in ("0", "1", "3"):
        assert found.loc[layer, "partial_low"] < 0 < found.loc[layer, "partial_high"]
    values = planted.cells[column("gini", "blocks.1.mlp.up")]
    assert found.loc["1", "mean"] == pytest.approx(values.mean())
    assert found.loc["1", "sd"] == pytest.approx(values.std())


def test_the_figure_shows_every_layer_beside_w_and_names_the_largest(planted: SweepData) -> None:
    found = layers.layers(planted, draws=400)
    statistics = pd.DataFrame([
        {"task": task, "metric": "gini_unembedding", "statistic": "predictive_r2", "value": value}
        for task, value in (("in_distribution", 0.021), ("other", 0.9))
    ])  # fmt: skip
    assert layer_plots.metrics(found) == ["gini"]
    figure = layer_plots.added(planted, found, statistics, "gini")
    (panel,) = [ax for ax in figure.axes if ax.get_visible()]
    (dots,) = [line for line in panel.get_lines() if line.get_marker() == "o"]
    assert list(np.asarray(dots.get_ydata())) == list(found["added_r2"])
    assert [tick.get_text() for tick in panel.get_xticklabels()] == ["0", "1", "2", "3"]
    (of_w,) = [line for line in panel.get_lines() if line.get_linestyle() == "--"]
    assert set(np.asarray(of_w.get_ydata())) == {0.021}
    title = figure.get_suptitle().replace("\n", " ")
    assert title.startswith(
        "Of the layers the gini of blocks.2.mlp.up adds most to predictions of the in-distribution loss: R²"
    )
    assert title.endswith("; that of W adds +0.02")
    noise = found[found["layer"] != "2"].assign(added_low=-0.1)
    without = layer_plots.added(planted, noise, statistics.iloc[:0], "gini").get_suptitle().replace("\n", " ")
    assert without == "No layer's gini clearly adds to predictions of the in-distribution loss"


def test_the_figure_has_layers_by_depth_and_names_one_that_is_clear(planted: SweepData) -> None:
    row = {"part": "blocks.*.mlp.up", "metric": "gini", "added_high": 0.3}
    rows = [
        row | {"matrix": f"blocks.{layer}.mlp.up", "layer": layer, "added_r2": value, "added_low": low}
        for layer, value, low in (("0", 0.01, -0.1), ("10", 0.05, -0.01), ("2", 0.04, 0.01), ("final", 0.0, -0.1))
    ]
    statistics = pd.DataFrame(columns=["task", "metric", "statistic", "value"])
    figure = layer_plots.added(planted, pd.DataFrame(rows), statistics, "gini")
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["0", "2", "10", "final"]
    assert "the gini of blocks.2.mlp.up adds most" in figure.get_suptitle().replace("\n", " ")
    found = layers.layers(planted, draws=400)
    entries = [one for one in figures.catalogue(planted, statistics, found) if one.name.startswith("layers_")]
    assert [entry.stem for entry in entries] == ["further_layers_gini"]
    assert entries[0].draw(planted).get_suptitle().startswith("Of the layers")


def test_what_is_of_the_whole_model_takes_part_in_regressions(planted: SweepData) -> None:
    assert planted.metrics == ("gini_embedding",)


def test_the_columns_of_the_unembedding_are_not_there_twice() -> None:
    pairs = [
        ("effective_rank", "unembedding"), ("gini", "unembedding"), ("cosine", "unembedding[rare]"),
        ("cka(hidden.final)", "hidden.0"),
    ]  # fmt: skip
    measures = pd.DataFrame(pairs, columns=["metric", "matrix"])
    assert of_whole_model(measures) == ["gini_unembedding", "cosine_unembedding_rare"]


def test_the_place_of_every_matrix() -> None:
    for name in matrix_names(Size(width=8, depth=2, heads=2)):
        found = place(name)
        if "blocks" in name or "hidden" in name:
            assert found is not None
            part, layer = found
            assert part.replace("*", layer, 1) == name
        else:
            assert found is None
    assert place("hidden.final[all]") == ("hidden.*[all]", "final")


def test_the_report_draws_every_cell_with_its_values(planted: SweepData) -> None:
    found = layers.explorer(planted, layers.layers(planted, draws=400))
    assert found is not None
    (cell, at), series = planted.cells.loc[5, ["id", "steps"]], found["series"]["blocks.*.mlp.up"]["gini"]
    assert series.keys() == set(planted.cells["id"])
    assert series[cell]["layers"] == ["0", "1", "2", "3"]
    assert series[cell]["at"] == [0, 1]
    ends = [row[-1] for row in series[cell]["values"]]
    assert ends == pytest.approx([planted.cells.loc[5, column("gini", m)] for m in LAYERS], rel=1e-4)
    assert [row["layer"] for row in found["correlations"]["blocks.*.mlp.up|gini"]] == ["0", "1", "2", "3"]
    assert at > 1


def test_nothing_was_measured(simulated: SweepData) -> None:
    assert layers.layers(simulated).empty
    assert layers.explorer(simulated, layers.layers(simulated)) is None
