"""A real Slurm on pretend hosts (hosts.py): slurmctld on the head, slurmd and munge on each worker, one core each."""

import subprocess
import time
from pathlib import Path

from cluster import hosts
from cluster.hosts import Host, Hosts

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "setpriv")

_CONFIGURATION = """\
ClusterName=pretend
SlurmctldHost=head
AuthType=auth/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation=/mnt/shared/slurm/state
SlurmdSpoolDir=/run/slurmd
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile=/mnt/shared/slurm/slurmctld.log
SlurmdLogFile=/mnt/shared/slurm/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
SlurmdTimeout=15
# A job that was queued again waits as long as this, by default two minutes.
AuthInfo=cred_expire=15
KillWait=5
SlurmdParameters=config_overrides
NodeName={names} CPUs=1 RealMemory=16000
PartitionName=p Nodes={names} Default=YES MaxTime=INFINITE State=UP
"""
_CONFIGURED = "SLURM_CONF=/mnt/shared/slurm/slurm.conf"


def missing() -> str:
    """Why there can be no Slurm here; empty where there can."""
    return hosts.missing() or hosts.lacking("Slurm's programs are missing:", PROGRAMS)


class Slurm:
    """The hosts with their daemons; in the context they run."""

    def __init__(self, state: Path, *workers: str) -> None:
        self.hosts = Hosts(state, *workers)
        self.folder = self.hosts.shared / "slurm"

    def __enter__(self) -> "Slurm":
        self.hosts.__enter__()
        (self.folder / "state").mkdir(parents=True)
        names = ",".join(host.name for host in self.hosts.workers)
        (self.folder / "slurm.conf").write_text(_CONFIGURATION.format(names=names))
        # There are none to be seen in the hosts' own /sys, and nothing uses them: but Slurm asks which kind there is.
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        for host in (self.hosts.head, *self.hosts.workers):
            self.begin(host)
        deadline = time.monotonic() + 60
        while "idle" not in self.login("sinfo", "--noheader", "--format=%t").stdout:
            assert time.monotonic() < deadline, (self.folder / "slurmctld.log").read_text()[-2000:]
            time.sleep(0.5)
        return self

    def __exit__(self, *error: object) -> None:
        self.hosts.__exit__(*error)

    def begin(self, host: Host) -> None:
        """Its daemons, as at a boot."""
        made = host.run(
            "sh", "-c",
            "mkdir -p /run/munge /run/slurmd && chown munge: /run/munge && exec setpriv --reuid=munge --regid=munge "
            "--clear-groups munged --pid-file=/run/munge/pid --log-file=/run/munge/log --seed-file=/run/munge/seed",
        )  # fmt: skip
        assert made.returncode == 0, made.stdout
        daemon = ["slurmctld"] if host is self.hosts.head else ["slurmd", "-N", host.name]
        begun = host.run("env", _CONFIGURED, *daemon)
        assert begun.returncode == 0, begun.stdout

    def login(self, *command: str, timeout: float = 180) -> "subprocess.CompletedProcess[str]":
        """A command where people log in: the head."""
        return self.hosts.head.run("env", _CONFIGURED, *command, cwd="/mnt/shared", timeout=timeout)

    def state(self, job: int | str) -> dict[str, str]:
        """What scontrol says of a job."""
        said = self.login("scontrol", "show", "job", str(job), "--oneliner").stdout
        return {"Restarts": "0"} | dict(part.partition("=")[::2] for part in said.split())
