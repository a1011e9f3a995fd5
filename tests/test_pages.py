"""Every command of the how-tos is run: those for one machine here, the others by the tests that have such a cluster."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from pages import NAMES, PAGES, ROOT, commands
from tiny import make_cell
from watch.serving import watching

# In an order in which each page finds what the ones before it made.
HERE = [
    "README.md",
    "docs/start.md",
    "docs/own-study.md",
    "docs/design.md",
    "docs/watching.md",
    "docs/resume.md",
    "docs/evaluations.md",
    "docs/measures.md",
]
ELSEWHERE = {
    "docs/cluster.md": ["cluster/test_cluster.py"],
    "docs/own-machines.md": ["cluster/test_cluster.py"],
    "docs/slurm.md": ["cluster/test_slurm.py", "cluster/test_slurm_script.py"],
    "docs/kubernetes.md": ["cluster/test_kubernetes.py", "cluster/test_pods.py", "watch/test_server.py"],
    "docs/paper.md": [
        "test_package.py",
        "corpora/test_commands.py",
        "cluster/test_cluster.py",
        "exchange/test_model_matrices.py",
        "exchange/test_pretrained.py",
    ],
    "docs/published-models.md": ["suites/test_suite_runs.py"],
}
NOT_HOW_TO = {"docs/mini.md", "docs/first-miniature.md", "docs/reference/commands.md"}


def test_every_page_with_commands_has_its_tests() -> None:
    with_commands = {name for page, name in zip(PAGES, NAMES, strict=True) if any(commands(page))}
    assert with_commands - NOT_HOW_TO == {*HERE, *ELSEWHERE}


@pytest.mark.parametrize("page", ELSEWHERE)
def test_commands_of_clusters_stand_in_their_tests(page: str) -> None:
    tests = " ".join((ROOT / "tests" / file).read_text(encoding="utf-8") for file in ELSEWHERE[page])
    run_here = {name_and_options(command) for name in HERE for command in commands(ROOT / name)}
    for command in commands(ROOT / page):
        words = name_and_options(command)
        if words not in run_here:
            assert [word for word in words if word not in tests] == [], command


def name_and_options(command: str) -> tuple[str, ...]:
    name, *rest = shlex.split(command)
    return (name, *sorted(word for word in rest if word.startswith("--")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny sweep under the names that the pages use."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "search_spaces").mkdir()
    space: dict[str, Any] = {
        "name": "mine",
        "base": make_cell(tokens=8192).model_dump(exclude={"batch_size"}) | {"batch_size": 4},
        "cross": {"batch_size": [4, 8]},
        "evaluations": [{"task": "in_distribution", "sequences": 8}],
        "measure": [{"of": "blocks.0.mlp.up", "metrics": ["stable_rank"]}],
    }
    (folder / "mine.yaml").write_text(yaml.safe_dump(space), encoding="utf-8")
    (folder / "search_spaces" / "demo.yaml").write_text(yaml.safe_dump(space | {"name": "demo"}), encoding="utf-8")
    shutil.copytree(ROOT / "results" / "mini", folder / "results" / "mini")
    return folder


def run(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=folder, capture_output=True, text=True, check=False, timeout=600,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.usefixtures("corpus")
@pytest.mark.parametrize("page", HERE)
def test_the_commands_of_a_page_work_in_their_order(page: str, folder: Path) -> None:
    store = "search_spaces/demo.yaml" if page in ("docs/evaluations.md", "docs/watching.md") else "mine.yaml"
    here = folder
    for command in commands(ROOT / page):
        if command == "demo":
            begin_demo(folder / "demo")
            continue
        if re.search(r"\bCELL\b", command):
            plan = json.loads(run(here, "raysweep.cli", "plan", store, "--json"))
            command = command.replace("CELL", plan["cells"][0]["id"])
        words = shlex.split(command.replace("SPACE", "mine.yaml").replace("MODEL", "model"))
        if words[0] == "export":  # Into a new folder, on each page.
            shutil.rmtree(here / "model", ignore_errors=True)
        if "first.yaml" in words:
            here = folder / "first"
        if words[:2] == ["plan", "first.yaml"]:
            make_tiny(here / "first.yaml")
        if words[0] == "watch":
            with watching(*words[1:], cwd=here) as address:
                assert address.startswith("http://127.0.0.1:")
        else:
            run(here, "raysweep.cli", *words)


def begin_demo(folder: Path) -> None:
    """`raysweep demo` until its first cells train: to its end it takes eight minutes (`make demo`)."""
    folder.mkdir()
    demo = subprocess.Popen(
        [sys.executable, "-m", "raysweep.cli", "demo"], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    try:
        while demo.poll() is None:
            time.sleep(5)
            # Before there is a plan, there is no store to ask.
            if (folder / "runs" / "demo" / "plan.parquet").exists():
                state = json.loads(run(folder, "raysweep.cli", "status", "demo.yaml", "--json"))
                if state["cells"]["running"]:
                    run(folder, "raysweep.cli", "stop", "demo.yaml")
                    break
        printed, _ = demo.communicate(timeout=120)
    finally:
        demo.kill()
    assert demo.returncode == 130, printed
    assert "nothing is lost. Resume with:" in printed
    assert (folder / "demo.yaml").read_text() == (ROOT / "search_spaces" / "demo.yaml").read_text()


def make_tiny(file: Path) -> None:
    """A study as `new study` writes it, of fewer and smaller cells."""
    space = yaml.safe_load(file.read_text(encoding="utf-8"))
    space["base"] = make_cell(tokens=8192).model_dump(exclude={"batch_size"}) | {"batch_size": 4}
    file.write_text(yaml.safe_dump(space), encoding="utf-8")
