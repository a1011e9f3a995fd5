"""What is sent to the head of a cluster arrives there as it is here."""

import os
import sys
from pathlib import Path

import pytest
import yaml

from raysweep.cluster.head import packed, unpacked
from raysweep.errors import UserError
from raysweep.space import plugins
from raysweep.space.read import load

SPACE = {
    "name": "sent",
    "base": {"size": "4M", "corpus": "installed", "tokens": 10**6, "batch_size": 4},
    "code": ["sent_study"],
    "evaluations": [{"task": "sent_study.tasks:mine"}],
}


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "head"))
    monkeypatch.setattr("sys.path", ["", *sys.path])
    package = tmp_path / "laptop/sent_study"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "tasks.py").write_text("def mine(subject, n=3):\n    return []\n")
    (package / "__pycache__").mkdir()
    (package / "__pycache__/x.pyc").write_bytes(b"0" * 100)
    (tmp_path / "laptop/space.yaml").write_text(yaml.safe_dump(SPACE))
    return tmp_path / "laptop"


def test_a_search_space_arrives_with_its_code(study: Path) -> None:
    here = load(study / "space.yaml")
    sent = packed(str(study / "space.yaml"))
    assert sent == packed(str(study / "space.yaml"))
    there = Path(unpacked(sent))
    assert there.is_relative_to(study.parent / "head")
    assert sorted(path.name for path in there.parent.rglob("*") if path.is_file()) == [
        "__init__.py", "space.yaml", "tasks.py",
    ]  # fmt: skip
    arrived = load(there)
    assert arrived.cells == here.cells
    assert arrived.evaluations == here.evaluations
    assert arrived.code == (str(there.parent / "sent_study"),)
    # Other code is another folder, so that none changes under a sweep that runs.
    (study / "sent_study/tasks.py").write_text("def mine(subject, n=4):\n    return []\n")
    assert unpacked(packed(str(study / "space.yaml"))) != str(there)
    plugins.version.cache_clear()


def test_what_cannot_be_sent_is_said(study: Path) -> None:
    (study / "sent_study/large.bin").write_bytes(bytes(range(256)) * 10 + os.urandom(100_000))
    with pytest.raises(UserError, match=r"have 10\d,\d+ bytes; at most 90,000 can be sent to a cluster: shorten it"):
        packed(str(study / "space.yaml"))
    (study / "space.yaml").write_text(yaml.safe_dump(SPACE | {"code": ["../laptop/sent_study"]}))
    with pytest.raises(UserError, match="to be sent to a cluster it must be a folder beside the search space"):
        packed(str(study / "space.yaml"))
