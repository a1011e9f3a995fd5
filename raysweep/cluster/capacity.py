"""What the nodes of a cluster hold, what an autoscaler may add, and how many cells that is at once."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil
import yaml

from raysweep.errors import UserError
from raysweep.space.space import Space
from raysweep.text import resources as resources_text

# The custom resource of nodes that are not taken away, where drivers and trials belong: the head of cluster.yaml.
DRIVER = "raysweep_driver"


# What an autoscaler may add, as JSON, where its configuration is in no file that the sweep could read: on Kubernetes.
NODE_TYPES = "RAYSWEEP_NODE_TYPES"

# Of Ray's resource `memory`, in bytes: what a trial takes while it waits for its cell.
TRIAL_MEMORY = 300e6


def nodes() -> dict[str, dict[str, float]]:
    """The nodes that are alive, by their ids, with their resources."""
    import ray  # After its environment is set.

    return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}


@dataclass(frozen=True)
class AutoscalerLimits:
    """What an autoscaler may add: node types by their resources, with the most nodes of each, and of all together."""

    types: list[tuple[dict[str, float], int]]
    most_nodes: int

    @property
    def every_node(self) -> list[dict[str, float]]:
        """Each node of each type that there may be."""
        return [resources for resources, most in self.types for _ in range(most)]

    @property
    def most_cpus(self) -> int:
        """The most CPUs that the workers of the cluster can have together."""
        each = sorted((resources.get("CPU", 0) for resources in self.every_node), reverse=True)
        return int(sum(each[: self.most_nodes]))


def autoscaling_configuration() -> Path | None:
    """The configuration of the cluster's autoscaler, where there is one and its monitor runs on this machine (the head).

    Ray tells the cluster's drivers nothing of it. The monitor's own command line does.
    """
    for process in psutil.process_iter(["cmdline"]):
        for argument in process.info["cmdline"] or []:
            if argument.startswith("--autoscaling-config="):
                return Path(argument.partition("=")[2]).expanduser()
    return None


def autoscaler_limits(path: Path | None) -> AutoscalerLimits | None:
    """What an autoscaler with this configuration, or with RAYSWEEP_NODE_TYPES, may add; None without either."""
    if said := os.environ.get(NODE_TYPES):
        return _node_types(said)
    if path is None:
        return None
    try:
        configuration = yaml.safe_load(path.read_text(encoding="utf-8"))
        head = configuration["head_node_type"]
        most_nodes = int(configuration["max_workers"])
        types = [
            (dict(kind.get("resources") or {}), min(int(kind.get("max_workers", most_nodes)), most_nodes))
            for name, kind in configuration["available_node_types"].items()
            if name != head
        ]
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError):
        return None
    # Of machines that somebody owns nothing is said beforehand, and all are started at once.
    return AutoscalerLimits(types, most_nodes) if types and all(resources for resources, _ in types) else None


def _node_types(said: str) -> AutoscalerLimits:
    try:
        types = [(dict(kind["resources"]), int(kind["max_workers"])) for kind in json.loads(said)]
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f'{NODE_TYPES}={said} is not of the form [{{"resources": {{"CPU": 8, "GPU": 1}}, "max_workers": 4}}]'
        ) from None
    return AutoscalerLimits(types, sum(most for _, most in types))


@dataclass(frozen=True)
class Capacity:
    """How many cells of a sweep a cluster can train at once."""

    cells: int
    """When it has grown as far as it may."""
    why_none: str
    """Why no cell can start on the nodes that there are now; empty where one can."""
    grows: bool | None
    """Whether the autoscaler can bring nodes where one can; None without an autoscaler."""


def max_concurrent_cells(space: Space, nodes: list[dict[str, float]], limits: AutoscalerLimits | None) -> Capacity:
    """How many cells of a sweep fit on these nodes, now and when the autoscaler has added all that it may.

    The workers of a cell may be on several nodes, one worker may not.
    """
    train, evaluate = space.resources.train, space.resources.evaluate
    now, why = _cells(space, nodes, "nodes have")
    if limits is None:
        return Capacity(now, why, None)
    one_of_each = [resources for resources, most in limits.types if most]
    _, never = _cells(space, [*nodes, *one_of_each * train.workers], "nodes and node types have")
    if never:
        return Capacity(0, never, False)
    best = sorted(
        limits.every_node,
        key=lambda node: (-slots([node], train.cpus, train.gpus), -slots([node], evaluate.cpus, evaluate.gpus)),
    )
    # The head is none of those that may come.
    heads = [node for node in nodes if DRIVER in node]
    grown, never = _cells(space, [*heads, *best[: limits.most_nodes]], f"at most {limits.most_nodes} workers have")
    return Capacity(max(now, grown), why, True) if now or grown else Capacity(0, never, False)


def slots(nodes: list[dict[str, float]], cpus: float, gpus: float) -> int:
    """How many tasks that each take `cpus` and `gpus` fit on these nodes."""
    each = {"CPU": cpus, "GPU": gpus}
    return sum(min(int(node.get(name, 0) / amount + 1e-6) for name, amount in each.items() if amount) for node in nodes)


def cells_on(space: Space, nodes: list[dict[str, float]]) -> int:
    """How many cells of a sweep can train at once on these nodes, whatever else there is to do."""
    train = space.resources.train
    return slots(nodes, train.cpus, train.gpus) // train.workers


def trials_memory(cells: int) -> int:
    """The GiB that a head needs for the trials of so many cells, and for the one that waits, with a fifth to spare."""
    return math.ceil(1.2 * TRIAL_MEMORY * (cells + 1) / 2**30)


class Needs(Protocol):
    """What something takes of a node."""

    @property
    def cpus(self) -> int: ...
    @property
    def gpus(self) -> float: ...


def check_gpus(needs: Mapping[str, Needs], gpus_per_node: int) -> None:
    """Raise `UserError` where a job's nodes have fewer GPUs than one of the settings asks for, or some that none does."""
    for setting, one in needs.items():
        if one.gpus > gpus_per_node:
            raise UserError(f"{setting}.gpus is {one.gpus:g}: add --gpus-per-node {math.ceil(one.gpus)}")
    if gpus_per_node and not any(one.gpus for one in needs.values()):
        raise UserError(
            f"--gpus-per-node {gpus_per_node}, and {next(iter(needs))}.gpus is 0: set it to use them, or leave them out"
        )


def _cells(space: Space, nodes: list[dict[str, float]], have: str) -> tuple[int, str]:
    """How many cells the nodes can train at once, and why none where it is none, or why none could be evaluated."""
    train, evaluate = space.resources.train, space.resources.evaluate

    def lacking(what: str, cpus: float, gpus: float) -> str:
        sizes = sorted((node.get("CPU", 0), node.get("GPU", 0)) for node in nodes)
        distinct = dict.fromkeys(resources_text(*size) for size in sizes)
        return f"{what} of {space.name} asks for {resources_text(cpus, gpus)} and the cluster's {have} {', '.join(distinct)}"

    cells = cells_on(space, nodes)
    if not cells:
        what = "a cell" if train.workers == 1 else f"each of the {train.workers} workers of a cell"
        return 0, lacking(what, train.cpus, train.gpus)
    if not slots(nodes, evaluate.cpus, evaluate.gpus):
        return cells, lacking("an evaluation", evaluate.cpus, evaluate.gpus)
    return cells, ""
