"""Every number of docs/mini.md follows from the committed rows and tables of the second miniature."""

import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from scipy import stats

from raysweep.analysis.design_check import without_verdict
from raysweep.analysis.trajectories import late_rise
from raysweep.space.cell import Cell
from raysweep.space.read import load_published
from raysweep.space.space import Space

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "results/mini-2"
REPORT = FOLDER / "report"
PAGE = (ROOT / "docs/mini.md").read_text(encoding="utf-8").replace("\N{MINUS SIGN}", "-")
WORDS = " ".join(PAGE.split())
CELLS = pd.read_parquet(FOLDER / "results.parquet")
TESTS = pd.read_csv(REPORT / "claim_tests.csv")


def section(title: str) -> str:
    return WORDS.partition(f"## {title} ")[2].partition(" ## ")[0]


def value_of(claim: str, effect: str) -> float:
    rows = TESTS[(TESTS["claim"] == claim) & TESTS["effect"].str.startswith(effect)]
    return float(rows["value"].iloc[0])


def effect(hyperparameter: str, column: str) -> pd.Series:
    table = pd.read_csv(REPORT / "effects.csv").set_index(["hyperparameter", "column"])
    return table.loc[(hyperparameter, column)]


def regression(statistic: str) -> pd.Series:
    table = pd.read_csv(REPORT / "regressions.csv").set_index(["task", "metric", "statistic"])
    return table.loc[("in_distribution", "effective_rank_W", statistic)]


def sentences() -> Iterator[str]:
    """What the section says, with its numbers computed."""
    batches, decay = effect("batch_size", "effective_rank_W"), effect("weight_decay", "effective_rank_W")
    yield f"From the smallest to the largest batches the effective rank rises by {batches['effect']:.2f}, all else equal."
    yield f"That is {batches['seed_standard_deviations']:.0f} times the deviation between seeds."
    yield f"From the weakest to the strongest weight decay it rises by {decay['effect']:.2f}."
    # Further seeds of a few cells are no further models.
    one_seed = CELLS[CELLS["seed"] == CELLS["seed"].min()]
    raw = stats.spearmanr(one_seed["effective_rank_W"], one_seed["in_distribution_loss"]).statistic
    assert raw == pytest.approx(regression("raw_spearman")["value"], abs=1e-9)
    within = value_of("1", "Spearman within sizes of effective rank of W and in-distribution loss")
    yield f"Over all models the correlation of rank and loss is {raw:.2f}, and within sizes it is {within:.2f}."
    partial = regression("partial_spearman")
    assert partial["low"] < 0 < partial["high"]
    yield f"With all settings held equal it is {partial['value']:.2f}, and its interval holds zero."
    yield f"the rank adds an R² of {regression('predictive_r2')['value']:.3f}."
    small = CELLS[CELLS["width"] == 16]
    collapsed = small.loc[small["effective_rank_W"].idxmin()]
    better = (small["in_distribution_loss"] < collapsed["in_distribution_loss"]).mean()
    assert better == pytest.approx(0.5, abs=0.05)
    yield f"The most collapsed model of width 16 has a rank of {collapsed['effective_rank_W']:.2f}."
    below = value_of("5", "effective rank of runs of at least 200 tokens")
    yield f"The smallest batches end with a rank that is {below:.2f} below that of the largest."
    long = CELLS[CELLS["tokens"] >= 200 * CELLS["parameters"]]
    assert set(long["width"]) == {16}
    yield f"All {len(long)} runs of 200 tokens and more for each parameter are of width 16."
    rises = late_rise(pd.read_parquet(FOLDER / "trajectories.parquet"))
    assert max(rises[cell] for cell in long["id"]) < 1e-4
    yield "No run ends more than 0.01% above its lowest loss."
    rise = value_of("4", "4-bit GPTQ's rise in loss, smaller half of the sizes")
    yield f"GPTQ's rise in loss falls by {-rise:.2f} nats, at the two smaller widths."
    of_rank = TESTS[TESTS["claim"] == "quantized-W"].iloc[0]
    assert of_rank["low"] < 0 < of_rank["high"]
    yield f"Its correlation with the rank is {of_rank['value']:.2f} once all settings are held equal"
    line = value_of("6", "R² of a line within sizes from in-distribution loss to Python")
    yield f"a line of the loss before it, with an R² of {line:.2f}."
    layers = pd.read_csv(REPORT / "layers.csv").query("metric == 'effective_rank'")
    most = layers.loc[layers["added_r2"].idxmax()]
    assert most["matrix"] == "blocks.0.attention.value"
    assert len(layers) == 50
    own = regression("predictive_r2")["value"]
    yield f"of the first block's value matrix adds an R² of {most['added_r2']:.2f} where W's adds {own:.3f}."
    blocks = TESTS[TESTS["claim"] == "weights-of-blocks"]
    assert blocks["effect"].str.partition(" and ")[2].nunique() == 8
    yield f"There are {len(blocks)} such tests of blocks, on eight tasks."
    alone = blocks[blocks["verdict"] == "contradicted"]
    assert alone["p_against"].min() > 0.025
    yield f"Each taken alone, {len(alone)} of them find that more than 0.05 is added."
    yield f"is {value_of('rare-tokens', 'mean cosine'):.2f} higher for rare tokens"
    of_benchmarks = value_of("benchmarks", "R² of a line from in-distribution loss")
    yield f"are a line of the loss, with an R² of {of_benchmarks:.2f}."
    accuracy, chance = CELLS["benchmarks_accuracy"].mean(), CELLS["benchmarks_chance"].mean()
    yield f"guessing: {accuracy:.3f} on average, where chance is {chance:.3f}."


