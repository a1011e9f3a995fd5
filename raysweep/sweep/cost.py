"""What a sweep costs before it starts: its FLOPs, and the hours that they take on a device."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from raysweep.space.space import Space


@dataclass(frozen=True)
class Device:
    """`peak` in FLOP/s, `utilisation` the share of it that 6 N D FLOP of a small model's training proceed at."""

    peak: float
    utilisation: float

    def hours(self, flops: float) -> float:
        """Hours of one such device for so many FLOP."""
        return flops / (self.peak * self.utilisation) / 3600


# Peaks are dense bf16 (of the CPU core float32) as NVIDIA's data sheets have them. The A100's share is what the study of
# arXiv 2602.20433 comes to, 6e20 FLOP in about 3000 GPU-hours. Small models wait for memory more than for arithmetic, so the
# other GPUs are taken to be as much faster as their memory is: 3.35 TB/s of an H100, 0.864 of an L40S, 0.3 of an L4, against
# 2.04. The CPU core is as `python -m benchmarks.training_step` found one of an AMD EPYC: half of the rate of its matmuls.
DEVICES = {
    "A100": Device(312e12, 0.18),
    "H100": Device(989e12, 0.093),
    "L40S": Device(362e12, 0.066),
    "L4": Device(121e12, 0.068),
    "CPU core": Device(95e9, 0.5),
}


def plan(space: Space) -> dict[str, Any]:
    """The cells of a search space, and what training them costs.

    Parameters
    ----------
    space
        A search space.

    Returns
    -------
    dict
        `cells`: the settings of each cell and what follows from them. `totals`: `cells`, `tokens`, and `flops` in FLOP
        (6 N D, Kaplan et al. 2020). `devices`: for each device its `peak` in FLOP/s, the share of that it is taken to
        reach (`utilisation`), and the `hours` of one such device.

    Examples
    --------
    >>> plan(raysweep.load("search_spaces/paper.yaml"))["totals"]["cells"]
    108
    """
    flops = sum(cell.flops for cell in space.cells)
    return {
        "cells": [cell.describe() for cell in space.cells],
        "totals": {
            "cells": len(space.cells),
            "tokens": sum(cell.steps * cell.tokens_per_step for cell in space.cells),
            "flops": flops,
        },
        "devices": {name: asdict(device) | {"hours": device.hours(flops)} for name, device in DEVICES.items()},
    }
