"""The names of a run's checkpoints in the store; what is in one is `raysweep.training.checkpoint`'s."""

from __future__ import annotations

import re
import uuid

from raysweep.store.store import Store

_NAME = re.compile(r"checkpoint_step\d{12}_[0-9a-f]{6}")


def names(store: Store, run_directory: str) -> list[str]:
    """The checkpoints of a run directory, the furthest first."""
    return sorted(filter(_NAME.fullmatch, store.directories(run_directory)), reverse=True)


def new_name(step: int) -> str:
    """A new name for a checkpoint after `step` steps; names sort by step.

    Each is unique: a run that resumes from an older checkpoint must not write into a damaged newer one.
    """
    return f"checkpoint_step{step:012d}_{uuid.uuid4().hex[:6]}"


def step_of(name: str) -> int:
    """The steps taken at the checkpoint of this name."""
    return int(name.removeprefix("checkpoint_step").partition("_")[0])
