"""doctor: what this machine is like, and what to do about what is not as it should be; each in one line."""

from __future__ import annotations

import argparse
import logging
import os
import resource
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import psutil

from raysweep.cache import cache
from raysweep.cli.console import escape, say
from raysweep.cli.options import print_json
from raysweep.errors import UserError, reason

_GB = 1e9

# What a sweep of small models wants at least: text and kernels; a driver, a trial and a worker; Ray's own processes.
_LEAST_DISK, _LEAST_MEMORY, _LEAST_SHARED, _LEAST_FILES = 5 * _GB, 4 * _GB, 1 * _GB, 4096

_COLOURS = {"ok": "green", "slower": "yellow", "wrong": "red"}


@dataclass(frozen=True)
class Finding:
    """One thing about this machine."""

    what: str
    how: str
    """`ok`; `slower` where everything works and something takes longer; `wrong` where a sweep would fail."""
    said: str


def doctor(options: argparse.Namespace) -> int:
    """`raysweep doctor`."""
    # What a check says of itself it says in its line.
    logging.getLogger("raysweep").setLevel(logging.ERROR)
    findings = [Finding(what, *check()) for what, check in _CHECKS.items()]
    if options.json:
        print_json([asdict(one) for one in findings])
    else:
        for one in findings:
            say(f"[{_COLOURS[one.how]}]{one.how:7}[/] {one.what:14} {escape(one.said)}")
    return 1 if any(one.how == "wrong" for one in findings) else 0


_Answer = tuple[str, str]


def _python() -> _Answer:
    found = f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro} at {sys.executable}"
    if (3, 11) <= sys.version_info[:2] <= (3, 12):
        return "ok", found
    return "wrong", f"{found}: raysweep needs 3.11 or 3.12"


def _packages() -> _Answer:
    from packaging.requirements import Requirement

    wrong = []
    needed = [Requirement(text) for text in metadata.requires("raysweep") or ()]
    for one in needed:
        if one.marker is not None and not one.marker.evaluate({"extra": ""}):
            continue
        try:
            there = metadata.version(one.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{one.name} is missing")
            continue
        if not one.specifier.contains(there, prereleases=True):
            wrong.append(f"{one.name} is {there} and must be {one.specifier}")
    if wrong:
        return "wrong", f"{', '.join(wrong)}: `make install` installs the versions that fit"
    main = ", ".join(f"{name} {metadata.version(name)}" for name in ("ray", "torch", "transformers"))
    return "ok", f"raysweep {metadata.version('raysweep')} with {main}; all versions fit"


def _compiler() -> _Answer:
    from raysweep.model import kernels

    try:
        if kernels.available():
            return "ok", "raysweep's kernels for small models are compiled"
    except RuntimeError as error:
        return "wrong", " ".join(str(error).split())
    return "slower", (
        "small models train about half as fast on CPUs: install gcc or clang, or set CC; RAYSWEEP_CACHE must be writable"
    )


def _cores() -> _Answer:
    there = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else there  # macOS has none.
    return "ok", f"{usable} of {there} may be used" if usable < there else f"{there}"


def _gpu() -> _Answer:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return "ok", f"{len(names)}: {', '.join(dict.fromkeys(names))}"
    driver = shutil.which("nvidia-smi") is not None
    if driver and not torch.version.cuda:
        return "wrong", (
            f"there is a driver, and PyTorch {torch.__version__} has no CUDA: install a build that has, or set gpus to 0"
        )
    if driver:
        return (
            "wrong",
            "there is a driver, and PyTorch finds no GPU: see what `nvidia-smi` says, and CUDA_VISIBLE_DEVICES",
        )
    return "ok", "none; cells train on CPUs"


def _memory() -> _Answer:
    memory = psutil.virtual_memory()
    said = f"{memory.available / _GB:.3g} GB of {memory.total / _GB:.3g} GB are free"
    if memory.available < _LEAST_MEMORY:
        return "wrong", f"{said}: a sweep needs {_LEAST_MEMORY / _GB:.0f} GB"
    return "ok", said


def _disk() -> _Answer:
    try:
        folder = cache()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except UserError as error:
        return "wrong", str(error)
    except OSError as error:
        return "wrong", f"{folder} cannot be written ({reason(error)}): set RAYSWEEP_CACHE to a folder of your own"
    free = shutil.disk_usage(folder).free
    said = f"{free / _GB:.3g} GB are free for text and kernels in {folder}"
    if free < _LEAST_DISK:
        return "wrong", f"{said}: make room, or set RAYSWEEP_CACHE to a folder on a larger disk"
    return "ok", said


def _shared_memory() -> _Answer:
    if not Path("/dev/shm").is_dir():  # noqa: S108 (looked at only)
        return "slower", "there is no /dev/shm: Ray keeps on disk what processes share"
    size = shutil.disk_usage("/dev/shm").total  # noqa: S108
    said = f"{size / _GB:.2g} GB in /dev/shm"
    if size < _LEAST_SHARED:
        return "slower", f"{said}: Ray keeps on disk what processes share; start the container with --shm-size=2g"
    return "ok", said


def _open_files() -> _Answer:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < _LEAST_FILES:
        return "slower", f"at most {hard:,}, with which large sweeps may end: raise `ulimit -Hn` to {_LEAST_FILES:,}"
    return "ok", f"{soft:,}" + ("" if soft == hard else ", which Ray raises")


def _folder_of_ray() -> _Answer:
    from raysweep.cluster.environment import ray_folder, temporary_folder

    before = os.environ.get("TMPDIR")
    try:
        own = ray_folder()
    except UserError as error:
        return "wrong", str(error)
    finally:
        if before is not None:
            os.environ["TMPDIR"] = before
    if own is None:
        return "ok", f"{temporary_folder()}/ray"
    return "ok", f"{own}, since Ray's own choice under {temporary_folder()} would not do"


def _loopback() -> _Answer:
    from raysweep.cluster.environment import check_loopback

    try:
        check_loopback()
    except UserError as error:
        return "wrong", str(error)
    return "ok", "this machine reaches itself"


def _dashboard() -> _Answer:
    try:
        with socket.create_server(("127.0.0.1", 8265)):
            return "ok", "port 8265 is free"
    except OSError:
        return "ok", "port 8265 is taken: Ray's dashboard takes the next one"


def _cluster() -> _Answer:
    given = os.environ.get("RAY_ADDRESS")
    if given:
        return "ok", f"RAY_ADDRESS={given}: `raysweep run` uses that one"
    return "ok", "`raysweep run` starts one here, where none was started by `ray start`"


_CHECKS: dict[str, Callable[[], _Answer]] = {
    "Python": _python, "packages": _packages, "compiler": _compiler, "cores": _cores, "GPUs": _gpu, "memory": _memory,
    "disk": _disk, "shared memory": _shared_memory, "open files": _open_files, "Ray's folder": _folder_of_ray,
    "loopback": _loopback, "dashboard": _dashboard, "cluster": _cluster,
}  # fmt: skip
