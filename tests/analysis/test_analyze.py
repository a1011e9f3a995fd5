"""`raysweep analyze` on the simulated sweep: every file, every figure, and the page in a real browser."""

import itertools
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from raysweep.analysis import analyze, drawing, example, figures, plots
from raysweep.analysis import sweep_data as sweep
from raysweep.analysis.columns import BASE_RATE, words
from raysweep.analysis.sweep_data import SweepData
from raysweep.errors import UserError
from raysweep.space.hypotheses import paper_hypotheses
from raysweep.store import Store


def raysweep(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "raysweep.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300)


@pytest.fixture(scope="module")
def output(example_folder: Path) -> Path:
    folder = example_folder / "report"
    done = raysweep("analyze", "simulated.yaml", "--store", "store", "--output", folder, "--json", cwd=example_folder)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["cells"] == {"planned": 108, "analysed": 108}
    assert [claim["claim"] for claim in answer["claims"]] == [
        hypothesis.id for hypothesis in paper_hypotheses().hypotheses
    ]
    return folder


def test_the_tables_are_there_with_their_columns(output: Path) -> None:
    found = pd.read_csv(output / "regressions.csv", keep_default_na=False, na_values=[""])
    assert list(found.columns[:8]) == ["task", "metric", "statistic", "value", "low", "high", "n", "reason"]
    assert len(pd.read_csv(output / "claims.csv")) == len(paper_hypotheses().hypotheses)
    laws = pd.read_csv(output / "scaling_law.csv")
    assert {"E", "A", "B", "alpha", "beta", "r2", "agreement_of_starts"} == set(laws["parameter"])
    # The forgetting has a B that is too large for a float.
    beyond = laws[~np.isfinite(laws["value"])]
    assert len(beyond)
    assert beyond["reason"].str.contains("beyond any number").all()


def test_the_papers_tables_stand_beside_ours(output: Path) -> None:
    names = sorted(path.stem for path in (output / "tables").glob("table_*.csv"))
    assert [name.split("_")[1] for name in names] == list("23456789")
    table = pd.read_csv(output / "tables" / "table_2_in_distribution.csv").set_index(["statistic", "metric"])
    # The first line of the paper's Table 2.
    assert table.loc[("raw_spearman", "effective_rank_W"), "paper"] == -0.699
    text = (output / "tables" / "table_2_in_distribution.md").read_text()
    assert "paper \N{MINUS SIGN}0.699" in text
    latex = (output / "tables" / "table_2_in_distribution.tex").read_text()
    assert latex.count("{") == latex.count("}")
    assert r"\textit{paper} & $-0.699$ & $0.601$ & $-0.249$" in latex


def rows_of(text: str, title: str) -> list[list[str]]:
    """The cells of the pipe table under a title, without its head."""
    lines = text.partition(f"### {title}\n")[2].partition("\n### ")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("|")][2:]


def test_the_summary_says_what_the_tables_say(output: Path) -> None:
    text = (output / "summary.md").read_text(encoding="utf-8")
    card = pd.read_csv(output / "claims.csv")
    claims = rows_of(text, "The paper's claims")
    assert [(row[0], row[2]) for row in claims] == [
        (str(c), f"**{v}**") for c, v in card[["claim", "verdict"]].to_numpy()
    ]
    tables = rows_of(text, "The effective rank of W in Tables 2-9")
    found = pd.read_csv(output / "regressions.csv").set_index(["task", "metric", "statistic"])["value"]
    raw = found.loc[("in_distribution", "effective_rank_W", "raw_spearman")]
    assert tables[0][0] == "2: in-distribution loss"
    assert tables[0][1].startswith(f"{raw:.3f}".replace("-", "\N{MINUS SIGN}"))
    assert tables[0][1].endswith("<br>paper \N{MINUS SIGN}0.699")
    assert [row[0].partition(":")[0] for row in tables] == list("23456789")
    effects = pd.read_csv(output / "effects.csv").set_index(["column", "hyperparameter"])
    head, *rows = [line for line in text.partition("### Effects")[2].splitlines() if line.startswith("| ")]
    position = head.split(" | ").index("batch size")
    entry = next(row for row in rows if row.startswith("| Effective rank of W")).split(" | ")[position]
    assert entry.startswith(f"**{effects.loc[('effective_rank_W', 'batch_size'), 'effect']:.3g} [")


