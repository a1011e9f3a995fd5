"""What comes out on terminals, pipes and encodings of every kind: ids whole, no cursor moved in a log, no crash."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEMO = str(ROOT / "search_spaces" / "demo.yaml")
CURSOR = re.compile(r"\x1b\[[0-9;?]*[ABCDGHJKlh]")


def command(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "raysweep.cli", *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )


def ids() -> list[str]:
    return [cell["id"] for cell in json.loads(command("plan", DEMO, "--json").stdout)["cells"]]


@pytest.mark.parametrize(
    "environment", [{"FORCE_COLOR": "1"}, {"FORCE_COLOR": "1", "NO_COLOR": "1"}, {"COLUMNS": "40"}]
)
def test_in_a_pipe_ids_are_whole_and_no_cursor_moves(environment: dict[str, str]) -> None:
    done = command("plan", DEMO, **environment)
    assert done.returncode == 0
    assert all(any(cell in line for line in done.stdout.splitlines()) for cell in ids())
    assert not CURSOR.search(done.stdout)
    assert ("\x1b[" in done.stdout) == (environment == {"FORCE_COLOR": "1"})


@pytest.mark.parametrize("columns", [30, 60, 200])
def test_on_a_terminal_of_any_width_ids_are_whole(columns: int) -> None:
    terminal, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
    with subprocess.Popen(
        [sys.executable, "-m", "raysweep.cli", "plan", DEMO], stdout=side, env=environment | {"TERM": "xterm"}
    ) as process:
        os.close(side)
        shown = b""
        while True:
            try:
                piece = os.read(terminal, 65536)
            except OSError:  # The other side is closed.
                break
            if not piece:
                break
            shown += piece
    os.close(terminal)
    assert process.returncode == 0
    text = re.sub(r"\x1b\[[0-9;]*m", "", shown.decode())
    assert all(cell in text for cell in ids())


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_no_encoding_ends_a_command(tmp_path: Path, encoding: str) -> None:
    space = tmp_path / "r\u00e4ume \u4e2d.yaml"
    space.write_text((ROOT / "search_spaces" / "demo.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    for arguments in (["plan"], ["status", "--store", str(tmp_path / "st\u00f6re")]):
        done = command(arguments[0], str(space), *arguments[1:], PYTHONIOENCODING=encoding, PYTHONUTF8="0")
        assert done.returncode == 0, done.stderr
    refused = command("plan", str(tmp_path / "f\u00fcnf \u4e2d.yaml"), PYTHONIOENCODING=encoding)
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)


def test_the_backend_of_a_notebook_does_not_matter(tmp_path: Path) -> None:
    done = command(
        "analyze", str(ROOT / "results" / "mini"), "--where", "batch_size == 123456", "--output", str(tmp_path),
        MPLBACKEND="module://matplotlib_inline.backend_inline",
    )  # fmt: skip
    assert done.returncode == 1
    assert "holds for none" in done.stderr


def test_a_module_of_ones_own_is_not_taken_for_raysweeps(tmp_path: Path) -> None:
    (tmp_path / "analysis.py").write_text("raise SystemExit('mine')")
    arguments = ["analyze", str(ROOT / "results" / "mini"), "--where", "steps == 1", "--output", "x"]
    done = subprocess.run(
        [sys.executable, "-m", "raysweep.cli", *arguments],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.environ.get("PYTHONPATH", str(ROOT))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "holds for none" in done.stderr


def test_python_without_docstrings_is_refused_by_the_variable_s_name() -> None:
    done = command("plan", DEMO, PYTHONOPTIMIZE="2")
    assert done.returncode == 1
    assert "PYTHONOPTIMIZE" in done.stderr
    assert done.stderr.count("\n") == 1
    assert command("plan", DEMO, PYTHONOPTIMIZE="1").returncode == 0
