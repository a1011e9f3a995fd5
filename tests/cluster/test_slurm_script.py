"""What `raysweep slurm` writes, without a Slurm; `test_slurm.py` runs it."""

import subprocess
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
        (make_space(), Request(elastic=True), "--elastic: add --cpus-per-node"),
        (make_space(), Request(sweep_time="1:00"), "are for --elastic"),
        (make_space(cpus=4), Request(cpus_per_node=2), r"--cpus-per-node 2 is less than resources\.train\.cpus 4"),
    ],
)
def test_what_could_not_run_is_refused(space: Space, request_: Request, said: str) -> None:
    with pytest.raises(UserError, match=said):
        slurm.check(slurm.sweep(space), request_)
