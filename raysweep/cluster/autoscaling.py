"""For Ray's autoscaler on the head: which node type to start, of several that hold what is asked for.

cluster.yaml names `spot_first` in RAY_AUTOSCALER_UTILIZATION_SCORER. Of two types that differ in price only, Ray
itself picks the last by name, and picks it again if none is available.
"""

from __future__ import annotations

from typing import Any

from ray.autoscaler._private.resource_demand_scheduler import _resource_based_utilization_scorer


def spot_first(
    node_resources: dict[str, Any],
    resources: list[dict[str, Any]],
    node_type: str,
    *,
    node_availability_summary: Any,
) -> tuple[Any, ...] | None:
    """The score of a node type for these bundles, the highest wins; None where none of them fits.

    Of types that suit as well, one that could be had when it was last asked for (Ray remembers for half an hour), and of
    those one with `spot` in its name.
    """
    score = _resource_based_utilization_scorer(
        node_resources, resources, node_availability_summary=node_availability_summary
    )
    if score is None:
        return None
    asked = node_availability_summary.node_availabilities.get(node_type)
    gpus_where_needed, matching, *utilisation = score
    return gpus_where_needed, matching, asked is None or asked.is_available, "spot" in node_type, *utilisation
