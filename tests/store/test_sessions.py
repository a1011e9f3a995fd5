"""What a store knows of the sessions that worked on it, also of one that was killed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from raysweep.store import Store, sessions


def test_a_session_is_known_while_it_lasts_and_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    assert sessions.read(store, "mine") == []
    with sessions.recorded(store, "mine"):
        (during,) = sessions.read(store, "mine")
        assert not during["ended"]
    (after,) = sessions.read(store, "mine")
    assert sessions.read(store, "another") == []
    assert after["ended"]
    assert after["seen"] >= after["started"] == during["started"]
    assert json.loads(after["versions"])["torch"] == str(torch.__version__)
    assert after["cores"] >= 1
    assert after["job"] == "slurm:77"


def test_a_session_that_was_killed_has_not_ended(tmp_path: Path) -> None:
    code = (
        "import sys, time; from raysweep.store import sessions; from raysweep.store import Store; "
        "sessions.SEEN_EVERY = 0.2; held = sessions.recorded(Store(sys.argv[1]), 'mine'); held.__enter__(); "
        "print('there', flush=True); time.sleep(60)"
    )
    running = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None
    assert running.stdout.readline().strip() == "there"
    store = Store(str(tmp_path))
    (first,) = sessions.read(store, "mine")
    while sessions.read(store, "mine")[0]["seen"] == first["seen"]:
        assert running.poll() is None
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    (left,) = sessions.read(store, "mine")
    assert not left["ended"]
    assert left["seen"] > left["started"]
