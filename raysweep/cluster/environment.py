"""What Ray reads from the environment, all of it in one place.

Ray reads some of this when it is imported, some when it starts a cluster and some when it runs: so it is set before Ray is
imported, and kept until the sweep is over. The process's own environment is put back after that.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raysweep.cache import CACHE
from raysweep.errors import UserError, reason
from raysweep.files import local_path

log = logging.getLogger("raysweep")

UV = "RAY_ENABLE_UV_RUN_RUNTIME_ENV"

# For every process that talks to Ray.
CLIENT = {
    # Tune's own progress reports and loggers would run through ours.
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Who runs the sweep decides what Ctrl-C does.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # Below `uv run` Ray would pack the working folder, with the stores in it, for its workers; who wants that sets it.
    UV: "0",
    # The trainer that is asked for its reports, and folders of trials in Ray's own, whatever the shell says.
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "1",
    # Raylets' logs would too, by the page where a node is lost. (What Ray says there goes through its deduplicator.)
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",
}

# For a cluster that is started here.
LOCAL_CLUSTER = {
    # The loopback address is the node's, so that nothing listens beyond this machine. (The name is from what Ray does on
    # macOS and Windows by default.)
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # A trial takes some seven processes, more than Ray expects of a small machine, and an evaluation that finds the
    # process of an earlier one alive is spared four seconds of imports.
    "RAY_worker_maximum_startup_concurrency": "8",
    "RAY_num_workers_soft_limit": "8",
    "RAY_idle_worker_killing_time_threshold_ms": "600000",
    # What Ray remembers of tasks, actors and processes that are over: by its defaults a megabyte and more for every cell.
    "RAY_task_events_max_num_task_in_gcs": "2000",
    "RAY_maximum_gcs_destroyed_actor_cached_count": "500",
    "RAY_maximum_gcs_dead_worker_cached_count": "500",
    # This machine's processes are not taken away with notice, which is what each trial would start one more to watch for.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}

# For the head of a cluster of several machines, as cluster.yaml has it: a node that does not answer for ten seconds is lost,
# and what is over is forgotten, lest the head fill up over hundreds of cells.
HEAD = {
    "RAY_health_check_period_ms": "2000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "5",
    "RAY_task_events_max_num_task_in_gcs": "2000",
    "RAY_maximum_gcs_destroyed_actor_cached_count": "500",
    "RAY_maximum_gcs_dead_worker_cached_count": "500",
    # `ray job stop` waits for the checkpoints of cells in training, and then for Tune.
    "RAY_JOB_STOP_WAIT_TIME_S": "300",
}

STOP_WAIT = "RAYSWEEP_STOP_WAIT"
"""Seconds for which a sweep that is asked to stop waits for checkpoints of the cells in training; by default `PATIENCE`."""
PATIENCE = 120.0

# For a process that calls `fit()` of Ray Train: a trial, and the driver, whose environment trials on its machine inherit.
TRIAL = {
    # Workers are polled this often; the default of 2 s is most of what a short cell would wait for.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # A worker may have to wait for an evaluation, or for a node to start; giving up is not the controller's to decide.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(7 * 24 * 3600),
    # A group that cannot be set up would keep what it was given.
    "RAY_TRAIN_CALLBACKS": "raysweep.sweep.failed_group.RemoveFailedGroup",
}


# What may name a file or folder from where the sweep is started.
_PATHS = (
    "PYTHONPATH", "RAYSWEEP_MIRROR", "HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME", "GOOGLE_APPLICATION_CREDENTIALS",
    "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE",
)  # fmt: skip

# A name of a socket has at most so many bytes on Linux (`man 7 unix`), and Ray's longest is this.
LONGEST_SOCKET = 107
_SOCKET = "/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"
_PYTHON_SOCKET = "/pymp-12345678/listener-12345678"  # Of `multiprocessing`, which Ray's dashboard is made of.


@contextmanager
def ray_environment(local: bool) -> Iterator[None]:
    """Ray's environment while in the context; `local` where a cluster is to be started on this machine."""
    with preserved_environment():
        asked = {UV: os.environ[UV]} if UV in os.environ else {}
        _make_paths_absolute()
        os.environ.update(CLIENT | TRIAL | (LOCAL_CLUSTER if local else {}) | asked)
        if os.path.expanduser("~") == "~" and (home := _own_folder()):
            os.environ["HOME"] = str(home)  # Ray Train cannot be imported by a user without one.
        token = Path(os.path.expanduser("~/.ray/auth_token"))
        if (
            local
            and not os.environ.get("RAY_AUTH_TOKEN")
            and not os.access(token, os.R_OK)
            and _not_writable(token.parent)
        ):
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # It cannot be kept where Ray has it.
        yield


