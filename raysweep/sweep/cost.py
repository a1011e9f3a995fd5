"""How long FLOPs take on a device: its peak, and the share of it that pretraining small models is taken to reach."""

from __future__ import annotations

from dataclasses import dataclass


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
