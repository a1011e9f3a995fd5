"""Whole sweeps in a cluster whose nodes go and come, all on this machine (`make test-faults`)."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from ray.cluster_utils import Cluster
from reliability.sweeps import Sweep, contents
from tiny import make_cell

from raysweep.corpora.tokenized import TokenizedCorpus

SPACE: dict[str, Any] = {
    "name": "nodes",
    "base": make_cell(tokens=204_800).model_dump(exclude={"seed"}) | {"batch_size": 4},
    "cross": {"seed": [1, 2, 3]},
    "evaluations": [{"task": "finetune_math", "tokens": 131_072, "batch_size": 4, "sequences": 8}],
    "resources": {"train": {"cpus": 1}, "evaluate": {"cpus": 1}},
}

pytestmark = pytest.mark.faults


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head without a core for work."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        yield cluster
    finally:
        cluster.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, corpus: TokenizedCorpus) -> Path:
    folder = tmp_path_factory.mktemp("nodes")
    (folder / "nodes.yaml").write_text(yaml.safe_dump(SPACE))
    return folder


def working(nodes: list[Any], name: str) -> Any:
    """The node on which a process of that name works, if there is one."""
    for node in nodes:
        raylet = next(p.process.pid for p in node.all_processes["raylet"])
        try:
            if any(name in " ".join(child.cmdline()) for child in psutil.Process(raylet).children()):
                return node
        except psutil.NoSuchProcess:
            continue
    return None


def complete(sweep: Sweep) -> str:
    """What it printed by the time that everything was done."""
    status, printed = sweep.finish()
    print(printed)
    assert status == 0, printed
    return printed


def test_nodes_that_go_in_mid_training_and_mid_evaluation_and_come_back(cluster: Cluster, folder: Path) -> None:
    log, calm_log = folder / "log", folder / "calm.log"
    calm = Sweep(folder / "nodes.yaml", folder / "calm", calm_log, RAY_ADDRESS="local")
    complete(calm)
    expected = contents(folder / "calm")
    assert len(expected) == 12

    store = folder / "disturbed"
    nodes = [cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1)]
    sweep = Sweep(folder / "nodes.yaml", store, log, RAY_ADDRESS=cluster.address)
    sweep.wait_for(lambda: list(store.glob("train/*/checkpoint_step*/state.json")))
    gone = sweep.wait_for(lambda: working(nodes, "ray::RayTrainWorker"))
    nodes.remove(gone)
    cluster.remove_node(gone, allow_graceful=False)
    time.sleep(8)
    nodes.append(cluster.add_node(num_cpus=1))
    gone = sweep.wait_for(lambda: working(nodes, "ray::evaluate_cell"))
    nodes.remove(gone)
    cluster.remove_node(gone, allow_graceful=False)
    time.sleep(3)
    cluster.add_node(num_cpus=1)
    printed = complete(sweep)
    assert "nodes left: the cluster has 3 nodes with 2 CPU" in printed
    assert "nodes joined: the cluster has" in printed
    assert "(raylet)" not in printed
    assert contents(store) == expected
    assert not list(store.glob("failures/*/*"))


def test_a_cell_outlives_more_nodes_than_ray_takes_failures(cluster: Cluster, folder: Path) -> None:
    """Ray counts each lost node as a failure of the training, or of the trial, and gives up after the third."""
    log, store, file = folder / "many.log", folder / "many", folder / "many.yaml"
    base = make_cell(tokens=1_638_400).model_dump(exclude={"seed"})
    file.write_text(yaml.safe_dump(SPACE | {"name": "many", "base": base, "cross": {"seed": [1]}, "evaluations": []}))
    node = cluster.add_node(num_cpus=1)
    sweep = Sweep(file, store, log, RAY_ADDRESS=cluster.address)
    for _ in range(5):
        sweep.wait_for(lambda: working([node], "ray::RayTrainWorker"))  # noqa: B023 (called at once)
        time.sleep(2)
        cluster.remove_node(node, allow_graceful=False)
        node = cluster.add_node(num_cpus=1)
    complete(sweep)
    assert len(list(store.glob("cells/*.parquet"))) == 1
    assert not list(store.glob("failures/*/*"))


def test_a_sweep_waits_for_nodes_that_hold_its_cells_and_says_so(cluster: Cluster, folder: Path) -> None:
    log, store, file = folder / "waiting.log", folder / "waiting", folder / "two.yaml"
    resources = {"train": {"cpus": 2}, "evaluate": {"cpus": 1}}
    base = make_cell(tokens=4096).model_dump(exclude={"seed"})
    space = SPACE | {"base": base, "cross": {"seed": [1]}, "evaluations": [], "resources": resources}
    file.write_text(yaml.safe_dump(space))
    cluster.add_node(num_cpus=1)
    sweep = Sweep(file, store, log, RAY_ADDRESS=cluster.address)
    reason = "a cell of nodes asks for 2 CPU and the cluster's nodes have 0 CPU, 1 CPU: add nodes"

    def status() -> str:
        command = [sys.executable, "-m", "raysweep.cli", "status", str(file), "--store", str(store)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    sweep.wait_for(lambda: f"waiting {reason}" in log.read_text())
    sweep.wait_for(lambda: f"waiting {reason}" in status())
    cluster.add_node(num_cpus=2)
    printed = complete(sweep)
    assert "there is room again" in printed
    assert "1 of 1 cells done" in printed


def test_what_no_machine_can_hold_is_named_at_once(folder: Path) -> None:
    file = folder / "huge.yaml"
    file.write_text(yaml.safe_dump(SPACE | {"resources": {"train": {"cpus": 5000}, "evaluate": {"cpus": 1}}}))
    log = folder / "huge.log"
    sweep = Sweep(file, folder / "huge", log, RAY_ADDRESS="local")
    assert sweep.process.wait(120) == 1
    sweep.sweep_up()
    refusals = [line for line in log.read_text().splitlines() if "error:" in line]
    assert len(refusals) == 1
    assert "a cell of nodes asks for 5000 CPU and the cluster's nodes have" in refusals[0]
    assert "lower resources in the search space" in refusals[0]
