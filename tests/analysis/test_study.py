"""The committed study: the page shows the committed tables, and those follow from the committed rows."""

import re
from pathlib import Path

import pandas as pd
import pytest
from scipy import stats

from raysweep.analysis import analyze
from raysweep.analysis import sweep_data as sweep
from raysweep.analysis.trajectories import late_rise
from raysweep.exchange.published import read_published

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/first-miniature.md").read_text(encoding="utf-8").splitlines()
STUDIES = ["mini", "interventions"]
LONG = "steps >= 2048"
NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e-?\d+)?")
ROUNDED = 2e-3
"""Other processors round otherwise, and a bootstrap of tied ranks may then end elsewhere."""


@pytest.mark.parametrize("study", STUDIES)
def test_the_page_shows_the_committed_tables(study: str) -> None:
    summary = (ROOT / "results" / study / "report/summary.md").read_text(encoding="utf-8").splitlines()
    assert [line for line in summary if line.startswith("|") and line not in PAGE] == []


def test_the_page_shows_the_verdicts_that_change_among_the_long_runs() -> None:
    of_all, of_long = (
        pd.read_csv(ROOT / "results/mini" / folder / "claims.csv").set_index("claim")["verdict"]
        for folder in ("report", "long")
    )
    shown = [line.split(" | ")[:3] for line in PAGE if line.startswith("| ") and line.count(" | ") == 3]
    shown = [(title.removeprefix("| ").partition(":")[0], before, after) for title, before, after in shown]
    changed = [(str(claim), of_all[claim], of_long[claim]) for claim in of_all.index[of_all != of_long]]
    assert changed
    assert [row for row in shown if row[1] in set(of_all)] == changed


def test_the_page_shows_how_the_saturation_runs_ended() -> None:
    cells = pd.read_parquet(ROOT / "results/saturation/results.parquet").sort_values("seed")
    rise = late_rise(pd.read_parquet(ROOT / "results/saturation/trajectories.parquet"))
    cells["rise"] = cells["id"].map(rise)
    shown = {
        "effective rank of W": ("effective_rank_W", "{:.3f}".format),
        "validation loss": ("validation_loss", "{:.3f}".format),
        "loss above its lowest": ("rise", lambda share: f"{share:.1%}" if share else "0"),
        "spectral norm of W": ("spectral_norm_W", "{:.0f}".format),
    }
    rows = []
    for batch, tokens, words in ((64, 25165824, "25M"), (4, 25165824, "25M"), (4, 1572864, "1.6M")):
        runs = cells[(cells["batch_size"] == batch) & (cells["tokens"] == tokens)]
        for name, (column, text) in shown.items():
            ends = [", ".join(map(text, runs[runs["block"] == block][column])) for block in ("sequential", "parallel")]
            first = f"**batch {batch}, {words} tokens**: " if column == "effective_rank_W" else ""
            rows.append(f"| {first}{name} | {ends[0]} | {ends[1]} |")
    assert len(cells) == 12
    assert [row for row in rows if row not in PAGE] == []


@pytest.mark.parametrize("steps", [128, 256, 512, 1024, 2048])
def test_the_page_shows_what_is_left_without_short_runs(steps: int) -> None:
    """The raw correlation, against scipy; the last line against the committed table."""
    cells = sweep.published(read_published(ROOT / "results/mini")).design.where(f"steps >= {steps}").cells
    line = next(line for line in PAGE if re.match(rf"\| {steps:,}( \(all\))? \| ", line)).replace("\N{MINUS SIGN}", "-")
    _, models, raw, partial, added = line.strip("| ").split(" | ")
    assert int(models) == len(cells)
    value = stats.spearmanr(cells["effective_rank_W"], cells["in_distribution_loss"]).statistic
    assert raw.startswith(f"{value:.3f} [")
    if steps == 2048:
        table = pd.read_csv(ROOT / "results/mini/long/regressions.csv").set_index(["task", "metric", "statistic"])
        for statistic, text in (("raw_spearman", raw), ("partial_spearman", partial), ("predictive_r2", added)):
            row = table.loc[("in_distribution", "effective_rank_W", statistic)]
            assert text == f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("study", "folder", "condition"),
    [
        *((study, "report", None) for study in (*STUDIES, "saturation", "mini-2", "interventions-2")),
        ("mini", "long", LONG),
    ],
)
def test_the_committed_tables_follow_from_the_committed_rows(
    study: str, folder: str, condition: str | None, tmp_path: Path
) -> None:
    found = sweep.published(read_published(ROOT / "results" / study))
    analyze.analyze_sweep(found.where(condition) if condition else found, tmp_path)
    committed = ROOT / "results" / study / folder
    for path in sorted([committed / "summary.md", *committed.glob("tables/*.md")]):
        before, now = (p.read_text(encoding="utf-8") for p in (path, tmp_path / path.relative_to(committed)))
        assert NUMBER.split(before) == NUMBER.split(now)
        assert [float(x) for x in NUMBER.findall(before)] == pytest.approx(
            [float(x) for x in NUMBER.findall(now)], abs=ROUNDED
        )
    assert {path.name for path in committed.glob("*.csv")} == {path.name for path in tmp_path.glob("*.csv")}
    for path in committed.glob("*.csv"):
        before, now = pd.read_csv(path), pd.read_csv(tmp_path / path.name)
        loose = [c for c in ("low", "high", "p", "q", "p_against", "coverage") if c in before]
        pd.testing.assert_frame_equal(before.drop(columns=loose), now.drop(columns=loose), rtol=1e-9, atol=1e-12)
        pd.testing.assert_frame_equal(before[loose], now[loose], rtol=1e-3, atol=ROUNDED)
