"""The budget of downloaded models: never exceeded, by processes that use it at once, wait, are killed, and come back."""

import multiprocessing
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from raysweep.corpora.exclusive import try_hold
from raysweep.errors import UserError
from raysweep.suites.room import Room


def write(folder: Path, size: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights").write_bytes(b"x" * size)


def on_disk(folder: Path) -> int:
    """Bytes in the folders of the models."""
    from suite_files import disk  # Not in the processes that are started: it takes seconds.

    return sum(disk(path) for path in folder.iterdir() if path.is_dir())


def use(folder: str, name: str, size: int, budget: int) -> None:
    with Room(Path(folder), budget).holding(name, size, lambda line: None) as own:
        for part in range(1, 5):
            write(own, size * part // 4)
            time.sleep(0.05)


def test_many_at_once_stay_within_the_budget(tmp_path: Path) -> None:
    budget = 100_000
    jobs = [(str(tmp_path), f"m{i}", 20_000 + 5_000 * (i % 5), budget) for i in range(16)]
    context = multiprocessing.get_context("spawn")
    most = 0
    with context.Pool(8) as pool:
        running = pool.starmap_async(use, jobs)
        while not running.ready():
            most = max(most, on_disk(tmp_path))
            time.sleep(0.005)
        running.get()
    assert 35_000 < most <= budget
    # Nothing is left of what ended well.
    assert on_disk(tmp_path) == 0
    assert Room(tmp_path, budget).used() == 0


def test_a_model_that_can_never_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"big takes 2e-06 GB, more than the 1e-06 GB of resources\.disk"):
        use(str(tmp_path), "big", 2000, 1000)


def test_what_failed_stays_until_its_room_is_needed(tmp_path: Path) -> None:
    room = Room(tmp_path, 1000)

    def fail(name: str, size: int) -> None:
        with room.holding(name, size, lambda line: None) as folder:
            there.append(folder.exists())
            write(folder, size)
            raise RuntimeError

    there: list[bool] = []
    for name, size in (("first", 400), ("second", 300), ("second", 300)):
        with pytest.raises(RuntimeError):
            fail(name, size)
        time.sleep(0.02)
    assert room.used() == 700
    # The second came back to what it had.
    assert there == [False, False, True]
    with room.holding("third", 500, lambda line: None):
        # The oldest had to go, and no more than that.
        assert not (tmp_path / "first").exists()
        assert (tmp_path / "second" / "weights").exists()
    assert room.used() == 300


def test_what_another_process_uses_is_never_deleted_and_is_waited_for(tmp_path: Path) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(f"""
            import time
            from pathlib import Path
            from raysweep.suites.room import Room
            with Room(Path({str(tmp_path)!r}), 1000).holding("theirs", 700, print) as folder:
                folder.mkdir()
                (folder / "weights").write_bytes(b"x" * 10)
                print("holds", flush=True)
                time.sleep(60)
        """)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert other.stdout is not None
    assert other.stdout.readline() == "holds\n"
    said: list[str] = []
    started = time.monotonic()

    def kill_while_waiting(line: str) -> None:
        said.append(line)
        # Announced room counts, though little of it has come.
        assert (tmp_path / "theirs" / "weights").exists()
        other.send_signal(signal.SIGKILL)
        other.wait()

    with Room(tmp_path, 1000).holding("ours", 400, kill_while_waiting):
        # Whoever is dead holds nothing.
        assert not (tmp_path / "theirs").exists()
    assert said == [
        "ours waits until 4e-07 GB of the 1e-06 GB that models may take on this node (resources.disk) are free"
    ]
    assert time.monotonic() - started < 20


def test_a_hold_is_that_of_one(tmp_path: Path) -> None:
    first = try_hold(tmp_path / "a")
    assert first is not None
    assert try_hold(tmp_path / "a") is None
    first.release()
    again = try_hold(tmp_path / "a")
    assert again is not None
    again.release()