def test_every_figure_of_the_paper_is_drawn(output: Path) -> None:
    drawn = pd.read_csv(output / "figures" / "figures.csv", keep_default_na=False)
    numbers = [int(number) for number in drawn["figure"] if number != ""]
    assert numbers == list(range(2, 28))
    assert (drawn["reason"] == "").all()
    for name in drawn["file"]:
        picture = Image.open(output / "figures" / name)
        assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 50, f"{name} is nearly empty"
        assert (output / "figures" / name).with_suffix(".pdf").read_bytes().startswith(b"%PDF")
    assert drawn["title"].str.len().min() > 20


def test_a_title_names_the_correlation_that_it_prints(output: Path, simulated: SweepData) -> None:
    """Figure 7 has panels of the loss after fine-tuning and of its change."""
    title = pd.read_csv(output / "figures" / "figures.csv").set_index("name").loc["forgetting", "title"]
    parts = re.fullmatch(
        r"(.+) goes most with the (.+) \(Spearman (.+) \[(.+), (.+)\]\), sizes and training choices mixed", title
    )
    assert parts is not None
    columns = {words(column).lower(): column for column in simulated.cells}
    y, x = (simulated.cells[columns[part.lower()]] for part in parts.groups()[:2])
    rho, low, high = (float(part.replace("\N{MINUS SIGN}", "-")) for part in parts.groups()[2:])
    assert rho == pytest.approx(x.corr(y, "spearman"), abs=0.0051)
    assert low < rho < high
    assert low * high > 0, "a title says that two go together where the interval leaves out zero"


def test_a_title_does_not_say_what_its_interval_does_not(simulated: SweepData) -> None:
    """Twelve cells with noise for a loss: nothing goes with it."""
    few = simulated.of(simulated.cells.index.isin(simulated.cells.index[:12]))
    few.cells["in_distribution_loss"] = np.random.default_rng(3).standard_normal(12)
    title = plots.loss_by_size(few, "in_distribution", "effective_rank_W").get_suptitle().replace("\n", " ")
    assert "do not clearly go together" in title
    few = simulated.of(simulated.cells.index.isin(simulated.cells.index[:4]))
    title = plots.loss_by_size(few, "in_distribution", "effective_rank_W").get_suptitle().replace("\n", " ")
    assert "of too few models for an interval" in title


def test_what_is_the_same_in_every_cell_has_no_figure(simulated: SweepData) -> None:
    """As the accuracy of models that answer every question alike."""
    same = simulated.of(simulated.cells.index.isin(simulated.cells.index[:12]))
    same.cells["in_distribution_loss"] = 0.36
    with pytest.raises(drawing.NoData, match=r"^in-distribution loss is 0.36 in every cell$"):
        plots.against(same, "in_distribution", [("effective_rank_W", "in_distribution_loss")])


def test_runs_of_few_steps_are_hollow(simulated: SweepData) -> None:
    figure = plots.loss_by_size(simulated, "in_distribution", "effective_rank_W")
    hollow = {
        (x, y)
        for ax in figure.axes
        for line in ax.get_lines()
        if line.get_markerfacecolor() == "none"
        for x, y in line.get_xydata()
    }
    few = simulated.cells["steps"] <= 61_036  # half of the 122,070 that most have
    expected = simulated.cells[few][["effective_rank_W", "in_distribution_loss"]]
    assert hollow == set(expected.itertuples(index=False, name=None))


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("in-distribution loss", ["in-distribution loss"]),
        ("effective rank of W (fraction of the width)", ["effective rank of W", "(fraction of the width)"]),
        ("one two three four five six seven eight nine", ["one two three four five", "six seven eight nine"]),
    ],
)
def test_a_long_label_has_no_word_alone_on_a_line(text: str, lines: list[str]) -> None:
    assert drawing.wrapped(text, 40).split("\n") == lines


