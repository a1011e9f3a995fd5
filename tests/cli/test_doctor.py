"""doctor on this machine as it is, and on one where much is wrong."""

import json
import os
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from raysweep.cli import doctor_commands


def doctor(*, before: str = "", **environment: str) -> tuple[int, dict[str, tuple[str, str]]]:
    """Its exit status, and of each thing how it is and what was said; `before` are limits that a shell sets."""
    done = subprocess.run(
        ["/bin/sh", "-c", f'{before} exec "$0" -m raysweep.cli doctor --json', sys.executable],
        env=os.environ | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    return done.returncode, {one["what"]: (one["how"], one["said"]) for one in json.loads(done.stdout)}


def test_a_machine_on_which_the_tests_run_is_well() -> None:
    status, found = doctor()
    assert status == 0
    assert {how for how, _ in found.values()} <= {"ok", "slower"}
    assert found["Python"][1].endswith(sys.executable)
    assert f"ray {metadata.version('ray')}" in found["packages"][1]
    assert found["cores"][1].startswith(str(len(os.sched_getaffinity(0))))


def test_what_is_wrong_is_said_with_what_to_do(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "nvidia-smi").write_text("#!/bin/sh\n")
    (programs / "nvidia-smi").chmod(0o755)
    (tmp_path / "file").write_text("")
    far = tmp_path / ("a" * 90)
    far.mkdir()
    with socket.socket() as taken:
        try:
            taken.bind(("127.0.0.1", 8265))
            taken.listen()
        except OSError:
            pass  # By somebody else.
        status, found = doctor(
            before="ulimit -n 256;", PATH=str(programs), CC="", RAYSWEEP_CACHE=str(tmp_path / "file" / "cache"),
            RAY_TMPDIR=str(far), RAY_ADDRESS="10.0.0.1:6379",
        )  # fmt: skip
    assert status == 1
    assert found["compiler"][0] == "slower"
    assert "install gcc or clang" in found["compiler"][1]
    assert found["disk"][0] == "wrong"
    assert "set RAYSWEEP_CACHE to a folder of your own" in found["disk"][1]
    assert found["open files"] == (
        "slower",
        "at most 256, with which large sweeps may end: raise `ulimit -Hn` to 4,096",
    )
    assert found["Ray's folder"][0] == "ok"
    assert found["Ray's folder"][1].startswith(f"/tmp/ray-{os.getuid()}/ray, since Ray's own choice under {far}")
    assert found["dashboard"][1].startswith("port 8265 is taken")
    assert found["GPUs"][0] == "wrong" or "none" not in found["GPUs"][1]
    assert "10.0.0.1:6379" in found["cluster"][1]


def test_packages_that_do_not_fit_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = ["torch<2", "not-there>=1", "numpy>=1", 'also-not-there; extra == "x"']
    monkeypatch.setattr(metadata, "requires", lambda name: needed)
    how, said = doctor_commands._packages()
    assert how == "wrong"
    assert said == (
        f"torch is {metadata.version('torch')} and must be <2, not-there is missing: `make install` installs the versions "
        "that fit"
    )
