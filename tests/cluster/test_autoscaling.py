"""A cluster that grows while cells wait and shrinks when they are done (`make test-autoscaling`).

Ray's own autoscaler, with the provider that it has for trying it out: its nodes are processes of one host, a pretend one.
"""

import json
import re
import shutil
import time
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from cluster import hosts as pretend
from cluster.hosts import Hosts
from tiny import make_cell

from raysweep.corpora.tokenized import TokenizedCorpus

pytestmark = [pytest.mark.autoscaling, pytest.mark.skipif(bool(pretend.missing()), reason=pretend.missing())]

SPACE: dict[str, Any] = {
    "name": "grows",
    "base": make_cell(tokens=102_400).model_dump(exclude={"seed"}) | {"batch_size": 4},
    "cross": {"seed": [1, 2, 3]},
    "evaluations": [{"task": "in_distribution", "sequences": 8}],
}
WORKER = {
    "resources": {"CPU": 1, "object_store_memory": 100_000_000},
    "node_config": {},
    "min_workers": 0,
    "max_workers": 2,
}
AUTOSCALER = {
    "cluster_name": "grows",
    "max_workers": 2,
    "idle_timeout_minutes": 0.2,
    "provider": {
        "type": "fake_multinode",
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
        # All are on one host here.
        "use_node_id_as_ip": True,
    },
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0, "raysweep_driver": 1}, "node_config": {}, "max_workers": 0},
        # The last by name is what Ray would start by itself.
        "a_spot": WORKER,
        "z_on_demand": WORKER,
    },
    "head_node_type": "ray.head.default",
    "upscaling_speed": 1.0,
    # What the launcher would have filled in.
    **{name: {} for name in ("auth", "docker", "file_mounts")},
    **{name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands")},
    **{f"{who}setup_commands": [] for who in ("", "head_", "worker_")},
    **{f"{who}_start_ray_commands": [] for who in ("head", "worker")},
    "file_mounts_sync_continuously": False,
}
NODES = """
import json, ray
ray.init("auto", logging_level="CRITICAL", log_to_driver=False)
print(json.dumps([node["Resources"] for node in ray.nodes() if node["Alive"]]))
"""
TRIALS = """
import json, ray
from ray.util.state import list_actors, list_nodes
ray.init("auto", logging_level="CRITICAL", log_to_driver=False)
head = {node.node_id for node in list_nodes() if node.is_head_node}
actors = list_actors(detail=True, limit=1000)
print(json.dumps([[actor.class_name, actor.node_id in head] for actor in actors if actor.node_id]))
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, corpus: TokenizedCorpus) -> Iterator[Hosts]:
    with Hosts(tmp_path_factory.mktemp("autoscaling") / "hosts") as cluster:
        shutil.copytree(corpus.folder, cluster.head.home / ".cache/raysweep/corpora" / corpus.folder.name)
        for name, resources in (("grows", {}), ("large", {"resources": {"train": {"cpus": 4}}})):
            (cluster.shared / f"{name}.yaml").write_text(yaml.safe_dump(SPACE | {"name": name} | resources))
        (cluster.shared / "autoscaler.json").write_text(json.dumps(AUTOSCALER))
        cluster.head.run("ray", "get-auth-token", "--generate")
        started = cluster.head.run(
            "env", "RAY_FAKE_CLUSTER=1", "AUTOSCALER_UPDATE_INTERVAL_S=1", "RAY_enable_autoscaler_v2=0",
            "RAY_AUTOSCALER_UTILIZATION_SCORER=raysweep.cluster.autoscaling.spot_first",
            "ray", "start", "--head", "--num-cpus=0", '--resources={"raysweep_driver": 1}',
            "--object-store-memory=200000000", "--autoscaling-config=/mnt/shared/autoscaler.json",
        )  # fmt: skip
        assert started.returncode == 0, started.stdout
        yield cluster


def nodes(cluster: Hosts) -> list[dict[str, float]]:
    """The resources of the nodes that are alive, the head among them."""
    return listed(cluster, NODES)


def listed(cluster: Hosts, script: str) -> list[Any]:
    """The list that a script on the head prints, among what Ray may have to say."""
    printed = cluster.head.run("python", "-c", script).stdout
    found: list[Any] = json.loads(next((line for line in printed.splitlines() if line.startswith("[")), "[]"))
    return found


def test_a_cell_that_no_node_type_holds_is_refused_at_once(cluster: Hosts) -> None:
    refused = cluster.head.run("raysweep", "run", "/mnt/shared/large.yaml", "--store", "/mnt/shared/large")
    assert refused.returncode == 1
    last = refused.stdout.splitlines()[-1]
    assert "a cell of large asks for 4 CPU and the cluster's nodes and node types have 0 CPU, 1 CPU" in last
    assert "Traceback" not in refused.stdout


def test_the_cluster_grows_for_cells_and_shrinks_after(cluster: Hosts) -> None:
    assert len(nodes(cluster)) == 1
    sweep = cluster.head.start("raysweep", "run", "/mnt/shared/grows.yaml", "--store", "/mnt/shared/grows")
    where: set[tuple[str, bool]] = set()
    most = 1
    while sweep.poll() is None:
        time.sleep(5)
        most = max(most, len(nodes(cluster)))
        where |= {(name, on_head) for name, on_head in listed(cluster, TRIALS)}
    assert sweep.stdout is not None
    printed = sweep.stdout.read()
    assert sweep.returncode == 0, printed
    print(printed)
    assert "3 of 3 cells done, 3 of 3 evaluations done" in printed
    assert re.search(r"waiting a cell of grows asks for 1 CPU .*: the autoscaler starts some", printed)
    # Three cells wait and the head trains none: two nodes, as many as may be, and of the type that raysweep prefers.
    assert most == 3
    log = next((cluster.state / "head" / "tmp" / "ray").glob("session_2*/logs/monitor.log"))
    assert "a_spot" in log.read_text()
    assert not re.search(r"[Aa]dding \d+ node\(s\) of type z_on_demand", log.read_text())
    trials = {on_head for name, on_head in where if "ImplicitFunc" in name or "run_cell" in name}
    workers = {on_head for name, on_head in where if "RayTrainWorker" in name}
    assert trials == {True}
    assert workers == {False}
    # Ray Train's last request for nodes stands for up to three minutes.
    deadline = time.monotonic() + 240
    while len(nodes(cluster)) > 1:
        assert time.monotonic() < deadline, f"{len(nodes(cluster)) - 1} idle nodes stay: {log.read_text()[-6000:]}"
        time.sleep(3)
