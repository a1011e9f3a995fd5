"""What `raysweep slurm` writes, without a Slurm; `test_slurm.py` runs it."""

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
from tiny import make_cell

from raysweep.cluster import slurm
from raysweep.cluster.slurm import Request
from raysweep.errors import UserError
from raysweep.space.space import Space

FILE = Path("/shared/it's mine/space.yaml")


def make_space(train: float = 0, evaluate: float = 0, cpus: int = 2) -> Space:
    resources = {"train": {"cpus": cpus, "gpus": train}, "evaluate": {"cpus": 1, "gpus": evaluate}}
    return Space.model_validate({"name": "mine", "cells": (make_cell(),), "resources": resources})


def scripts(request: Request) -> list[str]:
    made = [slurm.batch_script(slurm.sweep(make_space()), FILE, "/shared/my store", request)]
    return [*made, slurm.worker_script(slurm.sweep(make_space()), request, 12)] if request.elastic else made


def options(script: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]


@pytest.mark.parametrize("elastic", [False, True])
def test_the_scripts_are_bash_and_name_things_with_blanks(elastic: bool) -> None:
    for script in scripts(Request(elastic=elastic, cpus_per_node=4)):
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    space, store = ("printf '%s\\n' \"$space\"", "printf '%s\\n' \"$store\"")
    head = "\n".join(line for line in scripts(Request())[0].splitlines() if line.startswith(("space=", "store=")))
    said = subprocess.run(
        ["bash", "-c", f"{head}\n{space}\n{store}"], capture_output=True, text=True, check=True
    ).stdout
    assert said == f"{FILE}\n/shared/my store\n"


def test_options_reach_sbatch() -> None:
    (one,) = scripts(Request(4, "gpu", "me", "1:00:00", 2, 16, notice=60, further=("--qos=low",)))
    assert set(options(one)) == {
        "--job-name=raysweep-mine", "--nodes=4", "--ntasks-per-node=1", "--cpus-per-task=16", "--gpus-per-node=2",
        "--time=1:00:00", "--partition=gpu", "--account=me", "--open-mode=append", "--requeue", "--no-kill",
        "--signal=B:USR1@60", "--output=raysweep-mine-%j.log", "--qos=low",
    }  # fmt: skip
    assert "--exclusive" in options(scripts(Request())[0])
    sweep, workers = scripts(Request(4, gpus_per_node=2, cpus_per_node=16, elastic=True))
    assert "--nodes=1" in options(sweep)
    assert not {"--gpus-per-node=2", "--cpus-per-task=16"} & set(options(sweep))
    assert "--mem=5G" in options(sweep)
    assert {"--array=1-4", "--nodes=1", "--gpus-per-node=2", "--cpus-per-task=16", "--dependency=after:12"} <= set(
        options(workers)
    )