def test_what_came_out_has_the_numbers_of_the_tables_and_no_others() -> None:
    said = section("What came out")
    for sentence in sentences():
        assert sentence in said
        said = said.replace(sentence, "")
    said = re.sub(r"\(\.\./results\S+\)|`results/\S+`|results/mini-2\S*", "", said)
    left = re.findall(r"\d+(?:\.\d+)?", re.sub(r"(^| )\d\. \*\*", " ", said))
    assert left == ["4"]  # GPTQ's bits.


def test_the_scorecard_has_the_verdicts_of_the_tables() -> None:
    first = pd.read_csv(ROOT / "results/mini/report/claims.csv").set_index("claim")["verdict"]
    second = pd.read_csv(REPORT / "claims.csv").set_index("claim")["verdict"]
    counts = TESTS.groupby("claim")["verdict"].agg([lambda v: (v == "supported").sum(), "size"])
    rows = re.findall(r"^\| (\d+) \| [^|]+ \| (\w+) \| (\w+) \| (\d+) of (\d+)", PAGE, re.MULTILINE)
    numbers = [str(n) for n in range(1, 16)]
    assert rows == [(n, first[n], second[n], *(str(of) for of in counts.loc[n])) for n in numbers]
    scorecard = PAGE.partition("## The scorecard")[2].partition("\n## ")[0]
    own = re.findall(
        r"^\| ([a-z]+-[a-zW-]+|benchmarks) \| [^|]+ \| (\w+) \| (\d+) of (\d+) \|$", scorecard, re.MULTILINE
    )
    names = [claim for claim in second.index if claim not in first.index]
    assert own == [(n, second[n], *(str(of) for of in counts.loc[n])) for n in names]
    within = value_of("3", "R² of a line within sizes")
    assert f"within sizes R² is {within:.2f}, and more than 0.9 is claimed" in WORDS
    assert f"the rank falls, by {-value_of('11', 'effective rank at a tenth'):.3f}" in WORDS


