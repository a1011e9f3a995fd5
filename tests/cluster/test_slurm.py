"""A sweep as a Slurm job: time limits, a lost node, a stop, and the tables of a single machine in the end.

`make test-slurm`. The hosts are pretend ones; Slurm, munge, the batch script and Ray are real. The tests build on one
another in the order they stand in.
"""

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster import slurm_hosts
from cluster.slurm_hosts import Slurm
from reliability.sweeps import Sweep, contents
from tiny import make_cell

from raysweep.corpora.tokenized import TokenizedCorpus

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(bool(slurm_hosts.missing()), reason=slurm_hosts.missing())]

SPACE: dict[str, Any] = {
    "name": "slurm",
    "base": make_cell(tokens=1_843_200, reports=60).model_dump(exclude={"seed"}) | {"batch_size": 8},
    "cross": {"seed": [1, 2, 3, 4, 5, 6]},
    "evaluations": [{"task": "in_distribution", "sequences": 8}],
}
STORE = "/mnt/shared/store"


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory, corpus: TokenizedCorpus) -> Iterator[Slurm]:
    with Slurm(tmp_path_factory.mktemp("slurm") / "hosts", "n1", "n2", "n3") as slurm:
        (slurm.hosts.shared / "slurm.yaml").write_text(yaml.safe_dump(SPACE))
        yield slurm


def wait_for(condition: Callable[[], Any], seconds: float) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "did not come"
        time.sleep(0.5)
    return found


def submitted(slurm: Slurm, name: str, store: str, *options: str) -> int:
    begun = slurm.login("raysweep", "slurm", f"{name}.yaml", "--store", store, "--cpus-per-node", "1", *options)
    assert begun.returncode == 0, begun.stdout
    found = re.search(rf"{name} is job (\d+); it prints to raysweep-{name}-\1\.log", begun.stdout)
    assert found, begun.stdout
    return int(found[1])


def printed(slurm: Slurm, job: int) -> str:
    parts = sorted(slurm.hosts.shared.glob(f"raysweep-*-{job}*.log"))
    return "\n".join(f"{part.name}:\n{part.read_text(errors='replace')}" for part in parts)


def nothing_is_left(slurm: Slurm) -> None:
    """No process and no folder of a job's Ray on any node, once Slurm has cleaned up."""
    for host in slurm.hosts.workers:
        wait_for(lambda: host.run("pgrep", "-f", "raylet|gcs_server|ray::").returncode, 30)  # noqa: B023 (called at once)
        assert not list((host.home.parent / "tmp").glob("rs*"))


def counts(slurm: Slurm) -> dict[str, int]:
    said = slurm.login("raysweep", "status", "slurm.yaml", "--store", STORE, "--json")
    assert said.returncode == 0, said.stdout
    cells: dict[str, int] = json.loads(said.stdout)["cells"]
    return cells


def test_time_limits_are_hit_twice_and_a_node_is_lost(slurm: Slurm) -> None:
    job = submitted(slurm, "slurm", STORE, "--nodes", "3", "--time", "4", "--notice", "60")
    store = slurm.hosts.shared / "store"

    def restarts() -> int:
        state = slurm.state(job)
        assert state["JobState"] not in ("FAILED", "CANCELLED", "TIMEOUT"), printed(slurm, job)
        return int(state.get("Restarts", "0"))

    try:
        wait_for(lambda: list(store.glob("train/*/checkpoint_step*/state.json")), 240)
        status = slurm.login("raysweep", "status", "slurm.yaml", "--store", STORE, "--cluster", f"slurm:{job}")
        assert f"job {job}  state RUNNING, nodes 3" in status.stdout, status.stdout
        assert "running on n1" in status.stdout, status.stdout
        wait_for(lambda: restarts() >= 1, 240)
        before = counts(slurm)
        assert before["failed"] == 0
        assert before["left"] > 0
        wait_for(lambda: slurm.state(job)["JobState"] == "RUNNING" or restarts() < 0, 180)
        wait_for(lambda: counts(slurm)["running"] > 0, 120)
        slurm.hosts.workers[2].off()
        wait_for(lambda: restarts() >= 2, 300)
        assert counts(slurm)["failed"] == 0
    finally:
        print(printed(slurm, job))
    slurm.hosts.workers[2].on()
    slurm.begin(slurm.hosts.workers[2])
    wait_for(lambda: restarts() >= 2 and slurm.state(job)["JobState"] == "RUNNING", 240)
    wait_for(lambda: counts(slurm)["running"] > 0, 120)
    stopping = slurm.login("raysweep", "stop", "slurm.yaml", "--store", STORE, "--cluster", f"slurm:{job}")
    assert f"stopping job {job}" in stopping.stdout
    wait_for(lambda: slurm.state(job)["JobState"] not in ("RUNNING", "COMPLETING"), 90)
    stopped = counts(slurm)
    assert stopped["failed"] == stopped["running"] == 0
    nothing_is_left(slurm)


