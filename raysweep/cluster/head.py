"""The head of a cluster that `ray up` started, reached from a laptop over SSH, so that nothing but SSH need be open."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raysweep.errors import UserError
from raysweep.files import put_in_place
from raysweep.space.read import hypotheses_file

# Around what a command prints on the head; the rest is the launcher's.
_BEGIN, _END = "--raysweep-begin--", "--raysweep-end-"

# Which Ray's command line resets even where there is no terminal.
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")

# Search spaces on the head, in its home; each under its content's hash, so that none is changed in mid-run.
_FOLDER = "raysweep-jobs"

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


def packed(file: str) -> str:
    """A search space as an argument, with its hypotheses. It has been read before."""
    content = Path(file).read_bytes()
    hypotheses = hypotheses_file(Path(file))
    if hypotheses is not None:  # No YAML has this byte.
        content += b"\0" + hypotheses.name.encode() + b"\0" + hypotheses.read_bytes()
    if len(content) > _LONGEST:
        raise UserError(f"{file} has {len(content):,} bytes; at most {_LONGEST:,} can be sent to a cluster: shorten it")
    return base64.b64encode(content).decode()


def unpacked(space: str) -> str:
    """The file of a search space that was sent."""
    content = base64.b64decode(space, validate=True)
    own, *hypotheses = content.split(b"\0", 2)
    name = hashlib.sha256(content).hexdigest()[:12]
    file = Path.home() / _FOLDER / (f"{name}/space.yaml" if hypotheses else f"{name}.yaml")
    with put_in_place(file) as unfinished:
        unfinished.write_bytes(own)
    if hypotheses:
        with put_in_place(file.with_name(Path(hypotheses[0].decode()).name)) as unfinished:
            unfinished.write_bytes(hypotheses[1])
    return str(file)


def shared_store(location: str | None) -> str:
    """The store's location, which must mean the same on every node; raises `UserError` where it cannot."""
    location = location or os.environ.get("RAYSWEEP_STORE")
    if location is None or ("://" not in location and not location.startswith("/")):
        raise UserError(
            "with --cluster the store must be one that every node reaches: --store s3://bucket/folder, or a shared folder "
            "by its absolute path" + (f", not {location}" if location else "")
        )
    return location.rstrip("/")
