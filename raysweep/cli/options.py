"""What the commands make of their options."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
from pathlib import Path
from typing import Any

from raysweep.cache import CACHE
from raysweep.cluster.capacity import NODE_TYPES
from raysweep.cluster.environment import STOP_WAIT
from raysweep.errors import UserError, allowed
from raysweep.space.read import load, load_to_read
from raysweep.space.space import Space
from raysweep.store import Store

STORE = "RAYSWEEP_STORE"

# What raysweep reads of the environment.
VARIABLES = (CACHE, "RAYSWEEP_MIRROR", STORE, NODE_TYPES, STOP_WAIT)


def load_space(options: argparse.Namespace, reading: bool = False) -> Space:
    """The search space that was named; for commands that only read, whether or not its own metrics can be imported."""
    return load_to_read(Path(options.space)) if reading else load(options.space)


def count(text: str) -> int:
    """A whole number above 0. Raises `argparse.ArgumentTypeError`."""
    if not text.isascii() or not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"a whole number above 0 is needed, not {text}")
    return int(text)


def port(text: str) -> int:
    """A port that a program may listen at. Raises `argparse.ArgumentTypeError`."""
    number = count(text)
    if number > 65535:
        raise argparse.ArgumentTypeError(f"a port from 1 to 65535 is needed, not {text}")
    return number


def hours(text: str) -> float:
    """Hours above 0. Raises `argparse.ArgumentTypeError`."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"a number above 0 is needed, not {text}")
    return value


def open_store(options: argparse.Namespace, space: Space) -> Store:
    """The store of --store, else of RAYSWEEP_STORE, else the search space's own."""
    return located_store(options.store, space.name)


def located_store(given: str | None, name: str) -> Store:
    """The store of --store, else of RAYSWEEP_STORE, else that of the name of a search space or suite."""
    for what, location in (("--store", given), (STORE, os.environ.get(STORE))):
        if location is not None:
            if not location:
                raise UserError(f"{what} is empty: name a store, or leave it out")
            return Store(location)
    return Store(f"runs/{name}")


def check_environment() -> None:
    """Raise `UserError` for a variable that looks like one of raysweep's and would be ignored."""
    for name in os.environ:
        # Kubernetes puts such names of a service called raysweep into every pod.
        of_service = "_SERVICE_" in name or re.search(r"_PORT(_|$)", name)
        if name.startswith("RAYSWEEP_") and name not in VARIABLES and not of_service:
            raise UserError(f"the variable {name} is none of raysweep's: {allowed(name, VARIABLES)}")
    wait = os.environ.get(STOP_WAIT)
    if wait and not wait.isdecimal():
        raise UserError(f"{STOP_WAIT}={wait}: a number of seconds is needed")


def as_json(answer: Any) -> str:
    """An answer for scripts, as text."""
    return json.dumps(_finite(answer), indent=1, allow_nan=False)


def print_json(answer: Any) -> None:
    """Print an answer for scripts."""
    print(as_json(answer))


def _finite(answer: Any) -> Any:
    """The answer with null for NaN and infinities, which JSON does not have."""
    if isinstance(answer, dict):
        return {key: _finite(value) for key, value in answer.items()}
    if isinstance(answer, list | tuple):
        return [_finite(value) for value in answer]
    return None if isinstance(answer, float) and not math.isfinite(answer) else answer