def test_another_job_ends_it_with_the_tables_of_one_machine(slurm: Slurm, tmp_path: Path) -> None:
    job = submitted(slurm, "slurm", STORE, "--nodes", "3", "--time", "30")
    try:
        wait_for(lambda: slurm.state(job)["JobState"] == "COMPLETED", 600)
    finally:
        print(printed(slurm, job))
    assert "6 of 6 cells done, 6 of 6 evaluations done" in printed(slurm, job)
    over = slurm.login("raysweep", "stop", "slurm.yaml", "--store", STORE, "--cluster", "slurm:999")
    assert "job 999 is over" in over.stdout
    (tmp_path / "slurm.yaml").write_text(yaml.safe_dump(SPACE))
    calm = tmp_path / "calm"
    status, said = Sweep(tmp_path / "slurm.yaml", calm, tmp_path / "log", RAY_ADDRESS="local").finish()
    assert status == 0, said
    assert contents(slurm.hosts.shared / "store") == contents(calm)
    assert not list((slurm.hosts.shared / "store").glob("failures/*/*"))


def test_nodes_of_an_array_join_as_they_come_and_go(slurm: Slurm, tmp_path: Path) -> None:
    """Elastic: a job for the sweep, and two workers, of which one is taken away, and the other comes to its time limit."""
    base = make_cell(tokens=3_072_000, reports=60).model_dump(exclude={"seed"}) | {"batch_size": 8}
    file, store = slurm.hosts.shared / "elastic.yaml", slurm.hosts.shared / "elastic"
    file.write_text(yaml.safe_dump(SPACE | {"name": "elastic", "base": base, "cross": {"seed": [1, 2, 3]}}))
    limits = ("--time", "3", "--notice", "60", "--sweep-time", "30")
    job = submitted(slurm, "elastic", "/mnt/shared/elastic", *("--elastic", "--nodes", "2"), *limits)

    def status() -> str:
        at = ("--store", "/mnt/shared/elastic", "--cluster", f"slurm:{job}")
        return slurm.login("raysweep", "status", "elastic.yaml", *at).stdout

    try:
        wait_for(lambda: "workers  2 RUNNING" in status(), 180)
        wait_for(lambda: list(store.glob("train/*/checkpoint_step*/state.json")), 180)
        named = f"--name=raysweep-workers-{job}"
        listed = slurm.login("squeue", "--noheader", named, "--array", "--format=%A %F %K").stdout
        rows = [line.split() for line in listed.splitlines()]
        assert len(rows) == 2
        # One of every array has the array's own number, by which Slurm would queue them all.
        (first,) = [f"{array}_{task}" for number, array, task in rows if number == array]
        (other,) = [f"{array}_{task}" for number, array, task in rows if number != array]
        # As Slurm takes a node away: the job is queued again, and joins again.
        assert slurm.login("scontrol", "requeue", other).returncode == 0
        log = slurm.hosts.shared / f"raysweep-elastic-{job}.log"
        wait_for(lambda: "nodes left" in log.read_text(), 120)
        wait_for(lambda: slurm.state(first)["Restarts"] == "1", 240)
        assert slurm.state(other)["Restarts"] == "1"
        wait_for(lambda: slurm.state(job)["JobState"] == "COMPLETED", 600)
    finally:
        print(printed(slurm, job))
    wait_for(lambda: not slurm.login("squeue", "--noheader").stdout, 60)
    nothing_is_left(slurm)
    assert not list(slurm.hosts.shared.glob("*.address"))
    calm = tmp_path / "calm"
    status_, said = Sweep(file, calm, tmp_path / "log", RAY_ADDRESS="local").finish()
    assert status_ == 0, said
    assert contents(store) == contents(calm)
    assert not list(store.glob("failures/*/*"))
