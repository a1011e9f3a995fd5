"""Where raysweep prints for a person."""

from __future__ import annotations

import os
import sys

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

# A file or a pipe has no width to keep to.
_WIDTH = 160


def make_console(stderr: bool = False, width: int | None = None) -> Console:
    """A console on standard output or error, which is a terminal where that is one, whatever FORCE_COLOR says.

    FORCE_COLOR, which logs of CI set, colours what goes to a file or a pipe; it moves no cursor there.
    """
    if (sys.stderr if stderr else sys.stdout).isatty():
        return Console(stderr=stderr, highlight=False, width=width)
    coloured = bool(os.environ.get("FORCE_COLOR")) and not os.environ.get("NO_COLOR")
    return Console(
        stderr=stderr,
        highlight=False,
        force_terminal=False,
        width=width or _WIDTH,
        color_system="standard" if coloured else None,
    )


console = make_console()


def say(text: str) -> None:
    """Print a line of rich's markup."""
    # One line stays one line in a file or a pipe.
    console.print(text, soft_wrap=True)


def show(table: Table) -> None:
    """Print a table with whatever is in it whole, however narrow the terminal: other commands ask for a cell's whole id."""
    needed = Measurement.get(console, console.options.update(max_width=10_000), table).maximum
    make_console(width=max(console.width, needed)).print(table, crop=False)


def escape(text: str) -> str:
    """Text that has no markup, for `say`."""
    return text.replace("[", r"\[")
