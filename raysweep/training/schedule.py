"""The learning rate of a training at each step."""

from __future__ import annotations

import math

from raysweep.space.cell import Cell


def learning_rate(cell: Cell, step: int) -> float:
    """The rate of the step with index `step`: linear from zero to the peak, then half a cosine to the final fraction.

    The peak is reached at the last warm-up step and the final rate at the last step.
    """
    peak, steps = cell.peak_learning_rate, cell.steps
    warmup = cell.warmup_steps
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step + 1 - warmup) / (steps - warmup)
    final = cell.final_learning_rate_fraction
    return peak * (final + (1 - final) * (1 + math.cos(math.pi * done)) / 2)
