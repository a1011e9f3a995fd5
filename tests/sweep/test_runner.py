"""A sweep as a function, from a script of one's own: what it returns, tells and leaves alone."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from script import call
from tiny import make_cell

from raysweep.corpora.tokenized import TokenizedCorpus

SPACE: dict[str, Any] = {
    "name": "api",
    "base": make_cell(tokens=38_400).model_dump(),
    "evaluations": [{"task": "in_distribution", "sequences": 8}],
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory, corpus: TokenizedCorpus) -> tuple[dict[str, Any], dict[str, Any]]:
    """A sweep that its caller stops, and the call that resumes it."""
    folder = tmp_path_factory.mktemp("api")
    (folder / "api.yaml").write_text(yaml.safe_dump(SPACE), encoding="utf-8")
    return call(folder / "api.yaml", folder / "store", "stop"), call(folder / "api.yaml", folder / "store")


@pytest.mark.slow
def test_it_prints_nothing_and_leaves_the_process_as_it_was(answers: tuple[dict[str, Any], dict[str, Any]]) -> None:
    for answer in answers:
        assert answer["printed"] == ""
        assert answer["environment"]
        assert answer["handlers"]


@pytest.mark.slow
def test_it_can_be_stopped_and_called_again(answers: tuple[dict[str, Any], dict[str, Any]]) -> None:
    stopped, resumed = answers
    assert (stopped["complete"], stopped["interrupted"]) == (False, True)
    assert (stopped["status"]["done"], stopped["status"]["left"]) == (0, 1)
    assert (resumed["complete"], resumed["interrupted"], resumed["failed"]) == (True, False, {})
    assert (resumed["rows"], resumed["same"]) == (1, True)


@pytest.mark.slow
def test_it_tells_what_happens_in_order(answers: tuple[dict[str, Any], dict[str, Any]]) -> None:
    for answer in answers:
        events = answer["events"]
        assert events[0] == "SweepSurveyed"
        assert events.index("ClusterConnected") < events.index("CellStarted") < events.index("CellReported")
    assert answers[1]["events"].count("CellFinished") == 1


def test_ray_imported_too_early_is_said(tmp_path: Path, corpus: TokenizedCorpus) -> None:
    """A cluster started then would listen beyond this machine."""
    (tmp_path / "api.yaml").write_text(yaml.safe_dump(SPACE), encoding="utf-8")
    early = (
        f"import ray; import raysweep; raysweep.run(raysweep.load({str(tmp_path / 'api.yaml')!r}), {str(tmp_path)!r})"
    )
    done = subprocess.run([sys.executable, "-c", early], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "ray was imported before raysweep could set its environment" in done.stderr.splitlines()[-1]
