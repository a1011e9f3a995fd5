"""The image's steps in a bare root file system, and a sweep in it by the commands that KubeRay's operator would give.

`make test-kubernetes`. There is no Kubernetes here: hosts.py's hosts stand for pods. The commands and variables are those
that KubeRay 1.7.0 makes of the manifest (`ray-operator/controllers/ray/common/pod.go` and `job.go`).
"""

import base64
import secrets
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster import pods
from cluster.hosts import Hosts
from cluster.pods import Image, Pod
from reliability.sweeps import Sweep, contents
from tiny import make_cell

from raysweep.cluster import kubernetes
from raysweep.cluster.kubernetes import GI, Request
from raysweep.corpora.tokenized import TokenizedCorpus
from raysweep.space.read import load

pytestmark = [pytest.mark.kubernetes, pytest.mark.skipif(bool(pods.missing()), reason=pods.missing())]

SPACE: dict[str, Any] = {
    "name": "pods",
    "base": make_cell(tokens=409_600).model_dump(exclude={"seed"}) | {"batch_size": 4},
    "cross": {"seed": [1, 2, 3]},
    "evaluations": [{"task": "in_distribution", "sequences": 8}, {"task": "pods_task:width", "sequences": 8}],
    "code": ["pods_task"],
}
TASK = '''\
"""A task of one's own."""

from raysweep.evaluation.task import Metric


def width(subject, sequences=4):
    yield Metric("width", subject.cell.size.width, "")
'''
TOKEN = secrets.token_hex(32)
REQUEST = Request("here", nodes=2, cpus_per_node=1, memory_per_node=3, claims=(("work", "/data"),))
STORE = "/data/pods"


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    with Hosts(tmp_path_factory.mktemp("pods") / "hosts", "n1", "n2") as hosts:
        yield hosts


@pytest.fixture(scope="module")
def image(hosts: Hosts) -> Image:
    image = Image(hosts.shared / "image")
    image.build()
    return image


@pytest.fixture(scope="module")
def file(hosts: Hosts) -> Path:
    (hosts.shared / "mine" / "pods_task").mkdir(parents=True)
    (hosts.shared / "mine" / "pods_task" / "__init__.py").write_text(TASK)
    file = hosts.shared / "mine" / "space.yaml"
    file.write_text(yaml.safe_dump(SPACE))
    return file


