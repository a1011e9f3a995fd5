"""A sweep as a Ray job, on the head of its cluster: there it outlives the laptop that sent it.

These functions talk to Ray's job server on the head's own loopback address.
"""

from __future__ import annotations

import asyncio
import logging
import shlex
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from raysweep.errors import UserError
from raysweep.space.read import load
from raysweep.store import Store
from raysweep.store.lock import stop_holder
from raysweep.version import __version__

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

ADDRESS = "http://127.0.0.1:8265"


def running_job(client: JobSubmissionClient, store: str) -> JobDetails | None:
    """The job that runs a sweep on that store, if there is one."""
    for job in client.list_jobs():
        if not job.status.is_terminal() and (job.metadata or {}).get("store") == store:
            return job
    return None


def start_job(client: JobSubmissionClient, file: str, store: str) -> dict[str, Any]:
    """Start the sweep of a search-space file as a job, or find it running: the `job`, and whether it is `new`."""
    space = load(file)
    running = running_job(client, store)
    if running is not None:
        if file not in shlex.split(running.entrypoint):
            # Its folder is named by what is in it.
            raise UserError(
                f"job {running.submission_id} runs another search space on {store}, or another version of this one: wait "
                "for it, stop it, or use another --store"
            )
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


def stop_job(client: JobSubmissionClient, store: str) -> str | None:
    """Stop the sweep of a store and wait for it; what was stopped, None where nothing ran."""
    running = running_job(client, store)
    if running is None:  # Unless somebody sent it by Ray's own command.
        pid = stop_holder(Store(store))
        return f"process {pid}" if pid else None
    job = str(running.submission_id)
    client.stop_job(job)
    while not client.get_job_status(job).is_terminal():
        time.sleep(0.5)
    return job


def follow_job(client: JobSubmissionClient, job: str, on_text: Callable[[str], None]) -> JobDetails:
    """Call `on_text` with what a job prints until it ends; how it ended."""

    # Which tells of the connection's end.
    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)

    async def follow() -> None:
        async for text in client.tail_job_logs(job):
            on_text(text)

    asyncio.run(follow())
    return client.get_job_info(job)
