"""`raysweep corpus` and the rehearsal, as a user has them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from raysweep.corpora import installed
from raysweep.space.data_sets import DATA_SETS

REPOSITORY = Path(__file__).parents[2]


def raysweep(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "raysweep.cli", *arguments], text=True, env=os.environ | environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=500,
    )  # fmt: skip


@pytest.fixture
def space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A search space over a folder of text."""
    monkeypatch.setenv("RAYSWEEP_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text").mkdir()
    with (tmp_path / "text" / "a.jsonl").open("w") as file:
        for document in list(installed.documents(4))[:800]:
            file.write(json.dumps({"content": document.text, "kind": "question"}) + "\n")
    source = {"folder": str(tmp_path / "text"), "text": "content", "domain": "kind"}
    return write(tmp_path / "own.yaml", {"name": "own", "tokenizer": "bpe", "vocabulary": 300, "pretraining": source})


def write(path: Path, corpus: dict[str, Any], **more: Any) -> Path:
    base = {"size": {"width": 8}, "corpus": corpus, "tokens": 4096, "batch_size": 4, "sequence_length": 32}
    path.write_text(yaml.safe_dump({"name": "own", "base": base} | more))
    return path


def test_list_names_every_data_set_with_its_commit() -> None:
    listed = json.loads(raysweep("corpus", "list", "--json").stdout)
    assert set(listed) == set(DATA_SETS)
    shown = raysweep("corpus", "list").stdout
    for name, known in listed.items():
        assert name in shown
        assert known["revision"][:12] in shown
        assert known["licence"] in shown


def test_build_show_and_verify(space: Path, tmp_path: Path) -> None:
    built = raysweep("corpus", "build", str(space))
    assert built.returncode == 0, built.stdout
    assert "tokens, fingerprint" in built.stdout
    (manifest,) = json.loads(raysweep("corpus", "show", str(space), "--json").stdout)
    assert manifest["shards"]["pretraining/train"]["domains"]["question"]["documents"] > 700
    longer = tmp_path / "longer.yaml"
    longer.write_text(space.read_text().replace("tokens: 4096", "tokens: 100000000"))
    shown = raysweep("corpus", "show", str(longer), "--shard", "pretraining/test").stdout
    assert manifest["fingerprint"] in shown
    assert "a document of pretraining/test" in shown
    assert "no file and no document was left out as unreadable" in shown
    tokens = manifest["shards"]["pretraining/train"]["tokens"]
    sequences = 100_000_000 // 32 // 4 * 4  # Whole steps of four sequences.
    times = sequences / ((tokens - 1) // 32)
    assert f"1 of 1 cells read training text more than once, up to {times:.1f} times" in shown
    verified = raysweep("corpus", "verify", str(space))
    assert verified.returncode == 0
    assert "files as they were written" in verified.stdout
    victim = next((tmp_path / "cache").glob("corpora/*/pretraining/train/*.bin"))
    content = bytearray(victim.read_bytes())
    content[7] ^= 1
    victim.write_bytes(content)
    damaged = raysweep("corpus", "verify", str(space))
    assert damaged.returncode == 1
    assert f"{victim} is damaged or missing" in damaged.stdout
    assert len(damaged.stdout.splitlines()) == 1


def test_mistakes_get_one_line(space: Path, tmp_path: Path) -> None:
    typo = {"name": "own", "pretraining": {"folder": str(tmp_path / "text"), "text": "contents"}}
    for said, corpus in {
        "text: a.jsonl, line 1: no field 'contents'; there is content, kind": typo,
        "no such folder, for the documents of txet": typo | {"pretraining": {"folder": str(tmp_path / "txet")}},
    }.items():
        for command in (["corpus", "build"], ["corpus", "show"]):
            refused = raysweep(*command, str(write(tmp_path / "typo.yaml", corpus)))
            assert refused.returncode == 1
            assert said in refused.stdout
            assert len([line for line in refused.stdout.splitlines() if line.strip()]) == 1
    unknown = raysweep("corpus", "show", str(space), "--shard", "pretraining/trian")
    assert unknown.returncode == 1
    assert "has no pretraining/trian; it has pretraining/test" in unknown.stdout


@pytest.mark.slow
def test_the_paper_s_suite_is_rehearsed() -> None:
    done = raysweep("run", "search_spaces/paper.yaml", "--rehearse")
    assert done.returncode == 0, done.stdout
    assert "1 of 1 cells done, 6 of 6 evaluations done" in done.stdout
    assert "every step of paper works; nothing was kept" in done.stdout


@pytest.mark.slow
def test_a_rehearsal_finds_what_would_fail(space: Path, tmp_path: Path) -> None:
    typo = {"name": "own", "pretraining": {"folder": str(tmp_path / "text"), "text": "contents"}}
    refused = raysweep("run", str(write(tmp_path / "typo.yaml", typo)), "--rehearse")
    assert refused.returncode == 1
    assert "text: a.jsonl, line 1: no field 'contents'" in refused.stdout
    on, pairs = {"folder": str(tmp_path / "text"), "text": "content"}, tmp_path / "pairs"
    pairs.mkdir()
    (pairs / "a.jsonl").write_text('{"good": "He is.", "bad": "He are."}\n', encoding="utf-8")
    evaluations = [
        {"task": "in_distribution", "sequences": 100},
        {"task": "loss", "name": "mine", "on": on},
        {"task": "finetune", "name": "mine", "on": on},
        {"task": "questions", "name": "pairs", "on": {"folder": str(pairs)}},
    ]
    right = yaml.safe_load(space.read_text())["base"]["corpus"]
    done = raysweep("run", str(write(tmp_path / "right.yaml", right, evaluations=evaluations)), "--rehearse")
    assert done.returncode == 0, done.stdout
