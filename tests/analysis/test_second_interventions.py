"""Every number of "Pushing the rank" in docs/mini.md follows from the committed rows of the second interventions."""

import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from raysweep.analysis import sweep_data as sweep
from raysweep.analysis.measured import chosen
from raysweep.exchange.published import read_published
from raysweep.space.hypotheses import Among

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "results/interventions-2"
PAGE = (ROOT / "docs/mini.md").read_text(encoding="utf-8")
SECTION = PAGE.partition("## Pushing the rank\n")[2].partition("\n## ")[0]
TESTS = pd.read_csv(FOLDER / "report/claim_tests.csv")
CELLS = pd.read_parquet(FOLDER / "results.parquet").fillna({"effective_rank_target": 1.0})
"""1 stands for a model that was left alone."""


def changes(column: str) -> pd.DataFrame:
    """(width, seed) and target -> the change of a column against the model of the same seed that was left alone."""
    values = CELLS.pivot_table(index=["width", "seed"], columns="effective_rank_target", values=column)
    assert values.shape == (16, 3)
    return values.sub(values[1.0], axis=0)


def row_of(claim: str, target: float) -> pd.Series:
    rows = TESTS[(TESTS["claim"] == claim) & TESTS["effect"].str.contains(f"under rank {target:g} x 100")]
    return rows.iloc[0]


def sentences() -> Iterator[str]:
    alone = CELLS[CELLS["effective_rank_target"] == 1.0]
    yield f"Left alone, the rank ends at {alone['effective_rank_W'].mean():.2f} on average."
    yield f"With the models left alone these are {len(CELLS)}."
    loss = changes("in_distribution_loss")
    at_64, at_96 = loss.loc[64], loss.loc[96]
    yield f"rises by {at_64[0.5].mean():.3f} nats at a rank of 0.5, and by {at_64[0.35].mean():.3f} at 0.35."
    assert (at_64[[0.5, 0.35]] > 0).all(axis=None)
    assert row_of("costs-at-64", 0.35)["low"] > 0
    yield "It rises with every one of the seeds."
    assert row_of("costs-at-96", 0.35)["low"] < 0
    yield f"At 0.35 the loss rises by {at_96[0.35].mean():.3f} nats on average, but the interval holds zero."
    yield f"At 0.5 it rises with {(at_96[0.5] > 0).sum()} of the seeds only."
    spread = alone.groupby("width")["in_distribution_loss"].std()
    yield f"a standard deviation of {spread[96]:.3f}, where it is {spread[64]:.3f} at width 64."
    rise = changes("quantized_4bit_in_distribution_loss_change")[0.35]
    assert row_of("quantization", 0.35)["high"] < 0
    yield f"by GPTQ is {-rise.mean():.3f} nats smaller at a rank of 0.35 than left alone."
    python, math = (changes(f"finetune_{text}_loss")[0.35].mean() for text in ("python", "math"))
    yield f"is higher by {python:.3f} nats on Python, and by {math:.3f} on math."
    norms = CELLS.groupby("effective_rank_target")["spectral_norm_W"].mean()
    yield f"at 0.35 the spectral norm of W is {norms[0.35] / norms[1.0]:.1f} times as large."


def test_the_section_has_the_numbers_of_the_rows() -> None:
    said = " ".join(SECTION.split())
    assert [sentence for sentence in sentences() if sentence not in said] == []


def test_the_changes_are_those_of_the_tables() -> None:
    table = pd.read_csv(FOLDER / "report/interventions.csv")
    table = table[table["against"].isna() & (table["intervention"] != "slope")]
    for column in ("in_distribution_loss", "finetune_math_loss", "effective_rank_H"):
        ours = changes(column)
        for _, row in table[table["column"] == column].iterrows():
            target = float(row["intervention"].split()[1])
            of = ours if pd.isna(row["size"]) else ours.loc[[int(row["size"].removeprefix("d"))]]
            assert row["change"] == pytest.approx(of[target].mean(), abs=1e-9)


def test_the_verdicts_are_those_of_the_tables() -> None:
    verdicts = pd.read_csv(FOLDER / "report/claims.csv").set_index("claim")["verdict"]
    counts = TESTS.groupby("claim")["verdict"].agg([lambda v: (v == "supported").sum(), "size"])
    rows = re.findall(r"^\| ([a-z0-9-]+) \| [^|]+ \| (\w+) \| (\d+) of (\d+) \|$", SECTION, re.MULTILINE)
    assert rows == [(name, verdict, *(str(of) for of in counts.loc[name])) for name, verdict in verdicts.items()]


def test_a_penalty_that_leaves_the_rank_where_it_is_did_not_clearly_change_the_loss() -> None:
    table = pd.read_csv(ROOT / "results/interventions/report/interventions.csv")
    table = table[table["against"].isna() & table["size"].isna() & (table["intervention"] == "rank 0.865 x 100")]
    row = table[table["column"] == "in_distribution_loss"].iloc[0]
    assert row["low"] < 0 < row["high"]


def test_the_smallest_size_is_the_smallest_that_is_planned() -> None:
    """Else claims about width 64 were decided by width 96 while that alone was finished."""
    whole = sweep.published(read_published(FOLDER))
    begun = whole.of(whole.cells["width"] == 96)
    smallest, largest = (chosen(Among(sizes=end), begun.cells, begun.planned_sizes) for end in ("smallest", "largest"))
    assert not smallest.any()
    assert largest.all()
    # Of the cells that a condition chose it is theirs.
    asked = whole.where("width == 96")
    assert chosen(Among(sizes="smallest"), asked.cells, asked.planned_sizes).all()
