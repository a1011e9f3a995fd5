"""Downloads from a hub on localhost that limits rates, breaks off, sends damaged files, is gated, or is away."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_on_localhost import Hub

from raysweep.suites import hub as hub_module
from raysweep.suites.hub import needed

# The hub's address is read when its library is imported, so that each download has a process of its own.
DOWNLOAD = """
import json, sys
from pathlib import Path
from raysweep.suites import hub
repository, revision, folder = sys.argv[1:4]
for setting in sys.argv[4:]:
    name, value = setting.split("=")
    setattr(hub, name, float(value))
said = []
commit = hub.refs(repository, said.append).get(revision, revision)
files = hub.files(repository, commit, said.append)
hub.download(repository, commit, files, Path(folder), said.append)
print(json.dumps({"said": said, "files": [file.name for file in files], "commit": commit}))
"""

pytestmark = pytest.mark.suites

WEIGHTS = bytes(range(256)) * 12_000  # 3 MB.


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    for revision in ("step1", "step2"):
        folder = tmp_path / "hub" / "owner" / "model" / revision
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(WEIGHTS + revision.encode())
        (folder / "config.json").write_text(json.dumps({"revision": revision}))
        (folder / "own.py").write_text("raise SystemExit\n")
        (folder / "optimizer.bin").write_bytes(b"x" * 1000)
        (folder / "tokenizer.json").write_text("{}")
    with Hub(tmp_path / "hub") as running:
        yield running


def download(
    hub: Hub, folder: Path, *settings: str, revision: str = "step2", repository: str = "owner/model", **environment: str
) -> tuple[dict[str, Any], str]:
    """What it said, and the last line of its error."""
    done = subprocess.run(
        [sys.executable, "-c", DOWNLOAD, repository, revision, str(folder), *settings],
        capture_output=True, text=True, timeout=120,
        env={**os.environ, "HF_ENDPOINT": hub.address, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_TOKEN": "", **environment},
    )  # fmt: skip
    error = done.stderr.strip().splitlines()[-1] if done.returncode else ""
    return (json.loads(done.stdout.splitlines()[-1]) if not done.returncode else {}), error


def is_there(folder: Path, revision: str = "step2") -> bool:
    return (folder / "model.safetensors").read_bytes() == WEIGHTS + revision.encode() and (
        folder / "config.json"
    ).read_text() == json.dumps({"revision": revision})


def test_only_what_a_model_is_loaded_from_is_downloaded(hub: Hub, tmp_path: Path) -> None:
    found, error = download(hub, tmp_path / "to")
    assert not error
    assert is_there(tmp_path / "to")
    assert sorted(found["files"]) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert found["commit"] == hub.commit("owner/model", "step2")
    assert not any("own.py" in path or "optimizer" in path for _, path, _ in hub.requests if "/resolve/" in path)


@pytest.mark.parametrize("header", ["Retry-After", "RateLimit"])
def test_a_limit_of_rates_is_waited_for_as_long_as_the_hub_says(header: str, hub: Hub, tmp_path: Path) -> None:
    hub.limit(2, 2, header=header)
    started = time.monotonic()
    found, error = download(hub, tmp_path / "to")
    assert not error
    assert is_there(tmp_path / "to")
    assert time.monotonic() - started > 4
    assert found["said"] == ["owner/model: the hub limits how often it may be asked; asking again in 2 s"] * 2


def test_pauses_grow_where_the_hub_does_not_say(hub: Hub, tmp_path: Path) -> None:
    hub.limit(3, None)
    found, _ = download(hub, tmp_path / "to")
    assert [line.rpartition(" in ")[2] for line in found["said"]] == ["1 s", "2 s", "4 s"]


def test_a_limit_in_the_middle_of_the_files_is_waited_for(hub: Hub, tmp_path: Path) -> None:
    hub.limit(2, 1, method="HEAD")
    found, error = download(hub, tmp_path / "to")
    assert not error
    assert is_there(tmp_path / "to")
    assert len(found["said"]) == 2


def test_a_download_that_breaks_off_resumes(hub: Hub, tmp_path: Path) -> None:
    hub.cut(2, 2_200_000)
    found, error = download(hub, tmp_path / "to")
    assert not error
    assert is_there(tmp_path / "to")
    assert any("cannot be reached" in line for line in found["said"])
    # Twice as far as the cut at most, and not three times from the start: whole MiB are kept.
    assert hub.bytes_sent < 2.2 * len(WEIGHTS)
    assert sum(status == 206 for *_, status in hub.requests) >= 1


def test_a_killed_download_resumes_where_it_was(hub: Hub, tmp_path: Path) -> None:
    hub.slow(1_000_000)
    process = subprocess.Popen(
        [sys.executable, "-c", DOWNLOAD, "owner/model", "step2", str(tmp_path / "to")],
        env={**os.environ, "HF_ENDPOINT": hub.address, "HF_TOKEN": ""}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while hub.bytes_sent < 1_900_000 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    hub.slow(1e9)
    before = hub.bytes_sent
    _, error = download(hub, tmp_path / "to")
    assert not error
    assert is_there(tmp_path / "to")
    assert hub.bytes_sent - before < len(WEIGHTS) - 900_000


def test_a_file_that_came_damaged_is_downloaded_again(hub: Hub, tmp_path: Path) -> None:
    hub.corrupt("owner/model", "model.safetensors", times=1)
    found, error = download(hub, tmp_path / "to")
    assert not error
    assert is_there(tmp_path / "to")
    assert found["said"] == ["owner/model/model.safetensors came damaged: downloading it again"]
    # A small one has no SHA-256 at the hub, but a hash of git's.
    hub.corrupt("owner/model", "config.json", times=1)
    _, error = download(hub, tmp_path / "other")
    assert not error
    assert is_there(tmp_path / "other")
    hub.corrupt("owner/model", "config.json", times=9)
    _, error = download(hub, tmp_path / "never")
    assert "config.json came damaged 3 times" in error
    assert not (tmp_path / "never" / "config.json").exists()


def test_what_is_there_and_whole_is_not_asked_for_again(hub: Hub, tmp_path: Path) -> None:
    download(hub, tmp_path / "to")
    before = len(hub.requests)
    download(hub, tmp_path / "to")
    assert not any("/resolve/" in path for _, path, _ in hub.requests[before:])
    # Another checkpoint's files under the same names are replaced, and never taken.
    _, error = download(hub, tmp_path / "to", revision="step1")
    assert not error
    assert is_there(tmp_path / "to", "step1")


def test_what_cannot_be_had_is_said_in_one_line(hub: Hub, tmp_path: Path) -> None:
    _, error = download(hub, tmp_path / "to", revision="step9")
    assert error.endswith("UserError: owner/model on the hub has no revision step9")
    _, error = download(hub, tmp_path / "to", repository="owner/none")
    assert error.endswith("UserError: owner/none is not on the hub (or is private: set HF_TOKEN)")
    hub.gate("owner/model", "secret")
    _, error = download(hub, tmp_path / "to")
    assert "owner/model is gated: accept its terms at https://huggingface.co/owner/model, and set HF_TOKEN" in error
    _, error = download(hub, tmp_path / "to", HF_TOKEN="secret")
    assert not error
    assert is_there(tmp_path / "to")
    assert not any(b"secret" in path.read_bytes() for path in (tmp_path / "to").rglob("*") if path.is_file())


def test_a_hub_that_never_answers_is_not_waited_for_without_an_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        code = (
            "from raysweep.suites import hub; hub._TIMEOUT, hub.UNREACHABLE = 0.5, 2; "
            "hub.refs('owner/model', lambda line: print(line))"
        )
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        done = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0"},
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    assert "owner/model: the hub cannot be reached; asking again in 1 s" in done.stdout
    assert "owner/model: the hub cannot be reached, for" in done.stderr.splitlines()[-1]


def test_a_hub_that_is_away_is_waited_for_and_then_said(hub: Hub, tmp_path: Path) -> None:
    hub.down = True
    _, error = download(hub, tmp_path / "to", "UNREACHABLE=3")
    assert "owner/model: the hub is at fault (503), for" in error
    assert error.endswith("run the same command again when it is back; nothing that was measured is lost")


@pytest.mark.parametrize(
    ("there", "taken"),
    [
        (["model.safetensors", "pytorch_model.bin"], ["model.safetensors"]),
        (["pytorch_model.bin", "tf_model.h5"], ["pytorch_model.bin"]),
        (
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"],
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"],
        ),
        (["onnx/model.onnx", "model.safetensors"], ["model.safetensors"]),
        (["tokenizer.py", "tokenizer.json", "modeling.py"], ["tokenizer.json"]),
        (["tokenizer.model", "vocab.json", "merges.txt"], ["tokenizer.model", "vocab.json", "merges.txt"]),
    ],
)
def test_one_form_of_the_weights_is_taken(there: list[str], taken: list[str]) -> None:
    assert needed(there) == taken
    assert hub_module.needed([]) == []


OFFLINE = """
import json, sys
from raysweep.suites.checkpoints import find
from raysweep.suites.read import load_suite
checkpoints, errors = find(load_suite(sys.argv[1]), None, lambda *step: None, print)
print(json.dumps({"found": [[one.revision, one.commit, str(one.folder)] for one in checkpoints], "errors": errors}))
"""


def test_without_a_network_the_hubs_own_cache_is_taken(hub: Hub, tmp_path: Path) -> None:
    there = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.address, "HF_TOKEN": ""}
    ask = "from huggingface_hub import snapshot_download; snapshot_download('owner/model', revision='step2')"
    subprocess.run([sys.executable, "-c", ask], check=True, env={**os.environ, **there}, capture_output=True)
    table = {
        "name": "t",
        "models": [
            {"id": "cached", "repository": "owner/model", "revision": "step{step}"},
            {"id": "missing", "repository": "owner/none", "revision": "step{step}"},
        ],
    }
    (tmp_path / "models.yaml").write_text(json.dumps(table))
    (tmp_path / "ask.yaml").write_text("name: ask\nsuite: models.yaml\n")
    before = len(hub.requests)
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, str(tmp_path / "ask.yaml")],
        capture_output=True, text=True, env={**os.environ, **there, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    ((revision, commit, folder),) = answer["found"]
    assert (revision, commit) == ("step2", hub.commit("owner/model", "step2"))
    assert (Path(folder) / "model.safetensors").read_bytes() == WEIGHTS + b"step2"
    assert "owner/none is not in the hub's cache" in answer["errors"]["missing"]
    assert len(hub.requests) == before
