"""Programs of a cluster's own, such as sbatch and kubectl."""

from __future__ import annotations

import os
import shutil
import subprocess

from raysweep.errors import UserError, one_line

WAIT = 120
"""Seconds for an answer."""


def run(
    program: str, *arguments: str, missing: str, given: str | None = None, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end. Raises `UserError`, which ends in `missing`, where there is none."""
    path = shutil.which(program)
    if path is None:
        raise UserError(f"there is no {program} here: {missing}")
    try:
        return subprocess.run(  # noqa: S603
            [path, *arguments], input=given, capture_output=True, text=True, check=False, timeout=WAIT,
            env=os.environ | (environment or {}),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise UserError(f"{program} gave no answer for {WAIT} s: try again") from None


def refused(program: str, answer: subprocess.CompletedProcess[str]) -> UserError:
    """What a program that failed said, as one line."""
    return UserError(f"{program}: {one_line(RuntimeError(answer.stderr.strip() or answer.stdout.strip()))}")
