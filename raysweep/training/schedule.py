"""The learning rate of a training at each step."""

from __future__ import annotations

import math

from raysweep.space.cell import Cell


def learning_rate(cell: Cell, step: int) -> float:
    """The rate of the step with index `step`: linear from zero to the peak, then down to the final fraction.

    The peak is reached at the last warm-up step and the final rate at the last step. Between them is half a cosine, or a
    line, which for `wsd` begins `decay_steps` before the end.
    """
    peak, steps = cell.peak_learning_rate, cell.steps
    warmup, decay = cell.warmup_steps, cell.decay_steps
    if step < warmup:
        return peak * (step + 1) / warmup
    if step < steps - decay:
        return peak
    done = (step + 1 - (steps - decay)) / decay
    final = cell.final_learning_rate_fraction
    if cell.schedule != "cosine":
        return peak * (1 - (1 - final) * done)
    return peak * (final + (1 - final) * (1 + math.cos(math.pi * done)) / 2)
