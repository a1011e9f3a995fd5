"""The committed study: the page shows the committed tables, and those follow from the committed rows."""

from pathlib import Path

import pandas as pd
import pytest

from analysis import analyze, sweep
from raysweep import publish

ROOT = Path(__file__).parents[2]
STUDIES = ["mini"]


@pytest.mark.parametrize("study", STUDIES)
def test_the_page_shows_the_committed_tables(study: str) -> None:
    page = (ROOT / "docs/mini.md").read_text(encoding="utf-8").splitlines()
    summary = (ROOT / "results" / study / "report/summary.md").read_text(encoding="utf-8").splitlines()
    missing = [line for line in summary if line.startswith("|") and line not in page]
    assert missing == []


@pytest.mark.slow
@pytest.mark.parametrize("study", STUDIES)
def test_the_committed_tables_follow_from_the_committed_rows(study: str, tmp_path: Path) -> None:
    folder = ROOT / "results" / study
    analyze.analyze(sweep.published(publish.read(folder)), tmp_path)
    committed = folder / "report"
    for path in sorted([committed / "summary.md", *committed.glob("tables/*.md")]):
        assert path.read_text(encoding="utf-8") == (tmp_path / path.relative_to(committed)).read_text(encoding="utf-8")
    for path in committed.glob("*.csv"):
        # Other processors round otherwise.
        pd.testing.assert_frame_equal(pd.read_csv(path), pd.read_csv(tmp_path / path.name), rtol=1e-9, atol=1e-12)
