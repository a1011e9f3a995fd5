"""The committed study: the page shows the committed tables, and those follow from the committed rows."""

from pathlib import Path

import pandas as pd
import pytest

from analysis import analyze, sweep
from raysweep import publish

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/mini.md").read_text(encoding="utf-8").splitlines()
STUDIES = ["mini", "interventions"]
LONG = "steps >= 2048"


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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("study", "folder", "condition"), [*((study, "report", None) for study in STUDIES), ("mini", "long", LONG)]
)
def test_the_committed_tables_follow_from_the_committed_rows(
    study: str, folder: str, condition: str | None, tmp_path: Path
) -> None:
    found = sweep.published(publish.read(ROOT / "results" / study))
    analyze.analyze(found.where(condition) if condition else found, tmp_path)
    committed = ROOT / "results" / study / folder
    for path in sorted([committed / "summary.md", *committed.glob("tables/*.md")]):
        assert path.read_text(encoding="utf-8") == (tmp_path / path.relative_to(committed)).read_text(encoding="utf-8")
    assert {path.name for path in committed.glob("*.csv")} == {path.name for path in tmp_path.glob("*.csv")}
    for path in committed.glob("*.csv"):
        # Other processors round otherwise.
        pd.testing.assert_frame_equal(pd.read_csv(path), pd.read_csv(tmp_path / path.name), rtol=1e-9, atol=1e-12)
