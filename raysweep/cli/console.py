"""Where raysweep prints, and how it writes numbers and times for a person."""

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


def count(number: float) -> str:
    """A number in three digits, as `1.05M`."""
    for unit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.3g}{letter}"
    return f"{number:.0f}"


def duration(seconds: float) -> str:
    """A time in its two largest units, as `2h05m`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{seconds:02}s" if minutes else f"{seconds}s"
