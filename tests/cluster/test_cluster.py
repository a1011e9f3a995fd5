"""A cluster of several hosts as its users have it: `ray up`, `raysweep run --cluster`, lost hosts, `ray down`, and again.

`make test-cluster`. The hosts are pretend ones (hosts.py); the launcher, SSH, tokens, jobs and cluster.local.yaml are
real. The hosts reach no package registry, so the file's installation is left out: they see the environment of the tests.
The tests build on one another in the order they stand in.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster import hosts as pretend
from cluster.hosts import REPOSITORY, Host, Hosts
from reliability.sweeps import Sweep, contents
from tiny import make_cell

from raysweep.corpora.tokenized import TokenizedCorpus

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(pretend.missing()), reason=pretend.missing())]

SPACE: dict[str, Any] = {
    "name": "hosts",
    "base": make_cell(tokens=102_400).model_dump(exclude={"seed"}) | {"batch_size": 4},
    "cross": {"seed": [1, 2, 3, 4, 5, 6]},
    "evaluations": [
        {"task": "in_distribution", "sequences": 8},
        {"task": "finetune_math", "tokens": 8_192, "batch_size": 4, "sequences": 8},
    ],
}
TWO_WORKERS: dict[str, Any] = SPACE | {
    "name": "two",
    "base": make_cell(tokens=51_200).model_dump(exclude={"seed"}) | {"batch_size": 4},
    "cross": {"seed": [1]},
    "evaluations": [],
    "resources": {"train": {"workers": 2}},
}
STORE = "/mnt/shared/store"

# What docs/cluster.md lists as listening beyond a host's own loopback address, by process; the workers' rendezvous of
# PyTorch takes any free port.
PORTS = {22, 6379, 6380, 6381, 6382, 6383, 6384, 8080, 10001, *range(10002, 20000), 44217, 44227}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, corpus: TokenizedCorpus) -> Path:
    folder = tmp_path_factory.mktemp("cluster")
    for space in (SPACE, TWO_WORKERS):
        (folder / f"{space['name']}.yaml").write_text(yaml.safe_dump(space))
    return folder


@pytest.fixture(scope="module")
def cluster(folder: Path, corpus: TokenizedCorpus) -> Iterator[Hosts]:
    with Hosts(folder / "hosts", "w1", "w2") as cluster:
        # The head is spared a minute of building; the workers have no corpus and are to fetch it.
        shutil.copytree(corpus.folder, cluster.head.home / ".cache/raysweep/corpora" / corpus.folder.name)
        for name in ("hosts", "two"):
            shutil.copy(folder / f"{name}.yaml", cluster.laptop.home)
        (cluster.laptop.home / "cluster.yaml").write_text(configuration(cluster))
        made = cluster.laptop.run("ray", "get-auth-token", "--generate")
        assert made.returncode == 0, made.stdout
        up(cluster)
        yield cluster


def configuration(cluster: Hosts) -> str:
    """cluster.local.yaml with its marked lines edited, for hosts of one core each that share this machine's memory."""
    text = (REPOSITORY / "cluster.local.yaml").read_text()
    content = yaml.safe_load(text)
    content["provider"] |= {"head_ip": cluster.head.address, "worker_ips": [host.address for host in cluster.workers]}
    content["auth"] = {"ssh_user": "root", "ssh_private_key": "/root/.ssh/id_ed25519"}
    content["setup_commands"] = [command for command in content["setup_commands"] if ".bashrc" in command]
    small = "--object-store-memory=200000000 --num-cpus=1"
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        content[commands] = [
            command.replace(" --num-cpus=0", "").replace("ray start", f"ray start {small}")
            for command in content[commands]
        ]
    return yaml.safe_dump(content)


def up(cluster: Hosts) -> None:
    begun = time.monotonic()
    # In the repository, whose files it copies.
    raised = cluster.laptop.run("ray", "up", "-y", "/root/cluster.yaml", cwd=str(REPOSITORY), timeout=240)
    assert raised.returncode == 0, raised.stdout
    print(f"ray up: {time.monotonic() - begun:.0f} s")


def raysweep(cluster: Hosts, command: str, name: str = "hosts", *more: str) -> "subprocess.Popen[str]":
    """A command on the laptop, for the cluster."""
    return cluster.laptop.start(
        "raysweep", command, "--cluster", "cluster.yaml", f"{name}.yaml", "--store", f"{STORE}-{name}", *more,
        start_new_session=True,
    )  # fmt: skip


def answer(process: "subprocess.Popen[str]", timeout: float = 300) -> str:
    try:
        printed, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        printed, _ = process.communicate()
        raise AssertionError(printed) from None
    print(printed)
    assert process.returncode == 0, printed
    assert "Traceback" not in printed, printed
    return printed


def status(cluster: Hosts) -> dict[str, int]:
    """How many cells are in which state."""
    found: dict[str, int] = json.loads(answer(raysweep(cluster, "status", "hosts", "--json")))["cells"]
    return found


def wait_for(condition: Callable[[], Any], seconds: float = 120) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "did not come"
        time.sleep(0.1)
    return found


def trains(host: Host) -> bool:
    """Whether a cell is in training there."""
    return host.run("pgrep", "-f", "ray::RayTrainWorker").returncode == 0


def states(store: Path) -> int:
    """How many checkpoints of cells in training there are."""
    return len(list(store.glob("train/*/checkpoint_step*/state.json")))


