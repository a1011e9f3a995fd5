"""Pretend hosts on one Linux machine: what `ray up` needs several machines for, with root and without containers.

Each host is a set of namespaces (network, mounts, processes, hostname, IPC) with an sshd, a home, a /tmp, a /dev/shm and a
process table of its own, on a network that the machine's own does not see. Killing a host's first process kills all of it,
as a power cut does; its cable is one end of a pair that can be pulled. All hosts see the folder /mnt/shared.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

HERE = Path(__file__).parent
REPOSITORY = HERE.parent.parent
PROGRAMS = ("ip", "unshare", "nsenter", "sshd", "ssh-keygen", "rsync", "ss")

_SSHD = """\
HostKey /run/hostkey
AuthorizedKeysFile .ssh/authorized_keys
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
StrictModes no
PidFile none
MaxStartups 100
Subsystem sftp internal-sftp
"""


def missing() -> str:
    """Why there can be no pretend hosts here; empty where there can."""
    if os.geteuid() != 0:
        return "pretend hosts need root"
    return lacking("pretend hosts need", PROGRAMS)


def lacking(what: str, programs: tuple[str, ...]) -> str:
    """Which of these programs are not on this machine, after `what`; empty where all are."""
    absent = [name for name in programs if shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin") is None]
    return f"{what} {', '.join(absent)}" if absent else ""


class Host:
    """One pretend host."""

    def __init__(self, name: str, address: str, state: Path) -> None:
        self.name, self.address = name, address
        self._state = state
        self._first: int | None = None
        self.home = state / name / "root"
        """Its home folder, as the machine sees it."""

    @property
    def _namespace(self) -> str:
        return f"rs-{self.name}"

    def on(self) -> None:
        """Boot it."""
        seen = ":".join({str(REPOSITORY), sys.prefix, sys.base_prefix})
        console = (self._state / self.name / "console.log").open("ab")
        booting = subprocess.Popen(
            ["ip", "netns", "exec", self._namespace, "unshare", "--mount", "--pid", "--uts", "--ipc", "--fork",
             "--kill-child", "--mount-proc", "bash", str(HERE / "host_init.sh"), self.name, str(self._state), seen],
            stdin=subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            time.sleep(0.05)
            children = Path(f"/proc/{booting.pid}/task/{booting.pid}/children").read_text().split()
            if children and Path(f"/proc/{children[0]}/cmdline").read_bytes().startswith(b"sshd"):
                self._first = int(children[0])
                return
        raise RuntimeError(f"{self.name} did not boot: {(self._state / self.name / 'console.log').read_text()[-500:]}")

    def off(self) -> None:
        """Cut its power: the kernel kills all that lives in it."""
        if self._first is not None:
            with suppress(ProcessLookupError):
                os.kill(self._first, 9)
            self._first = None
            time.sleep(0.3)
            # A new boot finds an empty /tmp.
            shutil.rmtree(self._state / self.name / "tmp" / "ray", ignore_errors=True)

    def cable(self, plugged: bool) -> None:
        """Pull its network cable, or plug it in."""
        _ip("-n", "rs-laptop", "link", "set", f"v-{self.name}", "up" if plugged else "down")

    def start(self, *command: str, cwd: str = "/root", **popen: object) -> "subprocess.Popen[str]":
        """A process in it, with what a login there would have in its environment."""
        assert self._first is not None
        environment = {
            "HOME": "/root", "USER": "root", "TERM": "dumb", "LANG": "C.UTF-8", "RAY_AUTH_MODE": "token",
            "RAY_USAGE_STATS_ENABLED": "0", "PATH": f"{sys.prefix}/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        }  # fmt: skip
        return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
            ["nsenter", "-t", str(self._first), "-m", "-u", "-i", "-n", "-p", "env", "-i",
             *(f"{key}={value}" for key, value in environment.items()),
             "sh", "-c", f'cd {cwd}; exec "$@"', "sh", *command],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True, **popen,
        )  # fmt: skip

    def run(self, *command: str, cwd: str = "/root", timeout: float = 180) -> "subprocess.CompletedProcess[str]":
        """Run a command in it to its end."""
        process = self.start(*command, cwd=cwd, start_new_session=True)
        try:
            printed, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            printed, _ = process.communicate()
            raise AssertionError(f"{command} did not end: {printed}") from None
        return subprocess.CompletedProcess(command, process.returncode, printed)


class Hosts:
    """A laptop, a head and workers; in the context they run."""

    def __init__(self, state: Path, *workers: str) -> None:
        self.state = state
        self.shared = state / "shared"
        """What they see as /mnt/shared."""
        self.laptop = Host("laptop", "10.77.0.1", state)
        self.head = Host("head", "10.77.0.10", state)
        self.workers = [Host(name, f"10.77.0.{11 + i}", state) for i, name in enumerate(workers)]
        self.all = [self.laptop, self.head, *self.workers]

    def __enter__(self) -> "Hosts":
        self._remove()
        self._prepare()
        self._connect()
        for host in self.all:
            host.on()
        return self

    def __exit__(self, *error: object) -> None:
        self._remove()

    def _prepare(self) -> None:
        self.shared.mkdir(parents=True)
        names = "".join(f"{host.address} {host.name}\n" for host in self.all)
        (self.state / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
        (self.state / "sshd_config").write_text(_SSHD)
        self._key(self.state / "id")
        for host in self.all:
            for folder in (host.home / ".ssh", self.state / host.name / "tmp"):
                folder.mkdir(parents=True)
            host.home.chmod(0o700)
            (host.home / ".ssh").chmod(0o700)
            self._key(self.state / host.name / "hostkey")
            shutil.copy(self.state / "id.pub", host.home / ".ssh" / "authorized_keys")
            (host.home / ".bashrc").write_text(f"export PATH={sys.prefix}/bin:$PATH\n")
        shutil.copy(self.state / "id", self.laptop.home / ".ssh" / "id_ed25519")

    @staticmethod
    def _key(file: Path) -> None:
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(file)], check=True)

    def _connect(self) -> None:
        """A bridge in the laptop's namespace, and a cable from each of the others to it."""
        _ip("netns", "add", "rs-laptop")
        _ip("-n", "rs-laptop", "link", "set", "lo", "up")
        _ip("-n", "rs-laptop", "link", "add", "br0", "type", "bridge")
        _ip("-n", "rs-laptop", "addr", "add", f"{self.laptop.address}/24", "dev", "br0")
        _ip("-n", "rs-laptop", "link", "set", "br0", "up")
        for host in self.all[1:]:
            there = f"rs-{host.name}"
            _ip("netns", "add", there)
            _ip("-n", there, "link", "set", "lo", "up")
            _ip(
                "-n",
                "rs-laptop",
                "link",
                "add",
                f"v-{host.name}",
                "type",
                "veth",
                "peer",
                "name",
                "eth0",
                "netns",
                there,
            )
            _ip("-n", "rs-laptop", "link", "set", f"v-{host.name}", "master", "br0", "up")
            _ip("-n", there, "addr", "add", f"{host.address}/24", "dev", "eth0")
            _ip("-n", there, "link", "set", "eth0", "up")

    def _remove(self) -> None:
        """Everything off, also what an earlier run has left."""
        for host in self.all:
            host.off()
        for host in self.all:
            left = subprocess.run(
                ["ip", "netns", "pids", f"rs-{host.name}"], capture_output=True, text=True, check=False
            )
            for pid in left.stdout.split():
                subprocess.run(["kill", "-9", pid], check=False)
            subprocess.run(["ip", "netns", "del", f"rs-{host.name}"], stderr=subprocess.DEVNULL, check=False)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)
