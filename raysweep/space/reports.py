"""After which steps a training reports a row."""

from __future__ import annotations

import math

# Rows at the start, when everything moves: after 1/1024 of the steps, and at each doubling up to 32/1024.
_DOUBLINGS = 6


def report_steps(steps: int, count: int) -> list[int]:
    """The step counts after which a row is reported: 0 (the initial weights), a few that double, and `count` evenly.

    Parts of a step are rounded up. The last is `steps`.

    Examples
    --------
    >>> report_steps(2048, 4)
    [0, 2, 4, 8, 16, 32, 64, 512, 1024, 1536, 2048]
    """
    doubling = {-(-steps * 2**k // 1024) for k in range(_DOUBLINGS)}
    return sorted({0} | doubling | {-(-steps * k // count) for k in range(1, count + 1)})


def as_floats_have_them(steps: int, count: int) -> bool:
    """Whether version 0.1.0, which multiplied floats, reported after the same steps: for most step counts it did."""
    rounded_up = {math.ceil(k / count * steps) for k in range(1, count + 1)}
    return rounded_up == {-(-steps * k // count) for k in range(1, count + 1)}