def test_the_dashboard_asks_for_the_token_and_nothing_else_listens(cluster: Hosts) -> None:
    token = (cluster.laptop.home / ".ray" / "auth_token").read_text().strip()
    assert (cluster.head.home / ".ray" / "auth_token").read_text().strip() == token
    address = "http://127.0.0.1:8265/api/jobs/"

    def code(*arguments: str) -> str:
        return cluster.head.run("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", *arguments, address).stdout

    assert code() == "401"
    assert code("-H", "Authorization: Bearer 0123456789abcdef0123456789abcdef") == "403"
    assert code("-H", f"Authorization: Bearer {token}") == "200"
    wait_for(lambda: all("raylet" in host.run("ss", "-ltnpH").stdout for host in cluster.workers))
    for host in cluster.all[1:]:
        for line in host.run("ss", "-ltnH").stdout.splitlines():
            address, _, port = line.split()[3].rpartition(":")
            if not address.startswith(("127.", "[::1]", "[::ffff:127.")):
                assert int(port) in PORTS, f"{host.name}: {host.run('ss', '-ltnp').stdout}"
    refused = cluster.laptop.run("curl", "-s", "-m", "5", "http://head:8265/")
    assert refused.returncode == 7


def test_a_cell_over_two_hosts_goes_on_when_one_is_lost(cluster: Hosts, folder: Path) -> None:
    store = cluster.shared / "store-two"
    sweep = raysweep(cluster, "run", "two")
    wait_for(lambda: states(store))
    lost = next(host for host in cluster.workers if trains(host))
    assert sum(trains(host) for host in cluster.all[1:]) == 2
    lost.off()
    time.sleep(1)
    lost.on()
    printed = answer(sweep)
    assert "1 of 1 cells done" in printed
    calm = single_machine(folder, "two")
    assert contents(store) == calm


def test_a_sweep_outlives_hosts_cables_and_the_laptop(cluster: Hosts, folder: Path) -> None:
    w1, w2 = cluster.workers
    store = cluster.shared / "store-hosts"
    sweep = raysweep(cluster, "run")
    wait_for(lambda: states(store) >= 2 and trains(w1))
    w1.off()
    wait_for(lambda: trains(w2))
    w2.cable(False)
    # The laptop's process dies; the job does not.
    os.killpg(sweep.pid, signal.SIGKILL)
    printed = sweep.communicate()[0]
    job = re.search(r"started as job (\S+) on", printed)
    assert job, printed
    w1.on()
    time.sleep(20)
    w2.cable(True)
    assert "running on head" in answer(raysweep(cluster, "status"))
    assert status(cluster)["failed"] == 0
    # To run it again is to see it again.
    again = raysweep(cluster, "run")
    assert again.stdout is not None
    assert f"hosts is running as job {job[1]}" in again.stdout.readline()
    wait_for(lambda: list(store.glob("cells/*.parquet")), 240)
    os.killpg(again.pid, signal.SIGKILL)
    assert f"stopped {job[1]}" in answer(raysweep(cluster, "stop"), 60)
    stopped = status(cluster)
    assert stopped["running"] == 0
    assert stopped["left"] > 0
    down = cluster.laptop.run("ray", "down", "-y", "cluster.yaml")
    assert down.returncode == 0, down.stdout
    written = {file: file.stat().st_mtime_ns for file in store.glob("cells/*.parquet")}
    up(cluster)
    printed = answer(raysweep(cluster, "run"))
    assert "6 of 6 cells done, 12 of 12 evaluations done" in printed
    assert {file: file.stat().st_mtime_ns for file in written} == written
    # What Ray Train says of its runs, at the endpoint that its dashboards read.
    token = (cluster.laptop.home / ".ray" / "auth_token").read_text().strip()
    runs = cluster.head.run(
        "curl", "-s", "-H", f"Authorization: Bearer {token}", "http://127.0.0.1:8265/api/train/v2/runs/v1"
    )
    assert {run["name"] for run in json.loads(runs.stdout)["train_runs"]} <= {file.stem for file in written} | {
        file.stem for file in store.glob("cells/*.parquet")
    }
    jobs = cluster.head.run("curl", "-s", "-H", f"Authorization: Bearer {token}", "http://127.0.0.1:8265/api/jobs/")
    metadata = json.loads(jobs.stdout)[0]["metadata"]
    assert metadata.items() >= {"search_space": "hosts", "store": f"{STORE}-hosts", "cells": "6"}.items()
    assert contents(store) == single_machine(folder, "hosts")
    assert not list(store.glob("failures/*/*"))


def test_the_workers_fetched_the_corpus_once(cluster: Hosts, corpus: TokenizedCorpus) -> None:
    for worker in cluster.workers:
        there = list((worker.home / ".cache/raysweep/corpora").glob("*/manifest.json"))
        assert [json.loads(file.read_text())["fingerprint"] for file in there] == [corpus.fingerprint]


def test_mistakes_get_one_line(cluster: Hosts) -> None:
    def refused(*arguments: str) -> str:
        done = cluster.laptop.run("raysweep", *arguments)
        assert done.returncode == 1
        assert "Traceback" not in done.stdout
        assert len(done.stdout.splitlines()) == 1, done.stdout
        return str(done.stdout)

    assert "no such cluster configuration" in refused("run", "--cluster", "no.yaml", "hosts.yaml", "--store", STORE)
    assert "the store must be one that every node reaches" in refused("run", "--cluster", "cluster.yaml", "hosts.yaml")
    cluster.head.off()
    assert "cannot be reached" in refused("status", "--cluster", "cluster.yaml", "hosts.yaml", "--store", STORE)


def single_machine(folder: Path, name: str) -> dict[str, bytes]:
    """The tables of the same cells, trained undisturbed on this machine."""
    store = folder / f"calm-{name}"
    status, printed = Sweep(folder / f"{name}.yaml", store, folder / f"calm-{name}.log", RAY_ADDRESS="local").finish()
    assert status == 0, printed
    return contents(store)
