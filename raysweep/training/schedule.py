"""When a training reports, and its learning rate at each step."""

from __future__ import annotations

import math

from raysweep.space.cell import Cell


def report_shares(count: int) -> tuple[float, ...]:
    """Shares of the steps after which a row is reported: doubling at first, when everything moves, then `count` evenly."""
    return (0.0, *(2.0**k / 1024 for k in range(6)), *(k / count for k in range(1, count + 1)))


def report_steps(steps: int, shares: tuple[float, ...]) -> list[int]:
    """The step counts after which a row is reported, the first 0 (the initial weights), the last `steps`."""
    return sorted({math.ceil(share * steps) for share in shares})


def learning_rate(cell: Cell, step: int) -> float:
    """The rate of the step with index `step`: linear from zero to the peak, then half a cosine to the final fraction.

    The peak is reached at the last warm-up step and the final rate at the last step.
    """
    peak, steps = cell.peak_learning_rate, cell.steps
    warmup = round(cell.warmup_fraction * steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step + 1 - warmup) / (steps - warmup)
    final = cell.final_learning_rate_fraction
    return peak * (final + (1 - final) * (1 + math.cos(math.pi * done)) / 2)