def test_the_designs_are_those_of_the_search_spaces() -> None:
    first, second = (load_published(ROOT / "results" / name / "space.yaml") for name in ("mini", "mini-2"))
    rows = {
        name.strip(): (before.strip(), after.strip())
        for name, before, after in re.findall(r"^\| ([a-z][^|]+)\|([^|]+)\|([^|]+)\|[^|]*\|$", PAGE, re.MULTILINE)
    }

    def commonest(space: Space, field: str) -> int:
        values = [getattr(cell, field) for cell in space.cells]
        return max(set(values), key=values.count)

    assert rows["steps of the base"] == tuple(f"{commonest(space, 'steps'):,}" for space in (first, second))
    assert rows["tokens of the base"] == tuple(
        f"{commonest(space, 'tokens') / 1e6:.1f} million" for space in (first, second)
    )
    for space, said in zip((first, second), rows["weight decay"], strict=True):
        assert said == ", ".join(f"{value:g}" for value in sorted({cell.weight_decay for cell in space.cells}))
    for space, said, count in zip((first, second), rows["widths"], ("six", "four"), strict=True):
        widths = sorted({cell.size.width for cell in space.cells})
        assert said == f"{widths[0]} to {widths[-1]}, {count}"
        assert len(widths) == {"six": 6, "four": 4}[count]
    assert f"The *second* has {len(second.cells)} models" in WORDS
    assert len(CELLS) == len(second.cells)


def test_what_the_first_91_could_not_decide_was_told_by_their_design() -> None:
    """The 18 were added for it; the check that `plan` makes now was not there then."""
    space = load_published(FOLDER / "space.yaml")

    def added(cell: Cell) -> bool:
        """They alone differ from the base in two of these."""
        return (cell.batch_size != 8) + (cell.weight_decay != 0.1) + (cell.learning_rate_factor != 0.4) > 1

    before = space.model_copy(update={"cells": tuple(cell for cell in space.cells if not added(cell))})
    assert len(before.cells) == 91
    assert "The first 91 models could not decide 22 of the tests" in WORDS
    assert f"{len(space.cells) - len(before.cells)} models were added" in WORDS
    assert len(without_verdict(before)) == 22
    left = [test.claim for test in without_verdict(space)]
    assert left == ["13", "over-training"]


def test_what_cython_was_to_the_line_of_the_first_miniature() -> None:
    cells = pd.read_parquet(ROOT / "results/mini/results.parquet").query("seed == 6198")
    cells = cells.assign(rest=cells[["out_of_distribution_loss_cpp", "out_of_distribution_loss_exams"]].mean(axis=1))
    pair = cells[["in_distribution_loss", "rest"]]
    r = (pair - pair.groupby(cells["width"]).transform("mean")).corr().iloc[0, 1]
    assert f"without Cython the first miniature still has an R² of {r**2:.2f} within sizes" in WORDS


def test_the_worst_models_of_the_figure() -> None:
    worst = CELLS.loc[CELLS.groupby("width")["in_distribution_loss"].idxmax()].set_index("width")
    assert list(worst.loc[[16, 32, 48], "weight_decay"]) == [1.0] * 3
    ranks = CELLS.groupby("width")["effective_rank_W"]
    below = [(ranks.get_group(width) < rank).sum() for width, rank in worst["effective_rank_W"].items()]
    assert min(below[:3]) > 10
    assert below[3] == 0
    assert (worst.loc[64, "batch_size"], worst.loc[64, "steps"]) == (4, 2048)
    assert "At width 64 the worst is also the most collapsed: a short run with batches of 4." in WORDS


def test_how_many_ranks_are_high() -> None:
    of_h, of_w = ((CELLS[f"effective_rank_{of}"] > 0.8).sum() for of in "HW")
    assert f"the rank of H is above 0.8 in all but {len(CELLS) - of_h} of the models" in WORDS
    assert f"the rank of W is above 0.8 in only {of_w} of them" in WORDS


def test_nothing_is_left_to_fill_in() -> None:
    assert not re.search(r"\b[A-Z]{8,}\b", WORDS)


def test_the_readme_counts_the_verdicts() -> None:
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    verdicts = pd.read_csv(REPORT / "claims.csv").set_index("claim")["verdict"].loc[[str(n) for n in range(1, 16)]]
    supported, contradicted, undecided = ((verdicts == v).sum() for v in ("supported", "contradicted", "undecided"))
    assert f"supports {supported} and contradicts {contradicted}; the other {undecided} are undecided" in readme
    assert f"then {len(CELLS)} models" in readme
