"""Where raysweep prints for a person."""

from __future__ import annotations

from rich.console import Console

console = Console(highlight=False)
if not console.is_terminal:
    console = Console(highlight=False, width=160)  # A file or a pipe has no width to keep to.


def say(text: str) -> None:
    """Print a line of rich's markup."""
    # One line stays one line in a file or a pipe.
    console.print(text, soft_wrap=True)


def escape(text: str) -> str:
    """Text that has no markup, for `say`."""
    return text.replace("[", r"\[")
