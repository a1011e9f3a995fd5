"""slurm, and stop and status with --cluster slurm:JOB: a sweep as a Slurm job."""

from __future__ import annotations

import argparse
import secrets
from collections import Counter
from pathlib import Path

from raysweep.cli.console import say
from raysweep.cli.options import load_space, located_store
from raysweep.cluster import slurm
from raysweep.errors import UserError
from raysweep.suites.read import is_suite, load_suite


def submit(options: argparse.Namespace) -> int:
    """`raysweep slurm`."""
    if is_suite(options.space):
        suite = load_suite(options.space).suite
        work = slurm.Work(suite.name, {"resources": suite.resources})
    else:
        work = slurm.sweep(load_space(options))
    store = located_store(options.store, work.name)
    location = store.location if "://" in store.location else str(Path(store.location).absolute())
    request = slurm.Request(
        nodes=options.nodes,
        partition=options.partition,
        account=options.account,
        time=options.time,
        gpus_per_node=options.gpus_per_node,
        cpus_per_node=options.cpus_per_node,
        elastic=options.elastic,
        sweep_time=options.sweep_time,
        sweep_partition=options.sweep_partition,
        notice=options.notice,
        further=tuple(options.sbatch),
    )
    slurm.check(work, request)
    script = slurm.batch_script(work, Path(options.space).absolute(), location, request)
    if options.print:
        print(script, end="")
        if request.elastic:
            print("\n# And the workers, with the number of that job in place of 0:")
            print(slurm.worker_script(work, request, 0))
        return 0
    token = secrets.token_hex(32) if request.elastic else ""
    job = slurm.submit(script, Path.cwd(), token)
    print(f"{work.name} is job {job}; it prints to raysweep-{work.name}-{job}.log")
    if request.elastic:
        try:
            workers = slurm.submit(slurm.worker_script(work, request, job), Path.cwd(), token)
        except UserError:
            slurm.stop(job)  # Alone it would wait for ever.
            raise
        print(f"  its workers are job {workers}, each of its tasks a node that joins when Slurm starts it")
    print(f"  see it with   raysweep status {options.space} --store {location} --cluster slurm:{job}")
    print(f"  stop it with  raysweep stop {options.space} --store {location} --cluster slurm:{job}")
    return 0


def stop(job: int) -> int:
    """`raysweep stop --cluster slurm:JOB`."""
    print(f"stopping job {job}" if slurm.stop(job) else f"job {job} is over")
    return 0


def show_job(job: int) -> None:
    """What Slurm says of the job."""
    now = slurm.states(job)
    if not now:
        say(f"job {job} is over: `sacct -j {job}` has what it used")
    for state in now:
        say(f"job {job}  " + ", ".join(f"{name} {value}" for name, value in state.items() if value))
    workers = Counter(state["state"] for state in slurm.states(slurm.workers_of(job)))
    if workers:
        say("workers  " + ", ".join(f"{count} {state}" for state, count in workers.items()))


def job_of(cluster: str) -> int | None:
    """The number of the Slurm job that --cluster names; None where it names a file. Raises `UserError`."""
    if not cluster.startswith("slurm:"):
        return None
    found = slurm.JOB.fullmatch(cluster)
    if found is None:
        raise UserError(f"--cluster {cluster}: the number of a job is needed, such as slurm:1234")
    return int(found[1])
