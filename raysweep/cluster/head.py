"""The head of a cluster that `ray up` started, reached from a laptop over SSH, so that nothing but SSH need be open."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raysweep.errors import UserError
from raysweep.files import put_in_place
from raysweep.space.read import hypotheses_file
from raysweep.space.yaml_file import YamlFile

# Around what a command prints on the head; the rest is the launcher's.
_BEGIN, _END = "--raysweep-begin--", "--raysweep-end-"

# Which Ray's command line resets even where there is no terminal.
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")

# Search spaces on the head, in its home; each under its content's hash, so that none is changed in mid-run.
_FOLDER = "raysweep-jobs"

SPACE = "space.yaml"
"""What a search space's file is called where it is sent."""

# What Python and version control leave in a folder of code.
_LEFT_BEHIND = {"__pycache__", ".git", ".pytest_cache", ".mypy_cache"}

# A search space is sent as an argument of a command, of which Linux takes 128 KiB.
_LONGEST = 90_000


class Head:
    """The head node of the cluster that a launcher's `configuration` describes."""

    def __init__(self, configuration: str) -> None:
        if not Path(configuration).is_file():
            raise UserError(f"{configuration}: no such cluster configuration; start from a copy of cluster.yaml")
        self.configuration = configuration

    def run(self, *command: str, on_line: Callable[[str], None] = lambda line: None) -> tuple[int, str]:
        """Run a command of raysweep's Python on the head; its exit status and what it printed.

        `on_line` is called with every line as it comes.
        """
        line = shlex.join(["python", "-m", *command])
        line = f"echo {_BEGIN}; {line}; echo {_END}$?"
        # Without the terminal, which SSH would take over: Ctrl-C is for this process.
        process = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "exec", self.configuration, line],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        )  # fmt: skip
        printed, other, inside, status = [], [], False, None
        assert process.stdout is not None
        try:
            for text in process.stdout:
                text = _COLOURS.sub("", text).rstrip("\r\n")
                # What came before may not have ended its line.
                text, ended, code = text.partition(_END)
                if inside and (text or not ended):
                    printed.append(text)
                    on_line(text)
                elif text == _BEGIN:
                    inside = True
                elif not inside and not ended:
                    other.append(text)
                if inside and ended:
                    inside, status = False, int(code)
        except BaseException:
            process.kill()
            raise
        finally:
            process.wait()
        if status is None:
            raise UserError(self._unreachable(other))
        return status, "\n".join(printed)

    def ask(self, *command: str) -> Any:
        """The JSON that a command prints last."""
        status, printed = self.run(*command)
        last = printed.splitlines()[-1] if printed else ""
        if status:
            raise UserError(f"on the head: {last.removeprefix('raysweep: error: ') or f'exit status {status}'}")
        return json.loads(last)

    def _unreachable(self, printed: list[str]) -> str:
        why = next((line.strip() for line in reversed(printed) if line.strip()), "no answer")
        return (
            f"the head of {self.configuration} cannot be reached ({why}): is the cluster up (ray up "
            f"{self.configuration})? A sweep that is already running continues without this connection"
        )


def files_of(file: str) -> dict[str, bytes]:
    """A search space's file, its hypotheses and its code, by their places beside each other. It has been read before."""
    path = Path(file)
    files = {SPACE: path.read_bytes()}
    hypotheses = hypotheses_file(path)
    if hypotheses is not None:
        files[hypotheses.name] = hypotheses.read_bytes()
    for name in YamlFile(path).content.get("code") or ():
        if Path(name).name != name:
            raise UserError(
                f"{file}: code: {name}: to be sent to a cluster it must be a folder beside the search space"
            )
        for source in sorted((path.parent / name).rglob("*")):
            if source.is_file() and not _LEFT_BEHIND & set(source.parts):
                files[source.relative_to(path.parent).as_posix()] = source.read_bytes()
    return files


def packed(file: str) -> str:
    """What `files_of` has, as an argument of a command."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files_of(file).items():
            # Without a date: equal files are equal bytes.
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    if (size := len(buffer.getvalue())) > _LONGEST:
        raise UserError(
            f"{file} and what belongs to it have {size:,} bytes; at most {_LONGEST:,} can be sent to a cluster: shorten it, "
            "or install the code on every node (setup_commands) and leave `code` out"
        )
    return base64.b64encode(buffer.getvalue()).decode()


def unpacked(space: str) -> str:
    """The file of a search space that was sent."""
    content = base64.b64decode(space, validate=True)
    folder = Path.home() / _FOLDER / hashlib.sha256(content).hexdigest()[:12]
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for name in archive.namelist():
            if not (folder / name).resolve().is_relative_to(folder.resolve()):
                raise UserError(f"{name} is not a file beside a search space")
            with put_in_place(folder / name) as unfinished:
                unfinished.write_bytes(archive.read(name))
    return str(folder / SPACE)


def shared_store(location: str | None) -> str:
    """The store's location, which must mean the same on every node; raises `UserError` where it cannot."""
    location = location or os.environ.get("RAYSWEEP_STORE")
    if location is None or ("://" not in location and not location.startswith("/")):
        raise UserError(
            "on a cluster the store must be one that every node reaches: --store s3://bucket/folder, or a shared folder "
            "by its absolute path" + (f", not {location}" if location else "")
        )
    return location.rstrip("/")
