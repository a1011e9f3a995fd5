"""One process at a time, on file systems with flock and without."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# Each reads a number, waits, and writes it back one larger: two at once lose one.
COUNT = """
import sys, time
from pathlib import Path
from raysweep.corpora.exclusive import exclusive
number = Path(sys.argv[1])
for _ in range(10):
    with exclusive(number.with_suffix(".lock")):
        before = int(number.read_text())
        time.sleep(0.005)
        number.write_text(str(before + 1))
"""

NO_FLOCK = "#include <errno.h>\nint flock(int file, int operation) { errno = ENOSYS; return -1; }\n"


@pytest.fixture(params=["flock", "no flock"])
def environment(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    if request.param == "flock":
        return dict(os.environ)
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    (tmp_path / "no_flock.c").write_text(NO_FLOCK)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", tmp_path / "no_flock.so", tmp_path / "no_flock.c"], check=True)
    return os.environ | {"LD_PRELOAD": str(tmp_path / "no_flock.so")}


def test_one_at_a_time(environment: dict[str, str], tmp_path: Path) -> None:
    number = tmp_path / "number.txt"
    number.write_text("0")
    processes = [subprocess.Popen([sys.executable, "-c", COUNT, str(number)], env=environment) for _ in range(4)]
    assert [process.wait(100) for process in processes] == [0, 0, 0, 0]
    assert number.read_text() == "40"
    held = number.with_name("number.lock.held")
    assert not held.exists()


def test_a_holder_that_was_killed_on_this_machine_is_in_nobody_s_way(
    environment: dict[str, str], tmp_path: Path
) -> None:
    number = tmp_path / "number.txt"
    number.write_text("0")
    killed = COUNT.replace("time.sleep(0.005)", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert subprocess.run([sys.executable, "-c", killed, str(number)], env=environment, check=False).returncode == -9
    subprocess.run([sys.executable, "-c", COUNT, str(number)], env=environment, check=True, timeout=100)
    assert number.read_text() == "10"
