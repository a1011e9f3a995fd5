"""A sweep as a Slurm job: the batch script, which a person can read and edit, and what asks Slurm about the job.

The job has a Ray cluster of its own, over all its nodes, with ports, a folder and a token that are its alone: other jobs and
other people's Ray may share the nodes. (So `ray symmetric-run` is not used: at its end it stops every Ray of the user on a
node.) The sweep runs on the job's first node. Some minutes before the time limit Slurm tells the script, which stops the
sweep in an orderly way and puts the job back in the queue; there it goes on from the store.

An elastic sweep has one node for itself, without a cell, and an array of jobs of one node each that join it as they start.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from raysweep.cluster import program, slurm_scripts
from raysweep.cluster.capacity import DRIVER, Needs, cells_on, check_gpus, trials_memory
from raysweep.cluster.environment import HEAD, PATIENCE
from raysweep.errors import UserError
from raysweep.space.space import Space

_LEAST_NOTICE = 60  # Half of it for checkpoints; Slurm takes KillWait, by default 30 s, to end the steps.

_LEAST_WORK = 120  # Slurm may send its signal a minute early, and Ray takes half a minute to start.

# As sbatch takes them: minutes, m:s, h:m:s, days-hours, and with minutes and seconds.
_LIMIT = re.compile(r"(?:(?P<days>\d+)-)?(?P<rest>\d+(?::\d+){0,2})")
_OF_NODES = re.compile(
    r"--(constraint|gres|gpus|gpu-bind|mem|nodelist|exclude|cpus|cores|sockets|threads|exclusive)\b|-[Cwxc]"
)

JOB = re.compile(r"slurm:(\d+)")
"""What `--cluster` names a job by."""


@dataclass(frozen=True)
class Request:
    """What a job asks of Slurm."""

    nodes: int = 1
    partition: str | None = None
    account: str | None = None
    time: str | None = None
    gpus_per_node: int = 0
    cpus_per_node: int | None = None
    """Cores; None for whole nodes."""
    elastic: bool = False
    """Whether each node is a job of its own, beside one for the sweep."""
    sweep_time: str | None = None
    """The time limit of an elastic sweep's own job, which should outlast its workers'; None for `time`."""
    sweep_partition: str | None = None
    """Where that runs; None for `partition`."""
    notice: int = 300
    """Seconds before the time limit at which the sweep is stopped."""
    further: tuple[str, ...] = ()
    """More options of sbatch, as it takes them. With `elastic` those that say what a node has are for the workers."""


@dataclass(frozen=True)
class Work:
    """What a job does: a sweep, or the measuring of published models."""

    name: str
    needs: Mapping[str, Needs]
    """What its tasks take of a node, by the setting that says so; first what there is most of."""
    trials: Callable[[list[dict[str, float]]], int] = lambda nodes: 0
    """How many cells train at once on such nodes; of each the job of an elastic sweep has a process."""


def sweep(space: Space) -> Work:
    """A sweep as the work of a job."""
    return Work(
        space.name,
        {"resources.train": space.resources.train, "resources.evaluate": space.resources.evaluate},
        lambda nodes: min(len(space.cells), cells_on(space, nodes)),
    )


def check(work: Work, request: Request) -> None:
    """Raise `UserError` where nothing of the work could run in such a job."""
    check_gpus(work.needs, request.gpus_per_node)
    if request.notice < _LEAST_NOTICE:
        raise UserError(
            f"--notice {request.notice}: at least {_LEAST_NOTICE} s are needed, to write checkpoints and to end"
        )
    if request.elastic and request.cpus_per_node is None:
        raise UserError("--elastic: add --cpus-per-node, so that a worker is a piece of a node")
    if not request.elastic and (request.sweep_time or request.sweep_partition):
        raise UserError("--sweep-time and --sweep-partition are for --elastic, where the sweep has a job of its own")
    for option, limit in (("--time", request.time), ("--sweep-time", request.sweep_time)):
        seconds = _seconds(limit) if limit else None
        if seconds is not None and seconds < request.notice + _LEAST_WORK:
            raise UserError(
                f"{option} {limit} is {seconds} s, and the sweep stops {request.notice} s before its end (--notice): allow "
                f"at least {request.notice + _LEAST_WORK} s, or lower --notice"
            )
    cores = request.cpus_per_node
    for setting, one in work.needs.items():
        if cores is not None and cores < one.cpus:
            raise UserError(f"--cpus-per-node {cores} is less than {setting}.cpus {one.cpus}: nothing would fit")


def _seconds(limit: str) -> int | None:
    """The seconds of a time limit, written as sbatch takes it; None where it is no number.

    Examples
    --------
    >>> _seconds("30"), _seconds("30:00"), _seconds("1:00:00"), _seconds("1-00"), _seconds("infinite")
    (1800, 1800, 3600, 86400, None)
    """
    written = _LIMIT.fullmatch(limit)
    if written is None:
        return None
    days, parts = written["days"], [int(part) for part in written["rest"].split(":")]
    # With days the first is hours. Without them one number is minutes, and two are minutes and seconds.
    if days is None and len(parts) < 3:
        parts = [0, *parts]
    hours, minutes, seconds = (*parts, 0, 0)[:3]
    return 86400 * int(days or 0) + 3600 * hours + 60 * minutes + seconds


def batch_script(work: Work, file: Path, store: str, request: Request) -> str:
    """The text of the batch script. `file` and a folder as `store` are absolute."""
    options = [
        f"--job-name=raysweep-{work.name}",
        *(_of_sweep(work, request) if request.elastic else _of_workers(request, request.nodes)),
        *_of_all(request.notice, request.account),
        f"--output=raysweep-{work.name}-%j.log",
        # What a node is to have is for the workers, which train.
        *(one for one in request.further if not (request.elastic and _OF_NODES.match(one))),
    ]
    return slurm_scripts.SCRIPT.format(
        options="\n".join(f"#SBATCH {option}" for option in options),
        notice=request.notice,
        driver=DRIVER,
        settings="\n".join(f"export {name}={value}" for name, value in HEAD.items()),
        patience=min(int(PATIENCE), request.notice // 2),
        programs=shlex.quote(str(Path(sys.executable).parent)),
        space=shlex.quote(str(file)),
        store=shlex.quote(store),
        cores="0" if request.elastic else "$SLURM_CPUS_ON_NODE",
        requeue=slurm_scripts.REQUEUE,
        token=slurm_scripts.KEY_OF_SUBMISSION if request.elastic else slurm_scripts.KEY_MADE_HERE,
        address=slurm_scripts.ADDRESS_FOR_WORKERS if request.elastic else "",
        end=slurm_scripts.END_OF_WORKERS if request.elastic else "",
    )


def worker_script(work: Work, request: Request, head: int) -> str:
    """The text of the batch script of an elastic sweep's workers, as an array, where `head` is the job of the sweep."""
    options = [
        f"--job-name={workers_of(head)}",
        f"--array=1-{request.nodes}",
        f"--dependency=after:{head}",
        *_of_workers(request, 1),
        *_of_all(request.notice, request.account),
        f"--output=raysweep-{work.name}-{head}-worker-%a.log",
        *request.further,
    ]
    return slurm_scripts.WORKER.format(
        options="\n".join(f"#SBATCH {option}" for option in options),
        head=head,
        notice=request.notice,
        requeue=slurm_scripts.REQUEUE,
        programs=shlex.quote(str(Path(sys.executable).parent)),
    )