def test_only_our_own_files_are_replaced(example_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = [
        tmp_path / name
        for name in (
            "figures/flow_chart.png", "figures/figure_07_final_by_hand.svg", "figures/further_reading.bib",
            "tables/my_table.tex", "tables/further_notes.md",
        )
    ]  # fmt: skip
    old = [tmp_path / "figures" / f"figure_02_before.{ending}" for ending in ("png", "pdf")]
    old += [tmp_path / "tables" / f"further_task.{ending}" for ending in ("csv", "md", "tex")]
    for path in mine + old:
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
    (tmp_path / "figures" / "figures.csv").write_text(
        "figure,name,file,title,reason\n2,x,figure_02_before.png,,\n3,y,,,none\n"
    )
    load = sweep.load
    monkeypatch.setattr(figures, "catalogue", lambda found, *tables: [])
    monkeypatch.setattr(sweep, "load", lambda store, space: few_cells(load(store, space)))
    analyze.analyze_sweep(sweep.load(Store(str(example_folder / "store")), example.space()), tmp_path)
    assert all(path.exists() for path in mine)
    assert not any(path.exists() for path in old)


def few_cells(found: SweepData) -> SweepData:
    return sweep.from_tables("few", found.cells.head(1).drop(columns=[BASE_RATE]), found.trajectories, 108)


def test_a_figure_is_drawn_from_what_was_measured(simulated: SweepData, tmp_path: Path) -> None:
    """One metric that hardly any cell has leaves the others; sizes keep their colours where some have no cells."""
    cells = simulated.cells.drop(columns=[BASE_RATE])
    cells.loc[1:, "cosine_H"] = None
    cells.loc[cells["size"] == "4M", "finetune_python_loss"] = None
    part = sweep.from_tables("part", cells, simulated.trajectories.assign(validation_loss=float("nan")))
    entries = {entry.number: entry for entry in figures.catalogue(part)}
    assert len(entries[20].draw(part).axes) >= 4
    tuned = entries[6].draw(part)
    colours = {line.get_label(): line.get_color() for line in tuned.legends[0].get_lines()}
    drawn = {line.get_color() for line in tuned.axes[0].get_lines()}
    assert drawn == {colours[size] for size in ("8M", "16M", "28M", "40M", "75M")}
    assert "validation loss" not in figures._save(entries[5], part, tmp_path)["title"]


def test_nothing_of_the_analysis_imports_ray_or_torch() -> None:
    code = (
        "import sys, analysis.analyze, analysis.example; "
        "sys.exit(', '.join(m for m in ('ray', 'torch', 'transformers') if m in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_sweep_that_is_not_finished_is_analysed_as_far_as_it_is(
    example_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No cell beyond the two smallest sizes and no fine-tuning yet, one cell without its quantization; by a condition that
    holds for all."""
    shutil.copytree(example_folder / "store", tmp_path / "store")
    space = example.space()
    for cell in space.cells:
        if cell.size.label not in ("4M", "8M"):
            (tmp_path / "store" / "cells" / f"{cell.id}.parquet").unlink()
    for folder in (tmp_path / "store" / "evaluations").glob("finetune_*"):
        shutil.rmtree(folder)
    quantized = next((tmp_path / "store" / "evaluations").glob("quantized-*"))
    (quantized / f"{space.cells[0].id}.parquet").unlink()
    store = Store(str(tmp_path / "store"))
    monkeypatch.setattr(
        figures, "catalogue", lambda found, *tables: [e for e in CATALOGUE(found) if e.number in (2, 4, 6, 24)]
    )
    steps: list[tuple[str, int, int]] = []
    answer = analyze.analyze_sweep(
        sweep.load(store, space).where("steps > 0"), tmp_path / "report", lambda *step: steps.append(step)
    )
    assert (answer.analysed, answer.planned) == (36, 108)
    assert {("regressions", 6, 6), ("figures", 4, 4)} <= set(steps)
    page = (tmp_path / "report" / "report.html").read_text()
    assert "Only the cells for which <code>steps &gt; 0</code>: 36 of 108." in page
    summary = (tmp_path / "report" / "summary.md").read_text()
    assert summary.startswith("Only the cells for which `steps > 0`: 36 of 108.\n")
    found = pd.read_csv(tmp_path / "report" / "regressions.csv", keep_default_na=False)
    assert set(found[found["task"] == "quantized_in_distribution"]["n"]) == {35}
    laws = pd.read_csv(tmp_path / "report" / "scaling_law.csv")
    assert set(laws["reason"]) == {"the law needs 3 sizes and 3 token budgets, not 2 and 4"}
    drawn = pd.read_csv(tmp_path / "report" / "figures" / "figures.csv", keep_default_na=False).set_index("figure")
    assert drawn.loc[6, "reason"] == "no cell has Python loss after fine-tuning on Python"
    assert drawn.loc[2, "file"] != ""


CATALOGUE = figures.catalogue


def test_what_is_beyond_the_paper_gets_its_figures(simulated: SweepData, tmp_path: Path) -> None:
    cells = simulated.cells.drop(columns=[BASE_RATE])
    more = cells.assign(id=cells["id"] + "-x", beta2=0.99, effective_rank_W=cells["effective_rank_W"] + 0.01)
    study = sweep.from_tables("next", pd.concat([cells, more], ignore_index=True), simulated.trajectories)
    extra = [entry for entry in figures.catalogue(study) if entry.name == "beta2"]
    assert [entry.stem for entry in extra] == ["further_beta2"]
    row = figures._save(extra[0], study, tmp_path)
    assert row["reason"] == ""
    assert row["title"] == "Raising the beta2 at all else equal raises the effective rank of W by 0.01"


def test_a_condition_chooses_cells(simulated: SweepData) -> None:
    chosen = simulated.where("width >= 256 and weight_decay == 0.1")
    wanted = simulated.cells[(simulated.cells["width"] >= 256) & (simulated.cells["weight_decay"] == 0.1)]
    assert 0 < len(wanted) < len(simulated.cells)
    assert list(chosen.cells["id"]) == list(wanted["id"])
    assert list(chosen.cells.index) == list(range(len(wanted)))


@pytest.mark.parametrize(
    ("condition", "says"),
    [
        ("stepz > 1", "name 'stepz' is not defined"),
        ("steps >", "invalid syntax"),
        ("steps + 1", "not true or false for each cell"),
        ("steps < 0", "holds for none of the 108 finished cells"),
    ],
)
def test_a_condition_that_chooses_nothing_is_one_clear_line(simulated: SweepData, condition: str, says: str) -> None:
    with pytest.raises(UserError, match=rf"^--where '{re.escape(condition)}'.* {re.escape(says)}"):
        simulated.where(condition)


def test_an_empty_store_is_one_clear_line(example_folder: Path, tmp_path: Path) -> None:
    done = raysweep("analyze", "simulated.yaml", "--store", tmp_path, "--output", tmp_path / "r", cwd=example_folder)
    assert done.returncode == 1
    said = f"no sweep has begun in {tmp_path}: name another --store, or begin one there with `raysweep run`"
    assert done.stderr == f"raysweep: error: {said}\n"


def test_an_output_that_cannot_be_written_is_one_clear_line(example_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match=r"taken cannot be written: (Not a directory|File exists)"):
        analyze.analyze_sweep(sweep.load(Store(str(example_folder / "store")), example.space()), tmp_path / "taken")


@pytest.fixture(scope="module")
def page(browser: Any, output: Path) -> Any:
    opened = browser.new_page(viewport={"width": 1200, "height": 900})
    opened.said, opened.asked = [], []
    # Software in place of a GPU is slow, and Chromium says so.
    opened.on("console", lambda message: opened.said.extend([message.text] * ("GPU stall" not in message.text)))
    opened.on("pageerror", lambda error: opened.said.append(str(error)))
    opened.on("request", lambda request: opened.asked.append(request.url))
    opened.goto((output / "report.html").as_uri())
    opened.wait_for_selector("#cells tbody tr")
    return opened


def test_the_page_asks_for_nothing_and_says_nothing(page: Any, output: Path) -> None:
    assert page.said == []
    outside = [url for url in page.asked if not url.startswith("data:")]
    assert outside == [(output / "report.html").as_uri()]
    assert page.locator("#scorecard tr.claim").count() == len(paper_hypotheses().hypotheses)
    assert page.locator("figure img").count() == 28
    assert page.evaluate("[...document.images].every(image => image.naturalWidth > 100)")


def looked_at(page: Any, plot: str) -> Any:
    """The plot, drawn: what nobody looks at is not."""
    page.locator(f"#{plot}").scroll_into_view_if_needed()
    page.wait_for_selector(f"#{plot} .main-svg")
    return page.locator(f"#{plot}")


def test_the_controls_of_the_scatter_plot_work(page: Any, simulated: SweepData) -> None:
    scatter = looked_at(page, "scatter")
    page.wait_for_function("document.querySelectorAll('#scatter .point').length == 108")
    page.select_option("#x", "cosine_W")
    page.select_option("#y", "out_of_distribution_loss")
    page.select_option("#colour", "batch_size")
    page.click("#add_filter")
    page.select_option("#filters li:last-child select >> nth=0", "size")
    page.fill("#filters li:last-child input", "4M")
    page.wait_for_function("document.querySelectorAll('#scatter .point').length == 18")
    assert page.locator("#shown").text_content() == "18 of 108 cells"
    assert page.locator("#cells tbody tr").count() == 18
    assert scatter.locator(".xtitle").text_content().startswith("cosine of W")
    assert scatter.locator(".ytitle").text_content().startswith("out-of-distribution loss")
    assert scatter.locator(".legendtext").all_text_contents() == ["32", "64", "128", "256", "512"]
    shown = page.evaluate("document.getElementById('scatter').data.flatMap(trace => trace.y)")
    small = simulated.cells[simulated.cells["size"] == "4M"]["out_of_distribution_loss"]
    assert sorted(shown) == pytest.approx(sorted(small), rel=1e-5)
    box = page.locator("#scatter .point").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector("#scatter .hovertext")
    hover = page.locator("#scatter .hovertext").text_content()
    assert any(cell in hover for cell in simulated.cells["id"])
    page.click("#filters li:last-child button")
    page.wait_for_function("document.getElementById('shown').textContent == '108 of 108 cells'")
    assert page.said == []


def test_the_table_of_cells_is_sorted_and_turned(page: Any, simulated: SweepData) -> None:
    page.evaluate("document.getElementById('cells').scrollIntoView()")
    loss = "th:has-text('in-distribution loss')"
    page.click(f"#cells {loss} button >> nth=0")
    page.wait_for_selector(f"#cells {loss}[aria-sort=ascending]")
    headings = page.locator("#cells thead th").all_text_contents()
    column = next(k for k, heading in enumerate(headings) if heading.startswith("in-distribution loss"))
    first = simulated.cells.sort_values("in_distribution_loss")
    assert page.locator("#cells tbody tr >> nth=0").locator("th").text_content() == first["id"].iloc[0]
    value = page.locator("#cells tbody tr >> nth=0").locator("td").nth(column - 1).text_content()
    assert float(value) == pytest.approx(first["in_distribution_loss"].iloc[0], rel=1e-4)
    page.click("#table_after")
    assert page.locator("#table_range").text_content() == "51 to 100 of 108"
    assert page.locator("#cells tbody tr >> nth=0").locator("th").text_content() == first["id"].iloc[50]
    page.click("#cells tbody tr >> nth=0 >> button")
    facts = dict(row.split("\t") for row in page.locator("#cell_facts").inner_text().splitlines())
    assert facts["size"] == first["size"].iloc[50]
    page.keyboard.press("Escape")
    assert page.said == []


def test_curves_follow_their_controls(page: Any, simulated: SweepData) -> None:
    curves = looked_at(page, "curves")
    page.select_option("#curve", "validation_loss")
    page.select_option("#curve_colour", "size")
    page.wait_for_selector("#curves .legendtext:has-text('4M')")
    assert curves.locator(".ytitle").text_content() == "validation loss (nats per token)"
    drawn = page.evaluate("document.getElementById('curves').data.map(trace => [trace.name, trace.y])")
    rows = simulated.trajectories.merge(simulated.cells[["id", "size"]], left_on="cell", right_on="id")
    for size, values in drawn:
        of_size = rows[rows["size"] == size]["validation_loss"].dropna()
        assert sorted(v for v in values if v is not None) == pytest.approx(sorted(of_size), rel=1e-5), size
    assert {size for size, _ in drawn} == set(simulated.cells["size"])
    page.fill("#smooth", "0.9")
    page.wait_for_function("document.getElementById('curves_said').textContent.includes('Smoothed')")
    assert page.said == []


def test_the_parallel_coordinates_are_drawn_where_there_is_webgl(page: Any) -> None:
    looked_at(page, "parallel")
    # It may have been in view, and drawn, while a filter left one size.
    page.wait_for_function("document.getElementById('parallel').data[0].dimensions.some(one => one.label === 'size')")
    names = page.evaluate("document.getElementById('parallel').data[0].dimensions.map(one => one.label)")
    assert {"size", "tokens", "batch size", "weight decay", "in-distribution loss"} <= set(names)
    assert page.said == []


def saturating(simulated: SweepData) -> SweepData:
    """Two blocks x two batches x two seeds of the smallest size, with a trajectory each."""
    base = simulated.cells.drop(columns=[BASE_RATE]).sort_values("parameters").head(1)
    run = simulated.trajectories[simulated.trajectories["cell"] == base["id"].iloc[0]]
    cells, runs = [], []
    for number, (block, batch, seed) in enumerate(itertools.product(("sequential", "parallel"), (32, 1024), (1, 2))):
        name = f"{block}-{batch}-{seed}"
        cells.append(base.assign(id=name, block=block, batch_size=batch, seed=seed))
        runs.append(run.assign(cell=name, validation_loss=run["validation_loss"] + number))
    return sweep.from_tables("saturation", pd.concat(cells, ignore_index=True), pd.concat(runs))


def test_saturation_compares_blocks_and_batches_and_draws_every_seed(simulated: SweepData) -> None:
    figure = plots.saturation(saturating(simulated))
    lines = figure.axes[0].get_lines()
    assert len(lines) == 8
    assert len({line.get_color() for line in lines}) == 2
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 4
    (legend,) = figure.legends
    assert sorted(text.get_text() for text in legend.get_texts()) == [
        "parallel, batch size 1024, 2 seeds", "parallel, batch size 32, 2 seeds",
        "sequential, batch size 1024, 2 seeds", "sequential, batch size 32, 2 seeds",
    ]  # fmt: skip


def test_the_papers_names_of_sizes_are_for_its_vocabulary(simulated: SweepData) -> None:
    cells = simulated.cells.drop(columns=[BASE_RATE])
    assert list(cells["size"].unique()) == ["4M", "8M", "16M", "28M", "40M", "75M"]
    other = sweep.from_tables("other", cells.assign(vocabulary=1536), simulated.trajectories)
    assert list(other.cells["size"].unique()) == ["d64", "d128", "d256", "d384", "d512", "d768"]


def test_revisions_over_their_steps() -> None:
    measured = [
        {"revision": f"step{step}", "loss": loss, "effective_rank": 0.5, "spectral_norm": 3.0}
        for step, loss in ((1000, 4.0), (0, 10.0), (143000, 4.4))
    ]
    figure = plots.revisions(measured)
    assert figure.axes[0].get_lines()[0].get_xydata().tolist() == [[0, 10], [1000, 4], [143000, 4.4]]
    assert (
        figure.get_suptitle().replace("\n", " ")
        == "The effective rank ends at 0.50; the loss ends 10.0% above its lowest"
    )
    with pytest.raises(drawing.NoData, match="names end in their step"):
        plots.revisions([{"revision": "main"}, {"revision": "step1"}])
    with pytest.raises(drawing.NoData, match="names end in their step"):  # Commits are no steps.
        plots.revisions([{"revision": digits * 10} for digits in ("aaa7", "bb12")])


def test_a_setting_that_was_sampled_does_not_fill_the_legend(simulated: SweepData) -> None:
    """More weight decays than marks would give two of them one mark; 54 entries ran off the figure."""
    rng = np.random.default_rng(0)
    count = len(simulated.cells)
    sampled = simulated.cells.assign(
        weight_decay=rng.uniform(0.01, 1.0, count), batch_size=2 ** rng.integers(2, 40, count)
    )
    figure = plots.loss_by_size(replace(simulated, cells=sampled), "in_distribution", "effective_rank_W")
    (legend,) = figure.legends
    entries = [text.get_text() for text in legend.get_texts()]
    assert not [entry for entry in entries if entry.startswith("weight decay")]
    named = [entry for entry in entries if entry.startswith("batch ")]
    assert len(set(named)) == len(named) == 12
    ends = sampled["batch_size"].agg(["min", "max"])
    assert [named[0], named[-1]] == [f"batch {end:,}" for end in ends]
