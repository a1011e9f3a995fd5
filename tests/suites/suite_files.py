"""A suite of the tiny published models, as files: the table, and what is asked."""

import os
import re
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from published_layouts import Published, suite_on_disk
from tiny import TINY

from raysweep.store.store import Store
from raysweep.suites.read import load_suite
from raysweep.suites.results import results, trajectories

ASKED: dict[str, Any] = {
    "name": "tiny",
    "suite": "models.yaml",
    "revisions": {"evenly": 2},
    "corpus": TINY,
    "text_bytes": 20_000,
    "sequence_length": 64,
    "measure": [{"of": ["blocks.*.mlp.up", "hidden.*"], "metrics": ["effective_rank"], "sequences": 32}],
    "evaluations": [
        "in_distribution",
        "out_of_distribution",
        {"task": "representation", "sequences": 64},
        {"task": "quantized", "bits": [4], "calibration_sequences": 8},
        {"task": "finetune_math", "tokens": 2048, "batch_size": 8, "sequences": 16},
    ],
    "resources": {"disk": 0.12},
}


def write(folder: Path, models: list[Published], **changes: Any) -> Path:
    """The files of a suite of these models, of which nothing is said but what their files do not."""
    table = {
        "name": "tiny-models",
        "source": "https://example.org",
        "models": [
            {
                "id": one.id,
                "repository": one.repository,
                "revision": "step{step}",
                "settings": {"size": f"d{one.width}", "width": one.width, "seed": one.seed, "corpus": one.layout},
            }
            for one in models
        ],
        "settings": {"steps": models[0].steps[-1], "batch_size": 8, "sequence_length": 128},
        "facts": {"batch_size": {"how": "known", "source": "this test"}},
        "unknown": ["weight_decay"],
    }
    (folder / "models.yaml").write_text(yaml.safe_dump(table))
    (folder / "tiny.yaml").write_text(yaml.safe_dump(ASKED | changes))
    return folder / "tiny.yaml"


def published(folder: Path, models: int, revisions: tuple[int, ...]) -> list[Published]:
    return suite_on_disk(folder, models, revisions)


def environment(hub: str, cache: Path, **changes: str) -> dict[str, str]:
    """Of a command that asks that hub, on a cluster of its own."""
    own = {"HF_ENDPOINT": hub, "RAYSWEEP_CACHE": str(cache), "RAY_ADDRESS": "local", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return {**os.environ, "HF_TOKEN": "", **own, **changes}


def command(*arguments: str, env: dict[str, str], timeout: float = 900) -> tuple[int, str]:
    """The exit status of `raysweep ...`, and what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "raysweep.cli", *arguments], capture_output=True, text=True, env=env, timeout=timeout
    )
    return done.returncode, done.stdout + done.stderr


def numbers(file: Path, store: Path) -> list[dict[str, Any]]:
    """Every number of a suite: of the models and of each of their checkpoints."""
    loaded = load_suite(file)
    over_training, measures = trajectories(loaded, Store(str(store)))
    rows = [*results(loaded, str(store)).to_pylist(), *over_training.to_dict("records"), *measures.to_dict("records")]
    return [{name: str(value) for name, value in row.items()} for row in rows]


def disk(folder: Path) -> int:
    """Bytes of the models in a cache."""
    total = 0
    for where, _, files in os.walk(folder):
        for file in files:
            with suppress(OSError):  # Gone in this moment.
                total += os.stat(os.path.join(where, file)).st_size
    return total


class Disk:
    """The most bytes that the models in a cache take, from now until `most` is asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._most, self._over = folder, 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            self._most = max(self._most, disk(self._folder))

    def most(self) -> int:
        self._over.set()
        self._thread.join()
        return self._most


def done_of(printed: str) -> tuple[int, int]:
    found = re.search(r"(\d+) of (\d+) checkpoints done", printed)
    assert found is not None, printed
    return int(found[1]), int(found[2])