def workers_of(head: int) -> str:
    """What an elastic sweep's workers are called."""
    return f"raysweep-workers-{head}"


def _of_workers(request: Request, nodes: int) -> list[str]:
    return [
        f"--nodes={nodes}",
        "--ntasks-per-node=1",
        "--exclusive" if request.cpus_per_node is None else f"--cpus-per-task={request.cpus_per_node}",
        *([f"--gpus-per-node={request.gpus_per_node}"] if request.gpus_per_node else []),
        *_where_and_how_long(request.partition, request.time),
    ]


def _of_sweep(work: Work, request: Request) -> list[str]:
    """Of an elastic sweep's own job: a core, and memory for Ray's head and a trial of each cell that trains."""
    assert request.cpus_per_node is not None
    worker: dict[str, float] = {"CPU": request.cpus_per_node, "GPU": request.gpus_per_node}
    return [
        "--nodes=1",
        "--ntasks-per-node=1",
        f"--mem={4 + trials_memory(work.trials([worker] * request.nodes))}G",
        *_where_and_how_long(request.sweep_partition or request.partition, request.sweep_time or request.time),
    ]


def _where_and_how_long(partition: str | None, time: str | None) -> list[str]:
    return [*([f"--time={time}"] if time else []), *([f"--partition={partition}"] if partition else [])]


def _of_all(notice: int, account: str | None) -> list[str]:
    return [
        *([f"--account={account}"] if account else []),
        "--open-mode=append",
        "--requeue",
        "--no-kill",
        f"--signal=B:USR1@{notice}",
    ]


def submit(script: str, folder: Path, token: str = "") -> int:
    """Give a script to sbatch in a folder; the job's number. Raises `UserError` where Slurm refuses it.

    A `token` travels in the environment of the job, which Slurm keeps for itself: it is in no file of ours and no argument.
    """
    answer = _ask("sbatch", "--parsable", f"--chdir={folder}", given=script, token=token)
    # The last line: sites greet first.
    number = re.fullmatch(r"(\d+)(;.*)?", answer.rpartition("\n")[2].strip())
    if number is None:
        raise UserError(f"sbatch printed {answer!r}, and no number of a job at its end: see `squeue --me`")
    return int(number[1])


def states(which: int | str) -> list[dict[str, str]]:
    """What squeue says of a job, or of the jobs of a name, by its columns; nothing where it is over."""
    columns = {"state": "%T", "nodes": "%D", "time": "%M", "time left": "%L", "reason": "%R"}
    chosen = [f"--jobs={which}"] if isinstance(which, int) else [f"--name={which}", "--me", "--array"]
    text = _ask("squeue", "--noheader", *chosen, f"--format={'|'.join(columns.values())}", missing_ok=True)
    return [dict(zip(columns, line.split("|"), strict=True)) for line in text.splitlines()]


def stop(job: int) -> bool:
    """Stop a job's sweep as Ctrl-C would, so that the job ends; a job that waits is cancelled. False where it is over."""
    now = states(job)
    if not now:
        return False
    if now[0]["state"] == "RUNNING":
        _ask("scancel", "--batch", "--signal=TERM", str(job))
    else:
        _ask("scancel", str(job))
        _ask("scancel", f"--jobname={workers_of(job)}")
    return True


def _ask(name: str, *arguments: str, given: str | None = None, missing_ok: bool = False, token: str = "") -> str:
    """What a program of Slurm prints. Raises `UserError` with what it says where it fails."""
    answer = program.run(
        name, *arguments, missing="run this where Slurm's commands are, or add --print for the script", given=given,
        environment={"RAY_AUTH_TOKEN": token} if token else None,
    )  # fmt: skip
    gone = missing_ok and "Invalid job id" in answer.stderr
    if answer.returncode and not gone:
        raise program.refused(name, answer)
    return answer.stdout.strip()
