"""A suite as an elastic Slurm job: its nodes come to their time limit, one is taken away, and the numbers are those of one
machine.

`make test-slurm`. The hosts are pretend ones; Slurm, the batch script and Ray are real.
"""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import suite_files
from cluster import slurm_hosts
from cluster.slurm_hosts import Slurm

from raysweep.corpora.tokenized import TokenizedCorpus

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(bool(slurm_hosts.missing()), reason=slurm_hosts.missing())]

# What takes as long as a download and an evaluation of a larger model.
CODE = """\
import time

from raysweep.evaluation.task import Metric


def nap(subject):
    time.sleep(20)
    return [Metric("slept", 20.0, "seconds")]
"""


def wait_for(condition: Callable[[], Any], seconds: float, said: Callable[[], str]) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, said()
        time.sleep(0.5)


def test_a_suite_is_an_elastic_job(tmp_path: Path, corpus: TokenizedCorpus) -> None:
    with Slurm(tmp_path / "hosts", "n1", "n2", "n3") as slurm:
        shared = slurm.hosts.shared
        models = suite_files.published(shared / "mirror", 6, (0, 100))
        (shared / "naps").mkdir()
        (shared / "naps" / "__init__.py").write_text(CODE)
        file = suite_files.write(
            shared, models, mirror="mirror", code=["naps"], measure=[],
            evaluations=["in_distribution", {"task": "finetune_math", "tokens": 2048, "batch_size": 8}, "naps:nap"],
        )  # fmt: skip
        at = (file.name, "--store", "/mnt/shared/store")
        limits = ("--time", "3", "--notice", "60", "--sweep-time", "30")
        begun = slurm.login("raysweep", "slurm", *at, "--elastic", "--nodes", "2", "--cpus-per-node", "1", *limits)
        assert begun.returncode == 0, begun.stdout
        found = re.search(r"tiny is job (\d+); it prints to (\S+)\n", begun.stdout)
        assert found, begun.stdout
        job, log = int(found[1]), shared / found[2]

        def printed() -> str:
            return "\n".join(f"{part}:\n{part.read_text(errors='replace')}" for part in shared.glob(f"*{job}*.log"))

        def status() -> str:
            return slurm.login("raysweep", "status", *at, "--cluster", f"slurm:{job}").stdout

        try:
            wait_for(lambda: "workers  2 RUNNING" in status(), 180, printed)
            wait_for(lambda: re.search(r"(\d+) of 12 checkpoints of .* done", status()), 120, printed)
            wait_for(lambda: len(list((shared / "store" / "revisions").glob("*.parquet"))) > 3, 240, printed)
            assert f"job {job}  state RUNNING, nodes 1" in status()
            named = f"--name=raysweep-workers-{job}"
            listed = slurm.login("squeue", "--noheader", named, "--array", "--format=%F_%K").stdout
            assert slurm.login("scontrol", "requeue", listed.split()[0]).returncode == 0
            wait_for(lambda: "its process was lost, or its node: trying again" in log.read_text(), 120, printed)
            wait_for(lambda: slurm.state(job)["JobState"] == "COMPLETED", 600, printed)
        finally:
            print(printed())
        assert suite_files.done_of(log.read_text()) == (12, 12)
        over = slurm.login("raysweep", "stop", *at, "--cluster", f"slurm:{job}")
        assert f"job {job} is over" in over.stdout
        env = suite_files.environment("http://localhost:9", tmp_path / "cache", HF_HUB_OFFLINE="1")
        ended, said = suite_files.command("run", str(file), "--store", str(tmp_path / "calm"), env=env)
        assert ended == 0, said
        assert suite_files.numbers(file, shared / "store") == suite_files.numbers(file, tmp_path / "calm")
