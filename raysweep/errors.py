"""The exceptions that mean that the user can fix something, and the words that their messages share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class UserError(ValueError):
    """Something outside raysweep is wrong (a file, a setting, a disk); the message is one line that says what to do.

    The command line prints the message without a traceback and exits 1.
    """


class StoreError(UserError):
    """The store cannot be read or written. No single cell is at fault: the next would fail in the same way."""


def one_line(error: BaseException) -> str:
    """What an exception says, in one line; its kind where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of what an exception says; its kind where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def reason(error: BaseException) -> str:
    """Why an operation failed, in the system's words where it has some."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return one_line(error)


def allowed(given: Any, names: Iterable[Any]) -> str:
    """`allowed: a, b, c; did you mean 'b'?`, for a message about a name that is not one of `names`."""
    allowed_names = [str(name) for name in names]
    return f"allowed: {', '.join(allowed_names)}{did_you_mean(given, allowed_names)}"


def did_you_mean(given: Any, names: Iterable[Any]) -> str:
    """`; did you mean 'b'?` where one of `names` is near, else nothing."""
    near = difflib.get_close_matches(str(given), [str(name) for name in names], n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
