"""run, stop and status with --cluster: from a laptop, over SSH."""

from __future__ import annotations

import shlex

from raysweep.cli.exit_status import INTERRUPTED
from raysweep.cluster.head import Head, packed, shared_store
from raysweep.space.read import load

# What runs on the head.
_ON_HEAD = "raysweep.cli.on_head"


def run(configuration: str, file: str, location: str | None) -> int:
    """Start the sweep on the cluster, or find it running, and show what it prints until it ends; its exit status."""
    head, store = Head(configuration), shared_store(location)
    space = load(file)
    started = head.ask(_ON_HEAD, "start", packed(file), "--store", store)
    job = started["job"]
    arguments = shlex.join(["--cluster", configuration, file, "--store", store])
    what = "started" if started["new"] else "is running"
    print(f"{space.name} {what} as job {job} on the cluster of {configuration}")
    print(f"  it continues without this terminal; stop it with  raysweep stop {arguments}")
    print(
        f"  open its dashboard at http://localhost:8265 with    ray dashboard {shlex.quote(configuration)}", flush=True
    )
    try:
        return head.run(_ON_HEAD, "follow", job, on_line=_show)[0]
    except KeyboardInterrupt:
        print(f"\nthe sweep continues; see it again with  raysweep run {arguments}")
        return INTERRUPTED


def stop(configuration: str, location: str | None) -> int:
    """Stop the sweep of that store as Ctrl-C would."""
    head, store = Head(configuration), shared_store(location)
    stopped = head.ask(_ON_HEAD, "stop", "--store", store)["job"]
    print(f"stopped {stopped}" if stopped else f"nothing runs on {store}")
    return 0


def status(configuration: str, file: str, location: str | None, as_json: bool) -> int:
    """`raysweep status` as the head sees it."""
    head, store = Head(configuration), shared_store(location)
    load(file)
    json = ["--json"] if as_json else []
    return head.run(_ON_HEAD, "status", packed(file), "--store", store, *json, on_line=_show)[0]


def _show(line: str) -> None:
    print(line, flush=True)
