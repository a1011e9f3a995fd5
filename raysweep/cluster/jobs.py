"""A sweep as a Ray job: it runs on the head of a cluster that `ray up` started, and outlives the laptop that sent it.

Two halves. `Head` runs commands on the head over SSH, as Ray's launcher does, so that nothing but SSH need be open. What
it runs there is this module's `main`, which talks to Ray's job server on the head's own loopback address.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import json
import logging
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysweep.cli import main as cli
from raysweep.errors import UserError
from raysweep.space.cell import load
from raysweep.store import Store
from raysweep.store.lock import stop_holder
from raysweep.sweep.runner import INTERRUPTED
from raysweep.version import __version__

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

# Around what a command prints on the head; the rest is the launcher's.
_BEGIN, _END = "--raysweep-begin--", "--raysweep-end-"

# Which Ray's command line resets even where there is no terminal.
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")

# Search spaces on the head, in its home; each under its content's hash, so that none is changed in mid-run.
_FOLDER = "raysweep.cluster.jobs"

# A search space is sent as an argument of a command, of which Linux takes 128 KiB.
_LONGEST = 90_000


# On the laptop.


class Head:
    """The head node of the cluster that a launcher's `configuration` describes."""

    def __init__(self, configuration: str) -> None:
        if not Path(configuration).is_file():
            raise UserError(f"{configuration}: no such cluster configuration; cluster.yaml is one to start from")
        self.configuration = configuration

    def run(self, *command: str, shown: bool = True) -> tuple[int, str]:
        """Run a command of raysweep's Python on the head; its exit status and what it printed.

        Where it is `shown` it is printed as it comes.
        """
        line = shlex.join(["python", "-m", *command])
        line = f"echo {_BEGIN}; {line}; echo {_END}$?"
        # Without the terminal, which SSH would take over: Ctrl-C is for this process.
        process = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "exec", self.configuration, line],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        )  # fmt: skip
        printed, other, inside, status = [], [], False, None
        assert process.stdout is not None
        try:
            for text in process.stdout:
                text = _COLOURS.sub("", text).rstrip("\r\n")
                # What came before may not have ended its line.
                text, ended, code = text.partition(_END)
                if inside and (text or not ended):
                    printed.append(text)
                    if shown:
                        print(text, flush=True)
                elif text == _BEGIN:
                    inside = True
                elif not inside and not ended:
                    other.append(text)
                if inside and ended:
                    inside, status = False, int(code)
        except BaseException:
            process.kill()
            raise
        finally:
            process.wait()
        if status is None:
            raise UserError(self._unreachable(other))
        return status, "\n".join(printed)

    def ask(self, *command: str) -> Any:
        """The JSON that a command prints last."""
        status, printed = self.run(*command, shown=False)
        last = printed.splitlines()[-1] if printed else ""
        if status:
            raise UserError(f"on the head: {last.removeprefix('raysweep: error: ') or f'exit status {status}'}")
        return json.loads(last)

    def _unreachable(self, printed: list[str]) -> str:
        why = next((line.strip() for line in reversed(printed) if line.strip()), "no answer")
        return (
            f"the head of {self.configuration} cannot be reached ({why}): is the cluster up (ray up "
            f"{self.configuration})? A sweep that was started goes on without this connection"
        )


def _sent(file: str) -> str:
    """A search space as an argument."""
    content = Path(file).read_bytes()
    if len(content) > _LONGEST:
        raise UserError(f"{file} has {len(content):,} bytes; to a cluster at most {_LONGEST:,} can be sent")
    return base64.b64encode(content).decode()


def shared_store(location: str | None) -> str:
    """The store's location, which must mean the same on every node; raises `UserError` where it cannot."""
    location = location or os.environ.get("RAYSWEEP_STORE")
    if location is None or ("://" not in location and not location.startswith("/")):
        raise UserError(
            "with --cluster the store must be one that every node reaches: --store s3://bucket/folder, or a shared folder "
            "by its absolute path" + (f", not {location}" if location else "")
        )
    return location.rstrip("/")


