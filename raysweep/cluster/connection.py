"""The Ray cluster that a sweep runs on: where it is, what it holds, and that it lives."""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import yaml

from raysweep.errors import UserError
from raysweep.space.cell import Space

# The custom resource of nodes that are not taken away, where drivers and trials belong: the head of cluster.yaml.
DRIVER = "raysweep_driver"

RAY_ENVIRONMENT = {
    # Tune's own progress reports and loggers would run through ours.
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Raylets' logs would too, by the page where a node is lost. (What Ray says there goes through its deduplicator.)
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",
}

# Of a cluster that is started here.
LOCAL_ENVIRONMENT = {
    # The loopback address is the node's, so that nothing listens beyond this machine. (The name is from what Ray does on
    # macOS and Windows by default.)
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # A trial takes some seven processes, more than Ray expects of a small machine, and an evaluation that finds the
    # process of an earlier one alive is spared four seconds of imports.
    "RAY_worker_maximum_startup_concurrency": "8",
    "RAY_num_workers_soft_limit": "8",
    "RAY_idle_worker_killing_time_threshold_ms": "600000",
    # What Ray remembers of tasks, actors and processes that are over: by its defaults a megabyte and more for every cell.
    "RAY_task_events_max_num_task_in_gcs": "2000",
    "RAY_maximum_gcs_destroyed_actor_cached_count": "500",
    "RAY_maximum_gcs_dead_worker_cached_count": "500",
    # This machine's processes are not taken away with notice, which is what each trial would start one more to watch for.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}


def set_environment() -> None:
    """What Ray is to read when it is imported, or when it starts a cluster."""
    os.environ.update(RAY_ENVIRONMENT | ({} if address() else LOCAL_ENVIRONMENT))


@contextmanager
def connected() -> Iterator[Any]:
    """Ray's context on the cluster that somebody has set up, or else on one of this machine's that ends with this.

    Ray reads its environment when it is imported; import it only after this, or after `set_environment`.
    """
    set_environment()
    import ray

    if ray.is_initialized():
        yield ray.init(ignore_reinit_error=True, logging_level=logging.CRITICAL)
        return
    found = address()
    context = ray.init(address=found or "local", logging_level=logging.CRITICAL, log_to_driver=False)
    ending = threading.Event()
    if found is None:
        threading.Thread(target=watch, args=(ending,), daemon=True).start()
    for name in ("ray", "ray.data", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield context
    finally:
        ending.set()
        ray.shutdown()


def watch(ending: threading.Event) -> None:
    """Watch the processes that a local cluster stands on, until `ending`; where one dies end this process, with one line.

    Left to itself Ray waits for a minute, or for ever.
    """
    own = psutil.Process()
    pillars = [process for process in own.children(recursive=True) if _name(process) in ("raylet", "gcs_server")]
    while not ending.wait(1.0):
        if all(map(_alive, pillars)) or ending.wait(1.0):
            continue
        for process in own.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        sys.stdout.flush()
        print(
            "raysweep: error: a process of the local Ray cluster died (killed, or out of memory?); nothing that was "
            "finished is lost: run the same command again",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)


def _name(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.NoSuchProcess:  # It lived for a moment.
        return ""


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def address() -> str | None:
    """The address of the Ray cluster that somebody has set up: RAY_ADDRESS, or what `ray start` left; None without one.

    Raises `UserError` where nothing answers at RAY_ADDRESS.
    """
    named = os.environ.get("RAY_ADDRESS", "auto")
    if named == "local":
        return None
    if named != "auto":
        if not _answers(named):
            raise UserError(f"no Ray cluster answers at RAY_ADDRESS={named}: start it, or unset RAY_ADDRESS")
        return named
    started = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"  # noqa: S108 (Ray's own place)
    address = started.read_text(encoding="utf-8").strip() if started.exists() else ""
    return address if address and _answers(address) else None


def _answers(address: str) -> bool:
    """Whether something listens at host:port; asked first, since Ray itself tries for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=5):
            return True
    except (OSError, ValueError):
        return False


def nodes() -> dict[str, dict[str, float]]:
    """The nodes that are alive, by their ids, with their resources."""
    import ray

    return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}


def amount(cpus: float, gpus: float) -> str:
    """Resources in words."""
    return f"{cpus:g} CPU" + (f" and {gpus:g} GPU" if gpus else "")


@dataclass(frozen=True)
class Growth:
    """What an autoscaler may add: node types by their resources, with the most nodes of each, and of all together."""

    types: list[tuple[dict[str, float], int]]
    most: int

    @property
    def every(self) -> list[dict[str, float]]:
        """Each node of each type that there may be."""
        return [resources for resources, most in self.types for _ in range(most)]


def growth() -> Growth | None:
    """What the autoscaler of the cluster may add, where there is one and its monitor runs on this machine (the head).

    Ray tells the cluster's drivers nothing of it. The monitor's own configuration does.
    """
    path = _autoscaling_configuration()
    if path is None:
        return None
    try:
        configuration = yaml.safe_load(path.read_text(encoding="utf-8"))
        head = configuration["head_node_type"]
        most = int(configuration["max_workers"])
        types = [
            (dict(kind.get("resources") or {}), min(int(kind.get("max_workers", most)), most))
            for name, kind in configuration["available_node_types"].items()
            if name != head
        ]
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError):
        return None
    # Of machines that somebody owns nothing is said beforehand, and all are started at once.
    return Growth(types, most) if types and all(resources for resources, _ in types) else None


def most_cpus(grows: Growth) -> int:
    """The most CPUs that the workers of a cluster can have together."""
    each = sorted((resources.get("CPU", 0) for resources in grows.every), reverse=True)
    return int(sum(each[: grows.most]))


@cache
def _autoscaling_configuration() -> Path | None:
    for process in psutil.process_iter(["cmdline"]):
        for argument in process.info["cmdline"] or []:
            if argument.startswith("--autoscaling-config="):
                return Path(argument.partition("=")[2]).expanduser()
    return None


def room(space: Space, nodes: list[dict[str, float]], grows: Growth | None) -> tuple[int, str, bool | None]:
    """How many cells the cluster can train at once when it has grown; why none can start on the nodes that there are; and
    whether the autoscaler can bring nodes where they can (None without an autoscaler).

    The workers of a cell may be on several nodes, one worker may not.
    """
    train, evaluate = space.resources.train, space.resources.evaluate
    now, why = _places(space, nodes, "nodes have")
    if grows is None:
        return now, why, None
    one_of_each = [resources for resources, most in grows.types if most]
    _, never = _places(space, [*nodes, *one_of_each * train.workers], "nodes and node types have")
    if never:
        return 0, never, False
    best = sorted(
        grows.every,
        key=lambda node: (-_hold([node], train.cpus, train.gpus), -_hold([node], evaluate.cpus, evaluate.gpus)),
    )
    # The head is none of those that may come.
    heads = [node for node in nodes if DRIVER in node]
    grown, never = _places(space, [*heads, *best[: grows.most]], f"at most {grows.most} workers have")
    return (max(now, grown), why, True) if now or grown else (0, never, False)


def _hold(nodes: list[dict[str, float]], cpus: float, gpus: float) -> int:
    """How many of something that takes `cpus` and `gpus` nodes of these resources hold."""
    wanted = {"CPU": cpus, "GPU": gpus}
    return sum(min(int(node.get(name, 0) / each + 1e-6) for name, each in wanted.items() if each) for node in nodes)


def _places(space: Space, nodes: list[dict[str, float]], have: str) -> tuple[int, str]:
    """How many cells the nodes can train at once, and why none where it is none, or why none could be evaluated."""
    train, evaluate = space.resources.train, space.resources.evaluate

    def lacking(what: str, cpus: float, gpus: float) -> str:
        sizes = sorted((node.get("CPU", 0), node.get("GPU", 0)) for node in nodes)
        distinct = dict.fromkeys(amount(*size) for size in sizes)
        return f"{what} of {space.name} asks for {amount(cpus, gpus)} and the cluster's {have} {', '.join(distinct)}"

    cells = _hold(nodes, train.cpus, train.gpus) // train.workers
    if not cells:
        what = "a cell" if train.workers == 1 else f"each of the {train.workers} workers of a cell"
        return 0, lacking(what, train.cpus, train.gpus)
    if not _hold(nodes, evaluate.cpus, evaluate.gpus):
        return cells, lacking("an evaluation", evaluate.cpus, evaluate.gpus)
    return cells, ""
