"""A sweep as a function, from a script of one's own: what it returns, tells and leaves alone."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import make_cell

from raysweep.corpora.tokenized import TokenizedCorpus

SPACE: dict[str, Any] = {
    "name": "api",
    "base": make_cell(tokens=38_400).model_dump(),
    "evaluations": [{"task": "in_distribution", "sequences": 8}],
}

SCRIPT = """
import contextlib, io, json, os, signal, sys, threading
import raysweep
from raysweep.sweep.events import CellReported

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
space, store = raysweep.load(sys.argv[1]), sys.argv[2]
environment, handlers = dict(os.environ), [signal.getsignal(number) for number in SIGNALS]
printed, events, stop, state = io.StringIO(), [], threading.Event(), raysweep.RunState()

def on_event(event):
    events.append(type(event).__name__)
    state.apply(event)
    if sys.argv[3] == "stop" and isinstance(event, CellReported) and event.step > 100:
        stop.set()

with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
    result = raysweep.run(space, store, on_event=on_event, stop=stop)
print(json.dumps({
    "printed": printed.getvalue(),
    "environment": dict(os.environ) == environment,
    "handlers": [signal.getsignal(number) for number in SIGNALS] == handlers,
    "events": events,
    "complete": result.complete,
    "interrupted": state.interrupted,
    "failed": result.failed,
    "rows": result.table.num_rows,
    "same": result.table.equals(raysweep.results(space, store)),
    "status": raysweep.status(space, store).counts()["cells"],
}))
"""


def call(folder: Path, how: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder / "api.yaml"), str(folder / "store"), how],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert done.stderr == ""
    answer: dict[str, Any] = json.loads(line)
    return answer


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory, corpus: TokenizedCorpus) -> tuple[dict[str, Any], dict[str, Any]]:
    """A sweep that its caller stops, and the call that resumes it."""
    folder = tmp_path_factory.mktemp("api")
    (folder / "api.yaml").write_text(yaml.safe_dump(SPACE), encoding="utf-8")
    return call(folder, "stop"), call(folder, "")


def test_it_prints_nothing_and_leaves_the_process_as_it_was(answers: tuple[dict[str, Any], dict[str, Any]]) -> None:
    for answer in answers:
        assert answer["printed"] == ""
        assert answer["environment"]
        assert answer["handlers"]


def test_it_can_be_stopped_and_called_again(answers: tuple[dict[str, Any], dict[str, Any]]) -> None:
    stopped, resumed = answers
    assert (stopped["complete"], stopped["interrupted"]) == (False, True)
    assert (stopped["status"]["done"], stopped["status"]["left"]) == (0, 1)
    assert (resumed["complete"], resumed["interrupted"], resumed["failed"]) == (True, False, {})
    assert (resumed["rows"], resumed["same"]) == (1, True)


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