def run(head: Head, file: str, store: str) -> int:
    """Start the sweep on the cluster, or find it running, and show what it prints until it ends; its exit status."""
    space = load(file)
    started = head.ask("raysweep.cluster.jobs", "start", _sent(file), "--store", store)
    job = started["job"]
    arguments = shlex.join(["--cluster", head.configuration, file, "--store", store])
    print(
        f"{space.name} {'started' if started['new'] else 'is running'} as job {job} on the cluster of {head.configuration}"
    )
    print(f"  it goes on without this terminal; stop it with  raysweep stop {arguments}")
    print(
        f"  its dashboard at http://localhost:8265:         ray dashboard {shlex.quote(head.configuration)}", flush=True
    )
    try:
        return head.run("raysweep.cluster.jobs", "follow", job)[0]
    except KeyboardInterrupt:
        print(f"\nthe sweep goes on; see it again with  raysweep run {arguments}")
        return INTERRUPTED


def stop(head: Head, store: str) -> int:
    """Stop the sweep of that store as Ctrl-C would."""
    stopped = head.ask("raysweep.cluster.jobs", "stop", "--store", store)["job"]
    print(f"stopped {stopped}" if stopped else f"nothing runs on {store}")
    return 0


def status(head: Head, file: str, store: str, as_json: bool) -> int:
    """`raysweep status` as the head sees it."""
    load(file)
    return head.run("raysweep.cluster.jobs", "status", _sent(file), "--store", store, *(["--json"] if as_json else []))[
        0
    ]


# On the head.


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="raysweep.cluster.jobs", description="What `raysweep --cluster` runs on the head."
    )
    commands = parser.add_subparsers(required=True, dest="command")
    for name in ("start", "status"):
        command = commands.add_parser(name)
        command.add_argument("space", help="the content of a search space, in base 64")
        command.add_argument("--store", required=True)
        command.add_argument("--json", action="store_true")
    commands.add_parser("stop").add_argument("--store", required=True)
    commands.add_parser("follow").add_argument("job")
    options = parser.parse_args()
    if options.command == "status":
        cli.main(["status", _received(options.space), "--store", options.store, *(["--json"] if options.json else [])])
    from ray.job_submission import JobSubmissionClient

    try:
        client = JobSubmissionClient("http://127.0.0.1:8265")
        if options.command == "start":
            print(json.dumps(_start(client, _received(options.space), options.store)))
        elif options.command == "stop":
            print(json.dumps({"job": _stop(client, options.store)}))
        else:
            sys.exit(_follow(client, options.job))
    except (UserError, ConnectionError, RuntimeError) as error:
        print(f"raysweep: error: {' '.join(str(error).split())}")
        sys.exit(1)


def _received(space: str) -> str:
    """The file of a search space that was sent."""
    content = base64.b64decode(space, validate=True)
    file = Path.home() / _FOLDER / f"{hashlib.sha256(content).hexdigest()[:12]}.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)
    return str(file)


def _running(client: JobSubmissionClient, store: str) -> JobDetails | None:
    """The job that runs a sweep on that store, if there is one."""
    for job in client.list_jobs():
        if not job.status.is_terminal() and (job.metadata or {}).get("store") == store:
            return job
    return None


def _start(client: JobSubmissionClient, file: str, store: str) -> dict[str, Any]:
    space = load(file)
    running = _running(client, store)
    if running is not None:
        return {"job": running.submission_id, "new": False}
    job = client.submit_job(
        entrypoint=shlex.join([sys.executable, "-m", "raysweep.cli", "run", file, "--store", store]),
        submission_id=f"raysweep-{space.name}-{time.strftime('%Y%m%d-%H%M%S')}",
        # What the dashboard shows of a job.
        metadata={
            "raysweep": __version__,
            "search_space": space.name,
            "cells": str(len(space.cells)),
            "evaluations": str(len(space.cells) * len(space.evaluations)),
            "store": store,
        },
    )
    return {"job": job, "new": True}


def _stop(client: JobSubmissionClient, store: str) -> str | None:
    running = _running(client, store)
    if running is None:  # Unless somebody sent it by Ray's own command.
        pid = stop_holder(Store(store))
        return f"process {pid}" if pid else None
    job = str(running.submission_id)
    client.stop_job(job)
    while not client.get_job_status(job).is_terminal():
        time.sleep(0.5)
    return job


def _follow(client: JobSubmissionClient, job: str) -> int:
    """Print what a job prints until it ends; its exit status."""

    # Which tells of the connection's end.
    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)

    async def follow() -> None:
        async for text in client.tail_job_logs(job):
            print(text, end="", flush=True)

    asyncio.run(follow())
    info = client.get_job_info(job)
    if info.status.value == "STOPPED":
        return INTERRUPTED
    return 0 if info.status.value == "SUCCEEDED" else info.driver_exit_code or 1


if __name__ == "__main__":
    main()