def _make_paths_absolute() -> None:
    """Ray's processes run in another folder: what a variable names from this one must be found from there."""
    if cache_folder := os.environ.get(CACHE):
        os.environ[CACHE] = str(local_path(cache_folder, CACHE).absolute())
    for name in _PATHS:
        if parts := os.environ.get(name):
            os.environ[name] = os.pathsep.join(
                os.path.abspath(part) if os.path.exists(part) else part for part in parts.split(os.pathsep)
            )


@contextmanager
def preserved_environment() -> Iterator[None]:
    """Put the process's environment back as it was, whatever changes it meanwhile."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        for name, value in before.items():
            if os.environ.get(name) != value:
                os.environ[name] = value


def temporary_folder() -> Path:
    """Where Ray has its folder `ray`: logs, sockets, and the address that `ray start` leaves."""
    variables = ("RAY_TMPDIR", "TMPDIR") if sys.platform == "linux" else ("RAY_TMPDIR",)
    return Path(next(filter(None, map(os.environ.get, variables)), "/tmp"))  # noqa: S108 (Ray's own place)


def ray_folder() -> Path | None:
    """Where a cluster on this machine has its folder instead of Ray's own choice; None where that will do.

    It is in /tmp/ray-<user id>, and a warning says so, where the names of sockets in RAY_TMPDIR or TMPDIR would be too long,
    or where /tmp/ray is another user's. TMPDIR becomes the same where names of sockets there would be too long. Raises
    `UserError` where Ray could write in neither.
    """
    folder = temporary_folder()
    variable = next((name for name in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(name)), "")
    long_ray, long_python = _excess(folder, _SOCKET), _excess(os.environ.get("TMPDIR") or "", _PYTHON_SOCKET)
    if long_ray > 0:
        why = f"{variable}={folder} is too long for the names of Ray's sockets, by {long_ray} bytes"
    elif long_python > 0:
        why = f"TMPDIR={os.environ['TMPDIR']} is too long for the names of Python's sockets, by {long_python} bytes"
    elif there := _not_writable(folder / "ray"):
        why = f"Ray cannot write in {there}"
        if variable:
            raise UserError(f"{why}: set {variable} to a folder of your own on this machine's disk")
    else:
        return None
    if (own := _own_folder()) is None:
        raise UserError(f"{why}, nor in {_OWN}: set RAY_TMPDIR to a short folder of your own on this machine's disk")
    log.warning("%s: the Ray cluster of this sweep has its folder in %s", why, own)
    if long_python > 0:
        os.environ["TMPDIR"] = str(own)
    return own / "ray"  # Which Ray lets everybody write.


_OWN = Path(f"/tmp/ray-{os.getuid()}")  # noqa: S108 (checked before it is used)


def _own_folder() -> Path | None:
    """A folder with a short name that is this user's alone; None where there can be none."""
    try:
        _OWN.mkdir(mode=0o700, exist_ok=True)
        mine = not _OWN.is_symlink() and _OWN.is_dir() and _OWN.stat().st_uid == os.getuid()
    except OSError:
        mine = False
    return _OWN if mine and not _not_writable(_OWN) else None


def _excess(folder: str | Path, name: str) -> int:
    """By how many bytes the name of a socket in a folder is too long; 0 or less where it is not."""
    return len(os.fsencode(folder)) + len(name) - LONGEST_SOCKET


def _not_writable(folder: Path) -> Path | None:
    """What of a folder, or of those above it, stops one from being written; None where nothing does."""
    there = next(path for path in (folder, *folder.parents) if os.path.exists(path))  # Path.exists may raise.
    return None if there.is_dir() and os.access(there, os.W_OK | os.X_OK) else there


def check_loopback() -> None:
    """Raise `UserError` where this machine cannot talk to itself, which Ray would wait minutes for."""
    try:
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            socket.create_connection(server.getsockname(), timeout=5),
        ):
            pass
    except OSError as error:
        raise UserError(
            f"this machine cannot reach its own address 127.0.0.1 ({reason(error)}): bring its loopback interface up "
            "(`ip link set lo up`)"
        ) from None


def check_import_order() -> None:
    """Raise `UserError` where Ray was imported before its environment was set, and would listen beyond this machine."""
    constants = sys.modules.get("ray._private.ray_constants")
    if constants is not None and constants.ENABLE_RAY_CLUSTER:
        raise UserError(
            "ray was imported before raysweep could set its environment, so that a cluster started now would listen beyond "
            "this machine: import ray after the first raysweep call, or start a cluster yourself (`ray start --head`)"
        )
