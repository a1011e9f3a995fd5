"""A cell whose node is lost thirty times, at moments drawn by a seed: how soon it trains again (`make test-faults`)."""

import random
import statistics
import time
from pathlib import Path

import psutil
import pytest
import yaml
from ray.cluster_utils import Cluster
from reliability.sweeps import Sweep
from reliability.test_nodes import SPACE, working
from tiny import make_cell

from raysweep.corpora.tokenized import TokenizedCorpus

pytestmark = pytest.mark.faults

LOSSES = 30
STALLED = 90.0
"""Seconds after which a cell that has a node and does not train stands still for good."""


@pytest.mark.parametrize("cpus", [1, 2])
def test_a_cell_trains_again_whenever_its_node_is_lost(cpus: int, tmp_path: Path, corpus: TokenizedCorpus) -> None:
    """On a node with one CPU, which a lost worker's reservation would hold, and with two, where it would not be noticed."""
    chance = random.Random(cpus)
    file, log, store = tmp_path / "losses.yaml", tmp_path / "log", tmp_path / "store"
    base = make_cell(tokens=16_384_000, reports=1000).model_dump(exclude={"seed"}) | {"batch_size": 8}
    file.write_text(yaml.safe_dump(SPACE | {"name": "losses", "base": base, "cross": {"seed": [1]}, "evaluations": []}))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    back: list[float] = []
    try:
        node = cluster.add_node(num_cpus=cpus)
        sweep = Sweep(file, store, log, RAY_ADDRESS=cluster.address)
        checkpoints = store / "train"

        def furthest() -> int:
            names = [path.parent.name for path in checkpoints.glob("*/checkpoint_step*/state.json")]
            return max((int(name.removeprefix("checkpoint_step").partition("_")[0]) for name in names), default=0)

        sweep.wait_for(furthest)
        for number in range(LOSSES):
            # In its training; while it starts; or before it does.
            moment = chance.choice(["training", "starting", "before"])
            if moment == "training":
                time.sleep(chance.uniform(0, 3))
            elif moment == "starting":
                cluster.remove_node(node, allow_graceful=False)
                node = cluster.add_node(num_cpus=cpus)
                sweep.wait_for(lambda: working([node], "ray::"), STALLED)  # noqa: B023 (called at once)
                time.sleep(chance.uniform(0, 4))
            else:
                cluster.remove_node(node, allow_graceful=False)
                node = cluster.add_node(num_cpus=cpus)
                time.sleep(chance.uniform(0, 2))
            cluster.remove_node(node, allow_graceful=False)
            time.sleep(chance.choice([1.0, chance.uniform(1, 12)]))  # Its last checkpoint may come as it goes.
            before = furthest()
            node = cluster.add_node(num_cpus=cpus)
            begun = time.monotonic()
            sweep.wait_for(lambda: furthest() > before, STALLED)  # noqa: B023 (called at once)
            back.append(time.monotonic() - begun)
            print(f"{cpus} CPU, loss {number + 1}, {moment}: in training again after {back[-1]:.1f} s", flush=True)
        ordered = sorted(back)
        print(f"{cpus} CPU: median {statistics.median(back):.1f} s, longest {ordered[-1]:.1f} s, {LOSSES} losses")
        assert not list(store.glob("failures/*/*"))
        sweep.process.terminate()
        assert sweep.finish()[0] == 130
    finally:
        cluster.shutdown()
        for process in psutil.Process().children(recursive=True):
            process.kill()
