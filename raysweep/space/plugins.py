"""A user's own functions by name: `my_study.metrics:tail_index`, or what an installed package calls it.

`package.module:name` is imported. A name without a colon is an entry point of an installed package, of the group
`raysweep.metrics`, `raysweep.tasks` or `raysweep.sources`. What a function computes is known by its name and a version: a
hash of the Python of its package, without comments and tests, or the version of the installed package that has the entry
point.
"""

from __future__ import annotations

import ast
import ctypes
import hashlib
import importlib
import inspect
import re
import sys
import threading
from collections.abc import Callable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from raysweep.errors import first_line

METRICS = "raysweep.metrics"
TASKS = "raysweep.tasks"
SOURCES = "raysweep.sources"

# What each is called with, and in words.
_CALLED_WITH: dict[str, tuple[tuple[Any, ...], str]] = {
    METRICS: ((None,), "must take one argument, the matrix (docs/measures.md)"),
    TASKS: ((None,), "must take the trained cell first, and settings of its own by name (docs/own-study.md)"),
    SOURCES: ((), "must take no argument, and yield documents (docs/own-study.md)"),
}


def is_plugin(name: str, group: str) -> bool:
    """Whether a name means a user's function."""
    return ":" in name or _entry_point(name, group) is not None


def load_function(name: str, group: str) -> Callable[..., Any]:
    """The function of that name. Raises `ValueError` in one line: what is wrong, where, and what is asked for."""
    point = _entry_point(name, group)
    target = point.value if point is not None else name
    module_name, _, attribute = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # Of any kind: it is the user's code.
        top = module_name.partition(".")[0]
        missing = isinstance(error, ModuleNotFoundError) and error.name == top
        hint = f"; where it is a folder beside the search space, add code: [{top}]" if missing else ""
        raise ValueError(f"{name}: {place(error)}{type(error).__name__}: {first_line(error)}{hint}") from None
    function = getattr(module, attribute, None)
    where = getattr(module, "__file__", None) or module_name
    if not callable(function):
        has = "is not a function" if hasattr(module, attribute) else "is not there"
        raise ValueError(
            f"{name}: {attribute} {has} in {where}: a function is asked for, which {_CALLED_WITH[group][1]}"
        )
    arguments, said = _CALLED_WITH[group]
    if not _takes(function, arguments, partly=group == TASKS):
        raise ValueError(f"{name}: {where}:{line_of(function)}: {attribute} {said}")
    return function  # type: ignore[no-any-return]


def line_of(function: Callable[..., Any]) -> int | str:
    """Where a function begins in its file; nothing where nobody knows."""
    return getattr(getattr(function, "__code__", None), "co_firstlineno", "")


@cache
def version(name: str, group: str) -> str:
    """What tells one version of a function from another: `my-package 1.2`, or 8 digits of a hash of its package's files."""
    point = _entry_point(name, group)
    if point is not None and point.dist is not None:
        return f"{point.dist.name} {point.dist.version}"
    load_function(name, group)
    module = sys.modules[name.partition(":")[0]]
    file = getattr(module, "__file__", None)
    if file is None:
        raise ValueError(
            f"{name}: {module.__name__} has no file by which its version could be known: write a function around it"
        )
    # What it imports from its own package counts too.
    package = sys.modules.get(module.__name__.partition(".")[0])
    folders = list(getattr(package, "__path__", ()))
    files = sorted(path for folder in folders for path in Path(folder).rglob("*.py") if not _is_test(path)) or [
        Path(file)
    ]
    return hashlib.sha256("".join(map(_without_comments, files)).encode()).hexdigest()[:8]


def _is_test(path: Path) -> bool:
    return path.name.startswith("test_") or path.name.endswith("_test.py") or path.name == "conftest.py"


def _without_comments(path: Path) -> str:
    """What a file says to Python: comments and blank lines change nothing."""
    try:
        return ast.dump(ast.parse(path.read_bytes()))
    except (SyntaxError, ValueError):  # Another version of Python's, or never imported.
        return path.read_bytes().hex()


class TooLong(Exception):
    """A user's function took longer than it may."""


class _Stop(BaseException):
    """Ends the thread of a function that took too long."""


def within(seconds: float, call: Callable[[], Any]) -> Any:
    """What `call` returns; raises what it raises, and `TooLong` after so many seconds.

    Python that is still running then is ended at its next instruction. What sleeps, or computes outside of Python, goes on
    until it comes back.
    """
    answer: list[Any] = []
    failed: list[BaseException] = []

    def answered() -> None:
        try:
            answer.append(call())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=answered, name="raysweep: a user's function", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        # Python's own way to raise in another thread.
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(_Stop))
        raise TooLong
    if failed:
        raise failed[0]
    return answer[0]


def add_path(folder: Path) -> None:
    """Have this process import what lies in a folder, after everything that is installed."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


@cache
def _entry_point(name: str, group: str) -> EntryPoint | None:
    return next(iter(entry_points(group=group, name=name)), None) if ":" not in name else None


def _takes(function: Callable[..., Any], arguments: tuple[Any, ...], partly: bool) -> bool:
    """Whether a function can be called with these arguments alone, or `partly` with more by name."""
    try:
        signature = inspect.signature(function)
        signature.bind_partial(*arguments) if partly else signature.bind(*arguments)
    except TypeError:
        return False
    except ValueError:  # Written in C; it says nothing of itself.
        return True
    return True


def place(error: BaseException) -> str:
    """`file.py:12: ` of the line of the user's code that failed, as far as there is one."""
    frames = []
    trace = error.__traceback__
    while trace is not None:
        frames.append((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
        trace = trace.tb_next
    own = [place for place in frames if not place[0].startswith("<") and place[0] not in (__file__, importlib.__file__)]
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}: "
    if not own:
        return ""
    # Ray runs a copy of the package; where that is helps nobody.
    file = re.sub(r"^.*/_ray_pkg_\w+/", "", own[-1][0])
    return f"{file}:{own[-1][1]}: "