def mounted(config: dict[str, Any], specification: dict[str, Any], folder: Path) -> None:
    """A ConfigMap's files as the kubelet has them in a volume: each first name a link into a folder of this version."""
    volume = next(volume["configMap"] for volume in specification["volumes"] if "configMap" in volume)
    for item in volume["items"]:
        path = folder / "..2026_11_26" / item["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        text = config["data"].get(item["key"])
        path.write_bytes(base64.b64decode(config["binaryData"][item["key"]]) if text is None else text.encode())
        first = Path(item["path"]).parts[0]
        if not (folder / first).is_symlink():
            (folder / first).symlink_to(f"..data/{first}")
    (folder / "..data").symlink_to("..2026_11_26")


def ray_start(group: dict[str, Any], *more: str) -> str:
    """The command of a container (generateRayStartCommand and setMissingRayStartParams)."""
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    parameters = {
        "block": None, "dashboard-agent-listen-port": "52365", "memory": str(int(limits["memory"][:-2]) * GI),
        "metrics-export-port": "8080", "num-cpus": limits["cpu"],
    } | group["rayStartParams"]  # fmt: skip
    options = " ".join(f"--{name}" if value is None else f"--{name}={value}" for name, value in parameters.items())
    return f"ulimit -n 65536; ray start {options} {' '.join(more)}"


def submission(entrypoint: str, address: str, job: str) -> str:
    """What the submitter's container runs (BuildJobSubmitCommand), but for its first wait."""
    return (
        f"if ! ray job status --address {address} {job} >/dev/null 2>&1 ; then ray job submit --address {address} --no-wait "
        f"--submission-id {job} -- {entrypoint} ; fi ; ray job logs --address {address} --follow {job}"
    )


class Cluster:
    """The pods of a manifest."""

    def __init__(self, hosts: Hosts, image: Image, config: dict[str, Any], job: dict[str, Any]) -> None:
        spec = job["spec"]["rayClusterSpec"]
        self.hosts, self.entrypoint = hosts, job["spec"]["entrypoint"]
        self.groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
        study, data = hosts.shared / "study", hosts.shared / "data"
        if not study.exists():
            data.mkdir()
            data.chmod(0o777)
            mounted(config, self.groups[0]["template"]["spec"], study)
        volumes = {kubernetes.STUDY: study, "/data": data}
        self.head, *self.workers = [
            Pod(host, image, self.groups[number > 0]["template"]["spec"], volumes)
            for number, host in enumerate((hosts.head, *hosts.workers))
        ]
        self.running: list[subprocess.Popen[str]] = []

    def variables(self) -> dict[str, str]:
        return {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": TOKEN,
            "RAY_USAGE_STATS_KUBERAY_IN_USE": "1",
            "RAY_PORT": "6379",
        }

    def start_head(self) -> None:
        command = ray_start(self.groups[0], "--head", "--dashboard-host=0.0.0.0")
        self.running.append(self.head.start(command, RAY_ADDRESS="127.0.0.1:6379", **self.variables()))
        deadline = time.monotonic() + 120
        url = "http://localhost:8265/api/gcs_healthz"
        probe = f"python -c \"import urllib.request; urllib.request.urlopen('{url}', timeout=9)\""
        while self.head.start(probe).wait(60):
            assert time.monotonic() < deadline
            time.sleep(1)

    def start_worker(self, number: int) -> None:
        address = f"{self.hosts.head.address}:6379"
        command = f"until ray health-check --address {address} > /dev/null 2>&1; do sleep 1; done; " + ray_start(
            self.groups[1], f"--address={address}"
        )
        self.running.append(
            self.workers[number].start(command, RAY_ADDRESS=address, FQ_RAY_IP="head", **self.variables())
        )

    def submit(self, job: str, log: Path) -> "subprocess.Popen[str]":
        """The submitter, in a pod of the same image."""
        address = f"http://{self.hosts.head.address}:8265"
        command = submission(self.entrypoint, address, job)
        return self.workers[0].start(f"({command}) > /data/{log.name} 2>&1", **self.variables())


def test_a_sweep_in_pods_outlives_its_head(
    hosts: Hosts, image: Image, file: Path, tmp_path: Path, corpus: TokenizedCorpus
) -> None:
    space = load(file)
    kubernetes.check(space, STORE, REQUEST)
    config, job = yaml.safe_load_all(kubernetes.manifest(space, str(file), STORE, REQUEST))
    store, log = hosts.shared / "data" / "pods", hosts.shared / "data" / "first.log"

    def wait_for(said: str, log: Path, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not log.exists() or said not in log.read_text(errors="replace"):
            assert time.monotonic() < deadline, log.read_text(errors="replace") if log.exists() else "nothing printed"
            time.sleep(0.5)

    cluster = Cluster(hosts, image, config, job)
    cluster.start_head()
    cluster.submit("first", log)
    wait_for("waiting a cell of pods asks for 1 CPU", log, 180)
    assert "the autoscaler starts some" in log.read_text()
    cluster.start_worker(0)
    cluster.start_worker(1)
    deadline = time.monotonic() + 180
    while not list(store.glob("train/*/checkpoint_step*/state.json")):
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)
    # The head's machine is lost: KubeRay makes another cluster, with the same job.
    hosts.head.off()
    for host in hosts.workers:
        host.off()
    for host in (hosts.head, *hosts.workers):
        host.on()
    cluster = Cluster(hosts, image, config, job)
    cluster.start_head()
    cluster.start_worker(0)
    cluster.start_worker(1)
    again = hosts.shared / "data" / "again.log"
    assert cluster.submit("second", again).wait(600) == 0
    print(log.read_text(), again.read_text())
    assert "3 of 3 cells done, 6 of 6 evaluations done" in again.read_text()
    assert "from a checkpoint" in again.read_text()
    calm = tmp_path / "calm"
    status, said = Sweep(file, calm, tmp_path / "log", RAY_ADDRESS="local").finish()
    assert status == 0, said
    assert contents(store) == contents(calm)
    answer = cluster.head.start(
        "ray job list --address http://127.0.0.1:8265", RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="wrong"
    )
    assert answer.wait(60) != 0
