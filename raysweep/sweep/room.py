"""Whether the nodes of a cluster have room for the text that their cells read: asked before anything is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raysweep.cluster.capacity import nodes
from raysweep.corpora.shared import lack_of_room
from raysweep.errors import UserError

if TYPE_CHECKING:
    from raysweep.corpora.tokenized import TokenizedCorpus

TIMEOUT = 60.0
"""Seconds that nodes have to answer. What those say that are slower, or come later, is said by their first cell."""


def check_room(texts: dict[str, list[TokenizedCorpus]]) -> None:
    """Raise `UserError`, a line for each node that cannot hold these corpora and texts, by their names."""
    needed = [(name, opened.fingerprint, opened.size) for name, each in texts.items() for opened in each]
    # Nodes without cores train nothing.
    asked = [
        ray.remote(lack_of_room).options(
            num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
        ).remote(needed)
        for node, resources in nodes().items()
        if resources.get("CPU")
    ]  # fmt: skip
    answered, _ = ray.wait(asked, num_returns=len(asked), timeout=TIMEOUT) if asked else ([], [])
    lacking = []
    for answer in answered:
        try:
            lacking.append(ray.get(answer))
        except ray.exceptions.RayError:
            continue  # The node went away, or has another problem, which its first cell will tell.
    if any(lacking):
        raise UserError("\n".join(sorted({lack for lack in lacking if lack})))
