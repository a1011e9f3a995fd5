"""Calls a user's own metric, so that nothing it does costs more than its own number."""

from __future__ import annotations

import math
import threading
from numbers import Real
from typing import Any

import torch

from raysweep.errors import first_line
from raysweep.space.plugins import METRICS, load_function
from raysweep.store.measures import FAILED

UNDEFINED = "it is not defined for this matrix"

# Threads that were left behind: a function that took too long once is not called again in this process.
_too_long: set[str] = set()


def own_metric(name: str, matrix: torch.Tensor, time_limit: float) -> tuple[float, str]:
    """The value of a user's function of a matrix, and the reason where there is none (the value is NaN then).

    It is given a copy, (rows, d), on the matrix's device, and must return a number. What raises, returns something else or
    takes longer than `time_limit` seconds has none.
    """
    if name in _too_long:
        return math.nan, f"{FAILED}it took too long for another matrix"
    answer: list[Any] = []
    failed: list[BaseException] = []

    def call() -> None:
        try:
            with torch.no_grad():
                answer.append(load_function(name, METRICS)(matrix.detach().clone()))
        except BaseException as error:  # A user's `sys.exit()`, too.
            failed.append(error)

    thread = threading.Thread(target=call, name=f"raysweep {name}", daemon=True)
    thread.start()
    thread.join(time_limit)
    if thread.is_alive():
        _too_long.add(name)
        return math.nan, f"{FAILED}it took longer than time_limit, {time_limit:g} s"
    if failed:
        return math.nan, f"{FAILED}{type(failed[0]).__name__}: {first_line(failed[0])}"
    value = answer[0]
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
