"""What the commands make of their options."""

from __future__ import annotations

import argparse
import json
import math
import os
from typing import Any

from raysweep.space.read import load
from raysweep.space.space import Space
from raysweep.store import Store


def load_space(options: argparse.Namespace) -> Space:
    """The search space that was named."""
    return load(options.space)


def open_store(options: argparse.Namespace, space: Space) -> Store:
    """The store of --store, else of RAYSWEEP_STORE, else the search space's own."""
    return Store(options.store or os.environ.get("RAYSWEEP_STORE") or f"runs/{space.name}")


def print_json(answer: Any) -> None:
    """Print an answer for scripts."""
    print(json.dumps(_finite(answer), indent=1, allow_nan=False))


def _finite(answer: Any) -> Any:
    """The answer with null for NaN and infinities, which JSON does not have."""
    if isinstance(answer, dict):
        return {key: _finite(value) for key, value in answer.items()}
    if isinstance(answer, list | tuple):
        return [_finite(value) for value in answer]
    return None if isinstance(answer, float) and not math.isfinite(answer) else answer
