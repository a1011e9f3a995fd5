"""One process at a time, on file systems with flock and without."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from raysweep.corpora.exclusive import made_once

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


def test_a_folder_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a power cut may leave it whole by its name, with empty files."""
    flushed, fsync = [], os.fsync

    def spy(descriptor: int) -> None:
        flushed.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", spy)

    def make(folder: Path) -> None:
        (folder / "shard").mkdir()
        (folder / "shard/a.bin").write_bytes(b"tokens")
        (folder / "manifest.json").write_text("{}")

    assert made_once(tmp_path / "corpus", tmp_path / "corpus", make, resume=False)
    assert sorted(flushed[:-1]) == sorted(["shard", "a.bin", "manifest.json", "corpus.unfinished"])
    assert flushed[-1] == tmp_path.name


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


HOLD = """
import sys, time
from pathlib import Path
from raysweep.corpora import exclusive
exclusive.LEASE = 1.5
with exclusive.exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
print("released", flush=True)
"""


@pytest.mark.parametrize("environment", ["no flock"], indirect=True)
def test_a_holder_that_was_killed_on_another_machine_is_waited_for_and_no_longer(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """In a host name of its own, where nobody else can see whether its process lives."""
    lock = tmp_path / "x.lock"
    if subprocess.run(["unshare", "--uts", "true"], check=False, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("no host name of its own can be had")
    elsewhere = ["unshare", "--uts", "sh", "-c", 'hostname elsewhere; exec "$@"', "sh"]
    hold = [*elsewhere, sys.executable, "-c", HOLD, str(lock)]
    # One that lives holds it for longer than the lease.
    begun = time.monotonic()
    other = subprocess.Popen([*hold, "4"], env=environment, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    subprocess.run([sys.executable, "-c", HOLD, str(lock), "0"], env=environment, check=True, timeout=60)
    assert time.monotonic() - begun >= 4
    assert other.wait(10) == 0
    # One that is killed, for as long as that.
    other = subprocess.Popen([*hold, "60"], env=environment, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    other.kill()
    other.wait()
    begun = time.monotonic()
    subprocess.run([sys.executable, "-c", HOLD, str(lock), "0"], env=environment, check=True, timeout=60)
    assert 0.5 < time.monotonic() - begun < 30


@pytest.mark.parametrize("environment", ["no flock"], indirect=True)
def test_a_holder_that_stood_still_for_too_long_says_so(environment: dict[str, str], tmp_path: Path) -> None:
    lock = tmp_path / "x.lock"
    frozen = subprocess.Popen(
        ["unshare", "--uts", "sh", "-c", 'hostname elsewhere; exec "$@"', "sh", sys.executable, "-c", HOLD, str(lock), "3"],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert frozen.stdout is not None
    if frozen.stdout.readline() != "held\n":
        pytest.skip("no host name of its own can be had")
    frozen.send_signal(signal.SIGSTOP)
    subprocess.run([sys.executable, "-c", HOLD, str(lock), "0"], env=environment, check=True, timeout=60)
    frozen.send_signal(signal.SIGCONT)
    _, said = frozen.communicate(timeout=60)
    assert frozen.returncode == 1
    assert "another process has taken over" in said
