"""`raysweep watch` as a process of its own."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

ROOT = str(Path(__file__).parents[2])


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    content: bytes


def ask(url: str, data: bytes | None = None, **headers: str) -> Answer:
    """What a server answers; a redirection is followed without cookies."""
    request = Request(url, data, {name.replace("_", "-"): value for name, value in headers.items()})
    try:
        with urlopen(request, timeout=30) as answer:
            return Answer(answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read())
    except HTTPError as error:
        return Answer(error.code, {k.lower(): v for k, v in error.headers.items()}, error.read())


@contextmanager
def watching(*arguments: str, cwd: Path) -> Iterator[str]:
    """The address of the page of a store, with its token."""
    process = subprocess.Popen(
        [sys.executable, "-m", "raysweep.cli", "watch", *arguments], cwd=cwd, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": ROOT},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        found = re.search(r"http://\S+", said)
        if found is None:
            assert process.stderr is not None
            raise AssertionError(process.stderr.read())
        ask(found[0])  # It has printed the address a moment before it answers.
        yield found[0]
    finally:
        process.terminate()
        assert process.wait(30) == 0
