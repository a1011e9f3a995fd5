"""A study of one's own, as a user makes it: a package with a metric, a task and a source, through run and analyze."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from ruamel.yaml import YAML
from tiny import make_cell

import raysweep

ROOT = str(Path(raysweep.__file__).parents[1])


def command(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=folder, capture_output=True, text=True, check=False, timeout=300,
        env=os.environ | {"PYTHONPATH": ROOT},
    )  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `raysweep new` writes, and the search space that it says to write."""
    folder = tmp_path_factory.mktemp("study")
    space: dict[str, Any] = {
        "name": "study",
        "base": make_cell(tokens=2048, reports=2).model_dump(exclude={"batch_size"}) | {"batch_size": 4},
        "evaluations": [],
    }
    for kind, name in (("metric", "tail_index"), ("task", "top_token"), ("source", "modules")):
        made = command(folder, "raysweep.cli", "new", kind, name)
        assert made.returncode == 0, made.stderr
        said = YAML(typ="safe").load("code:" + made.stdout.partition("code:")[2].partition("\n\n")[0])
        space = {**space, **said, "evaluations": [*space["evaluations"], *said.get("evaluations", [])]}
    (folder / "study.yaml").write_text(yaml.safe_dump(space), "utf-8")
    return folder


def test_what_is_begun_has_tests_that_pass(study: Path) -> None:
    tested = command(study, "pytest", "-q", "my_study")
    assert "4 passed" in tested.stdout, tested.stdout + tested.stderr
    again = command(study, "raysweep.cli", "new", "metric", "tail_index")
    assert (again.returncode, again.stderr.count("\n")) == (1, 1)
    assert "metrics.py is there already" in again.stderr
    wrong = command(study, "raysweep.cli", "new", "task", "top-token")
    assert "NAME top-token: Python needs a name of letters" in wrong.stderr


@pytest.mark.usefixtures("corpus")
@pytest.mark.slow
def test_it_takes_part_in_everything(study: Path) -> None:
    ran = command(study, "raysweep.cli", "run", "study.yaml", "--store", "store")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "2 of 2 evaluations done" in ran.stdout
    wrote = command(study, "raysweep.cli", "results", "study.yaml", "--store", "store", "--output", "all.parquet")
    assert wrote.returncode == 0, wrote.stderr
    table = pd.read_parquet(study / "all.parquet")
    assert (table["top_token_accuracy"].between(0, 1) & (table["top_token_accuracy"] * 64 * 32 % 1 < 1e-9)).all()
    assert table["my_study_metrics_tail_index_unembedding"].between(0, 1).all()
    # Python's modules, by the first letter of their names.
    domains = [c for c in table if c.startswith("mine_loss_")]
    assert len(domains) > 10
    assert np.allclose(table["mine_loss"], table[domains].mean(axis=1))
    analysed = command(study, "raysweep.cli", "analyze", "study.yaml", "--store", "store", "--output", "report")
    assert analysed.returncode == 0, analysed.stderr
    pairs = pd.read_csv(study / "report/regressions.csv")[["task", "metric"]].drop_duplicates()
    assert {"mine", "top_token_accuracy"} <= set(pairs["task"])
    assert "my_study_metrics_tail_index_unembedding" in set(pairs["metric"])
    page = (study / "report/report.html").read_text("utf-8")
    assert "tail_index" in page

    # Other code is another result, and the old one stays.
    file = study / "my_study/tasks.py"
    file.write_text(file.read_text("utf-8").replace("argmax(-1)", "argmin(-1)"), "utf-8")
    changed = json.loads(command(study, "raysweep.cli", "status", "study.yaml", "--store", "store", "--json").stdout)
    assert (changed["evaluations"]["done"], changed["evaluations"]["left"]) == (1, 1)
    assert len(list((study / "store/evaluations").glob("top_token-*"))) == 1
