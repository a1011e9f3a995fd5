"""Pretend pods: hosts.py's hosts, each in a root file system that the steps of kubernetes/Dockerfile made."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from cluster import hosts
from cluster.hosts import REPOSITORY, Host

PROGRAMS = ("debootstrap", "chroot", "mount")
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"


def missing() -> str:
    """Why there can be no pods here; empty where there can."""
    return hosts.missing() or hosts.lacking("pretend pods need", PROGRAMS)


def instructions(file: Path) -> list[tuple[str, str]]:
    """A Dockerfile's instructions, each with the rest of its line."""
    lines = [line for line in file.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines())]


class Image:
    """A root file system, as building the Dockerfile would leave it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environment: dict[str, str] = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        self.user, self.folder = "0", "/"
        self._mounted: list[Path] = []

    def build(self) -> None:
        """Do every step, with this machine's network, certificates and settings of pip."""
        try:
            for word, rest in instructions(REPOSITORY / "kubernetes" / "Dockerfile"):
                print(f"{word} {rest[:110]}", flush=True)
                self._step(word, rest)
        finally:
            for place in reversed(self._mounted):
                subprocess.run(["umount", "--lazy", str(place)], check=True)

    def _step(self, word: str, rest: str) -> None:
        if word == "FROM":
            assert rest == "debian:bookworm-slim"
            subprocess.run(
                ["debootstrap", "--variant=minbase", "bookworm", str(self.root)], check=True, stdout=subprocess.DEVNULL
            )
            shutil.copy("/etc/resolv.conf", self.root / "etc" / "resolv.conf")
            self._mount("proc", "-t", "proc", "proc")
            # What pip's settings name of this machine is there too.
            for path in (Path(part.removeprefix("file://")) for value in _pip().values() for part in value.split()):
                if path.is_dir():
                    # An index's files lie beside it.
                    whole = path.parent if path.name == "simple" else path
                    self._mount(str(whole).lstrip("/"), "--bind", str(whole))
                elif path.is_file() and str(path) != CERTIFICATES:
                    (self.root / str(path.parent).lstrip("/")).mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, self.root / str(path).lstrip("/"))
        elif word in ("ARG", "ENV"):
            for entry in rest.split():
                name, _, value = entry.partition("=")
                self.environment[name] = value
        elif word == "COPY":
            *sources, to = rest.split()
            there = self.root / to.lstrip("/")
            for source in sources:
                path = REPOSITORY / source
                if path.is_dir():
                    shutil.copytree(path, there, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    there.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, there)
        elif word == "USER":
            self.user = rest
        elif word == "WORKDIR":
            self.folder = rest
        else:
            assert word == "RUN", word
            self._run(rest, _pip() | self.environment)

    def _run(self, command: str, environment: dict[str, str]) -> None:
        if (self.root / CERTIFICATES.lstrip("/")).exists():
            shutil.copy(CERTIFICATES, self.root / CERTIFICATES.lstrip("/"))
        done = subprocess.run(
            ["chroot", str(self.root), "/usr/bin/env", "-i", *(f"{key}={value}" for key, value in environment.items()),
             "/bin/sh", "-c", command],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: {done.stdout[-1500:]} {done.stderr[-1500:]}"

    def _mount(self, inside: str, *what: str) -> None:
        place = self.root / inside
        place.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", *what, str(place)], check=True)
        self._mounted.append(place)


def _pip() -> dict[str, str]:
    """This machine's settings of pip, as variables."""
    said = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    settings = dict(re.findall(r"^(?::env:|global|install)\.\.?([\w-]+)='(.*)'$", said.stdout, flags=re.MULTILINE))
    return {f"PIP_{name.upper().replace('-', '_')}": value for name, value in settings.items()}


class Pod:
    """A host whose processes see an image, and volumes: {where: folder of the machine}."""

    def __init__(self, host: Host, image: Image, specification: dict[str, Any], volumes: dict[str, Path]) -> None:
        self.host, self.image, self.specification = host, image, specification
        (self.container,) = specification["containers"]
        root = f"/mnt/shared/{image.root.name}"
        mounts = [
            f"mount -t proc proc {root}/proc",
            f"mount --rbind /dev {root}/dev",
            f"mount -t tmpfs tmpfs {root}/tmp",
        ]
        mounts += [f"touch {root}/etc/hosts", f"mount --bind /etc/hosts {root}/etc/hosts"]
        for place, folder in volumes.items():
            mounts += [f"mkdir -p {root}{place}", f"mount --bind /mnt/shared/{folder.name} {root}{place}"]
        mounts += [f"mount -t tmpfs -o uid=1000 tmpfs {root}{self._mounted('cache')}"]
        done = host.run("sh", "-ec", "; ".join(mounts))
        assert done.returncode == 0, done.stdout
        self._root = root

    def _mounted(self, volume: str) -> str:
        return next(str(mount["mountPath"]) for mount in self.container["volumeMounts"] if mount["name"] == volume)

    def start(self, command: str, **environment: str) -> "subprocess.Popen[str]":
        """A command in it, as `/bin/bash -c` of the container runs it."""
        user = self.specification["securityContext"]["runAsUser"]
        variables = self.image.environment | {"HOME": "/home/raysweep"}
        variables |= {entry["name"]: entry["value"] for entry in self.container["env"]} | environment
        return self.host.start(
            "chroot", f"--userspec={user}:{user}", self._root, "/usr/bin/env", "-i",
            *(f"{key}={value}" for key, value in variables.items()),
            "/bin/bash", "-c", f"cd {self.image.folder}; {command}",
        )  # fmt: skip
