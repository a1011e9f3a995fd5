"""What `raysweep --cluster` runs on the head: `python -m raysweep.cli.on_head start | status | stop | follow`."""

from __future__ import annotations

import argparse
import json
import os
import sys

from raysweep.cli.exit_status import INTERRUPTED
from raysweep.cli.main import main as command_line
from raysweep.cluster import jobs
from raysweep.cluster.head import unpacked
from raysweep.errors import UserError, one_line


def main() -> None:
    """Print the answer as JSON, or what the command prints."""
    parser = argparse.ArgumentParser(prog="raysweep.cli.on_head", description=__doc__)
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
        json_option = ["--json"] if options.json else []
        command_line(["status", unpacked(options.space), "--store", options.store, *json_option])
    from ray.job_submission import JobSubmissionClient  # `status` does not need Ray.

    for name in ("no_proxy", "NO_PROXY"):  # The job server is on this machine.
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1"]))
    try:
        client = JobSubmissionClient(jobs.ADDRESS)
        if options.command == "start":
            print(json.dumps(jobs.start_job(client, unpacked(options.space), options.store)))
        elif options.command == "stop":
            print(json.dumps({"job": jobs.stop_job(client, options.store)}))
        else:
            ended = jobs.follow_job(client, options.job, lambda text: print(text, end="", flush=True))
            if ended.status.value == "STOPPED":
                sys.exit(INTERRUPTED)
            sys.exit(0 if ended.status.value == "SUCCEEDED" else ended.driver_exit_code or 1)
    except (UserError, ConnectionError, RuntimeError) as error:
        print(f"raysweep: error: {one_line(error)}")
        sys.exit(1)


if __name__ == "__main__":
    main()
