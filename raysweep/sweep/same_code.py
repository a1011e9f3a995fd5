"""Whether two processes have the same code: that of the driver, and that of what Ray starts."""

from __future__ import annotations

import hashlib
import importlib.util
import socket
from collections.abc import Iterable
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

from raysweep.errors import UserError
from raysweep.space.measure import Measurement, own_metrics
from raysweep.space.plugins import METRICS
from raysweep.space.plugins import version as own_version


def code(measurements: Iterable[Measurement] = ()) -> dict[str, str]:
    """What tells one process's code from another's.

    Of raysweep and ai2-olmo their files, of PyTorch its version, and of the user's own metrics that are measured theirs.
    """
    return _installed() | {name: own_version(name, METRICS) for name in own_metrics(measurements)}


@lru_cache(1)
def _installed() -> dict[str, str]:
    # A build for GPUs beside one for CPUs is the same code.
    return {"raysweep": _files("raysweep"), "ai2-olmo": _files("olmo"), "torch": version("torch").partition("+")[0]}


def check_same_code(driver: dict[str, str]) -> None:
    """Raise `UserError` where this process has other code than the driver, whose numbers would be called the same.

    It has where nodes have environments of their own, or where a folder that Ray looks into first has a module of that name.
    """
    here = dict(_installed())
    try:
        here |= {name: own_version(name, METRICS) for name in driver if name not in here}
    except ValueError as error:
        raise UserError(f"{socket.gethostname()}: {error}") from None
    other = [name for name in driver if driver[name] != here[name]]
    if other:
        places = ", ".join(f"{name} is {here[name]} here and {driver[name]} there" for name in other)
        raise UserError(
            f"{socket.gethostname()} has other code than the driver of this sweep ({places}): install the same environment "
            "on every node, and look for copies in PYTHONPATH; where the code was changed meanwhile, stop and run again"
        )


def _files(package: str) -> str:
    """A hash of a package's source files."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        return f"no package ({found.origin if found else 'not installed'})"
    folder = Path(found.submodule_search_locations[0])
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in name.parts)
        # What reads results changes none, and lies elsewhere in a checkout.
        if hidden or name.parts[0] in ("analysis", "cli") or not path.is_file():
            continue
        if path.suffix in (".py", ".c", ".cu"):
            digest.update(str(name).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]
