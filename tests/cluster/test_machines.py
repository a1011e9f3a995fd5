"""Machines as they are: a sweep runs there, or one line says what to do (`make test-machines`).

Root, since each case makes a machine of its own by namespaces: without a network, with a small /tmp, and so on.
"""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import make_cell

from raysweep.cache import cache
from raysweep.corpora.tokenized import TokenizedCorpus

UNSHARE = ["unshare", "--mount", "--net", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
ALONE = os.geteuid() == 0 and subprocess.run([*UNSHARE, "true"], check=False, capture_output=True).returncode == 0

pytestmark = [
    pytest.mark.machines,
    pytest.mark.skipif(not ALONE, reason="machines of their own need root"),
]

SPACE: dict[str, Any] = {
    "name": "machine",
    "base": make_cell().model_dump(exclude={"seed"}),
    "cross": {"seed": [1, 2]},
    "evaluations": [{"task": "in_distribution", "sequences": 8}],
}
STRANGER = 54321
"""A user that no list of users knows."""


class Machine:
    """Commands in namespaces of their own: processes, mounts, network (with a loopback), host name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "machine.yaml"
        self.file.write_text(yaml.safe_dump(SPACE))
        self.store = folder / "store"
        # Files of the tests are their owner's alone.
        for path in (folder, *folder.parents[:3]):
            path.chmod(path.stat().st_mode | stat.S_IXOTH | stat.S_IROTH)
        folder.chmod(0o777)

    def run(
        self, *command: str, before: str = "", after: str = "", user: int | None = None, **environment: str
    ) -> "subprocess.CompletedProcess[str]":
        """A command of Python; `before` is what makes the machine what it is."""
        switched = ""
        if user:
            switched = f"setpriv --reuid={user} --regid={user} --clear-groups "
            before = f"{_python_for_all()}\n{before}"
        script = f'ip link set lo up; {before}\n{switched}"$@"; status=$?; {after}\nexit $status'
        own = {key: value for key, value in os.environ.items() if key not in ("TMPDIR", "RAY_TMPDIR", "RAY_ADDRESS")}
        return subprocess.run(
            [*UNSHARE, "bash", "-c", script, "sh", sys.executable, *command], capture_output=True, text=True, check=False,
            timeout=180, cwd=self.folder, env=own | {"RAYSWEEP_CACHE": str(self.cache(user))} | environment,
        )  # fmt: skip

    def cache(self, user: int | None) -> Path:
        """The built corpus, where this user may write."""
        shared = cache()
        if user is None:
            return shared
        own = self.folder / "cache"
        if not own.exists():
            shutil.copytree(shared, own)
            subprocess.run(["chown", "-R", str(user), str(own)], check=True)
        return own

    def sweep(self, **options: Any) -> "subprocess.CompletedProcess[str]":
        """`raysweep run`."""
        return self.run("-m", "raysweep.cli", "run", str(self.file), "--store", str(self.store), **options)


def _python_for_all() -> str:
    """Commands that show Python to everybody, where it lies in root's own home."""
    if not sys.base_prefix.startswith("/root/"):
        return ""
    return (
        f"mount -t tmpfs -o mode=755 tmpfs /mnt; mkdir /mnt/python; mount --bind {sys.base_prefix} /mnt/python\n"
        f"mount -t tmpfs -o mode=755 tmpfs /root; mkdir -p {sys.base_prefix}; mount --bind /mnt/python {sys.base_prefix}"
    )


@pytest.fixture
def machine(tmp_path: Path, corpus: TokenizedCorpus) -> Machine:
    return Machine(tmp_path)


def complete(answer: "subprocess.CompletedProcess[str]") -> str:
    """What it printed by the time that everything was done."""
    said = answer.stdout + answer.stderr
    assert answer.returncode == 0, said
    assert "2 of 2 cells done, 2 of 2 evaluations done" in said
    assert "Traceback" not in said
    return said


def one_line(answer: "subprocess.CompletedProcess[str]") -> str:
    """The line by which it refused."""
    said = answer.stdout + answer.stderr
    assert answer.returncode == 1, said
    (line,) = [line for line in said.splitlines() if "raysweep: error: " in line]
    assert "Traceback" not in said
    assert "(--debug shows where)" not in said
    return line


def test_no_network_at_all(machine: Machine) -> None:
    complete(machine.sweep())


def test_no_loopback_either(machine: Machine) -> None:
    assert "lo" in one_line(machine.sweep(before="ip link set lo down"))


def test_a_dead_proxy(machine: Machine) -> None:
    proxies = {f"{kind}_proxy": "http://127.0.0.1:9" for kind in ("http", "https", "all")}
    complete(machine.sweep(**proxies, **{name.upper(): value for name, value in proxies.items()}))


def test_a_host_name_that_nobody_resolves(machine: Machine) -> None:
    complete(machine.sweep(before="hostname no-such-host.invalid"))


@pytest.mark.parametrize("home", ["own", "none", "not to be written"])
def test_a_user_without_a_name(machine: Machine, home: str) -> None:
    folder = machine.folder / "home"
    folder.mkdir(mode=0o755)
    if home == "own":
        os.chown(folder, STRANGER, STRANGER)
    before = "unset HOME USER LOGNAME" if home == "none" else f"export HOME={folder}; unset USER LOGNAME"
    complete(machine.sweep(before=before, user=STRANGER))


def test_a_home_that_cannot_be_written_and_no_other_place_for_text(machine: Machine) -> None:
    before = f"mkdir {machine.folder}/home; export HOME={machine.folder}/home; unset RAYSWEEP_CACHE"
    said = one_line(machine.sweep(before=before, user=STRANGER))
    assert "cannot be written" in said
    assert "set RAYSWEEP_CACHE to another folder" in said


def test_a_small_shared_memory(machine: Machine) -> None:
    complete(machine.sweep(before="mount -t tmpfs -o size=64m tmpfs /dev/shm"))


def test_a_small_tmp(machine: Machine) -> None:
    """Where the tests' own files are under /tmp, it is Ray's folder that is small."""
    complete(machine.sweep(before="mkdir -p /tmp/ray; mount -t tmpfs -o size=64m tmpfs /tmp/ray"))


def test_few_open_files(machine: Machine) -> None:
    complete(machine.sweep(before="ulimit -n 256"))


def test_another_user_s_ray_folder(machine: Machine) -> None:
    before = "mkdir -p /tmp/ray; mount -t tmpfs -o mode=700 tmpfs /tmp/ray"
    said = complete(machine.sweep(before=before, user=STRANGER, HOME=str(machine.folder)))
    assert f"Ray cannot write in /tmp/ray: the Ray cluster of this sweep has its folder in /tmp/ray-{STRANGER}" in said


def test_a_long_temporary_folder(machine: Machine) -> None:
    long = machine.folder / ("scratch-of-a-job-" * 6)
    long.mkdir()
    said = complete(machine.sweep(TMPDIR=str(long)))
    assert f"TMPDIR={long} is too long for the names of Ray's sockets" in said


def test_the_dashboard_s_port_is_taken(machine: Machine) -> None:
    said = complete(machine.sweep(before=f"{sys.executable} -m http.server 8265 --bind 127.0.0.1 >/dev/null 2>&1 &"))
    assert "dashboard http://127.0.0.1:8266" in said


def test_one_core_of_several(machine: Machine) -> None:
    script = (
        "from raysweep.cluster.connection import connected\n"
        "with connected():\n    import ray\n    print('CPU', ray.cluster_resources()['CPU'])"
    )
    file = machine.folder / "cores.py"
    file.write_text(f"if __name__ == '__main__':\n    exec({script!r})\n")
    answer = machine.run(str(file), before="taskset -cp 0 $$ > /dev/null")
    assert "CPU 1.0" in answer.stdout, answer.stdout + answer.stderr


def test_two_sweeps_at_once(machine: Machine) -> None:
    other, log = machine.folder / "other", machine.folder / "log"
    command = f"{sys.executable} -m raysweep.cli run {machine.file} --store {other} > {log} 2>&1 & other=$!"
    complete(machine.sweep(before=command, after="wait $other || status=1"))
    assert "2 of 2 cells done" in log.read_text()