def test_what_a_node_is_to_have_is_for_the_workers_of_an_elastic_sweep() -> None:
    further = ("--constraint=a100", "--gpus-per-node=a100:4", "--mem=100G", "--qos=low")
    sweep, workers = scripts(Request(cpus_per_node=16, elastic=True, further=further))
    assert set(further) <= set(options(workers))
    assert {"--qos=low", "--mem=5G"} <= set(options(sweep))
    assert not {"--constraint=a100", "--gpus-per-node=a100:4", "--mem=100G"} & set(options(sweep))


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [  # As `man sbatch` has them.
        ("30", 1800), ("30:15", 1815), ("1:30:15", 5415), ("2-12", 216_000), ("2-12:30", 217_800), ("2-12:30:15", 217_815),
        ("infinite", None),
    ],
)  # fmt: skip
def test_time_limits_are_read_as_sbatch_reads_them(limit: str, seconds: int | None) -> None:
    assert slurm._seconds(limit) == seconds


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder of programs in place of Slurm's and Ray's, which write down how they were called."""
    programs = {
        "ray": "",
        "python": "echo 127.0.0.1",
        "srun": 'for node in "$@"; do case $node in --nodelist=*) node=${node#*=}; break;; esac; done\n'
        'echo "$node" "$@" | head -1 >> calls\n'
        'while [ "$1" != bash ] && [ $# -gt 0 ]; do shift; done\n'
        "[ $# -eq 0 ] || exec sleep 60",
        "scontrol": 'if [ "$1" = show ]; then echo n1 n2 n3; exit; fi\n'
        'echo requeue "$2" >> calls; [ "$(grep -c requeue calls)" -ge 3 ]',
        "raysweep": 'if [ "$1" = stop ]; then echo nothing runs; exit; fi\ntouch runs; exec sleep 60',
        "sleep": 'exec /bin/sleep "$([ "$1" = 5 ] && echo 0.1 || echo "$1")"',
    }
    for name, body in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    return tmp_path


@pytest.mark.parametrize(("sent", "requeued"), [(signal.SIGUSR1, 3), (signal.SIGTERM, 0)])
def test_a_sweep_that_only_begins_is_stopped_and_the_job_queued_again(
    site: Path, sent: signal.Signals, requeued: int
) -> None:
    """`raysweep stop` finds none yet. Slurm is too busy twice, and has nodes of two kinds."""
    (script,) = scripts(Request())
    programs = next(line for line in script.splitlines() if line.startswith("export PATH="))
    (site / "script").write_text(script.replace(programs, f"export PATH={site}:/usr/bin:/bin"))
    environment = {
        "SLURM_JOB_ID": "1", "SLURMD_NODENAME": "n1", "SLURM_JOB_NODELIST": "n[1-3]", "SLURM_CPUS_ON_NODE": "32",
        "SLURM_JOB_CPUS_PER_NODE": "32(x2),64", "PATH": "/usr/bin:/bin",
    }  # fmt: skip
    job = subprocess.Popen(["bash", "script"], cwd=site, env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + 30
        while not (site / "runs").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)
        job.send_signal(sent)
        assert job.wait(timeout=30) == 143
    finally:
        with suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
    calls = (site / "calls").read_text().splitlines()
    assert calls.count("requeue 1") == requeued
    cores = {
        call.split()[0]: call.partition("--cpus-per-task=")[2].split()[0] for call in calls if "--cpus-per" in call
    }
    assert cores == {"n1": "32", "n2": "32", "n3": "64"}


def test_the_number_of_a_job_is_found_below_a_greeting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for printed, number in (("Welcome to the cluster\n\n1234", 1234), ("1234;there", 1234)):
        (tmp_path / "sbatch").write_text(f"#!/bin/bash\nprintf '%s\\n' '{printed}'\n")
        (tmp_path / "sbatch").chmod(0o755)
        assert slurm.submit("#!/bin/bash\n", tmp_path) == number
    (tmp_path / "sbatch").write_text("#!/bin/bash\necho Submitted\n")
    with pytest.raises(UserError, match=r"sbatch printed 'Submitted', and no number of a job"):
        slurm.submit("#!/bin/bash\n", tmp_path)
    (tmp_path / "sbatch").write_text("#!/bin/bash\nexec sleep 60\n")
    monkeypatch.setattr("raysweep.cluster.program.WAIT", 0.3)
    with pytest.raises(UserError, match=r"sbatch gave no answer for 0\.3 s: try again"):
        slurm.submit("#!/bin/bash\n", tmp_path)


def test_no_token_is_in_a_script() -> None:
    """The job's own is made when it runs; an elastic sweep's is in the environment of its jobs."""
    first, second = scripts(Request())[0], scripts(Request())[0]
    assert first == second
    assert "/dev/urandom" in first
    for script in scripts(Request(elastic=True, cpus_per_node=4)):
        assert "/dev/urandom" not in script
        ended = subprocess.run(
            ["bash", "-c", script], env={"SLURM_JOB_ID": "1"}, capture_output=True, text=True, check=False
        )
        assert ended.returncode != 0
        assert "submit both by raysweep slurm --elastic" in ended.stderr or "submit both by it" in ended.stderr


@pytest.mark.parametrize(
    ("space", "request_", "said"),
    [
        (make_space(train=1), Request(), r"resources\.train\.gpus is 1: add --gpus-per-node"),
        (make_space(evaluate=0.5), Request(), r"resources\.evaluate\.gpus is 0\.5: add --gpus-per-node 1$"),
        (make_space(), Request(gpus_per_node=1), "resources.train.gpus is 0: set it to use them"),
        (make_space(), Request(notice=10), "at least 60 s are needed"),
        (make_space(), Request(time="5:00"), r"--time 5:00 is 300 s, and the sweep stops 300 s before its end"),
        (
            make_space(),
            Request(elastic=True, cpus_per_node=4, time="1:00:00", sweep_time="6"),
            r"--sweep-time 6 is 360 s",
        ),
        (make_space(), Request(elastic=True), "--elastic: add --cpus-per-node"),
        (make_space(), Request(sweep_time="1:00"), "are for --elastic"),
        (make_space(cpus=4), Request(cpus_per_node=2), r"--cpus-per-node 2 is less than resources\.train\.cpus 4"),
    ],
)
def test_what_could_not_run_is_refused(space: Space, request_: Request, said: str) -> None:
    with pytest.raises(UserError, match=said):
        slurm.check(slurm.sweep(space), request_)
