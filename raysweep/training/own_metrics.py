"""Calls a user's own metric, so that nothing it does costs more than its own number."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch

from raysweep.errors import first_line
from raysweep.space.plugins import METRICS, TooLong, load_function, within
from raysweep.store.measures import FAILED

UNDEFINED = "it is not defined for this matrix"

# A function that took too long once is not called again in this process.
_too_long: set[str] = set()


def own_metric(name: str, matrix: torch.Tensor, time_limit: float) -> tuple[float, str]:
    """The value of a user's function of a matrix, and the reason where there is none (the value is NaN then).

    It is given a copy, (rows, d), on the matrix's device, and must return a number. What raises, returns something else or
    takes longer than `time_limit` seconds has none.
    """
    if name in _too_long:
        return math.nan, f"{FAILED}it took too long for another matrix"

    def call() -> Any:
        with torch.no_grad():
            return load_function(name, METRICS)(matrix.detach().clone())

    try:
        value = within(time_limit, call)
    except TooLong:
        _too_long.add(name)
        return math.nan, f"{FAILED}it took longer than time_limit, {time_limit:g} s"
    except BaseException as error:  # A user's `sys.exit()`, too.
        return math.nan, f"{FAILED}{type(error).__name__}: {first_line(error)}"
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real):
        return math.nan, f"{FAILED}it returned {type(value).__name__}, not a number"
    try:
        number = float(value)
    except OverflowError:
        return math.nan, f"{FAILED}it returned a number that is too large"
    return number, UNDEFINED if math.isnan(number) else ""


def forget() -> None:
    """Have functions that took too long called again."""
    _too_long.clear()
