"""One driver a store, with real processes that die."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from raysweep.errors import UserError
from raysweep.store import Store, lock
from raysweep.store.lock import FILE, Lock, holder

HOLD = (
    "import sys, time; from raysweep.store.lock import Lock; from raysweep.store import Store\n"
    "with Lock(Store(sys.argv[1])): print('held', flush=True); time.sleep(60)"
)


def hold(store: Path, code: str = HOLD) -> "subprocess.Popen[str]":
    process = subprocess.Popen([sys.executable, "-c", code, str(store)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_is_refused_naming_the_first_and_a_killed_one_is_taken_over(tmp_path: Path) -> None:
    first = hold(tmp_path)
    store = Store(str(tmp_path))
    with pytest.raises(UserError, match=rf"in use by process {first.pid} on .*: wait for it, stop it, or use another"):
        Lock(store).__enter__()
    assert holder(store) is not None
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert holder(store) is None
    with Lock(store):
        mine = holder(store)
        assert mine is not None
        assert mine["pid"] == os.getpid()
    assert store.read(FILE) is None


def test_of_two_that_start_together_one_wins(tmp_path: Path) -> None:
    code = HOLD.replace("time.sleep(60)", "time.sleep(3)")
    both = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    printed = sorted(process.communicate()[0] for process in both)
    assert printed == [b"", b"held\n"]


def foreign(store: Store, beat: int) -> None:
    """What a driver on another machine left, its clock an hour ahead."""
    record = {
        "owner": "x", "machine": "elsewhere/1", "host": "elsewhere", "pid": 1, "process_started": 0.0,
        "started": "2999-01-01", "beat": beat, "progress": {},
    }  # fmt: skip
    store.write(FILE, json.dumps(record).encode())


def test_a_driver_elsewhere_is_alive_if_it_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT", 0.2)
    store = Store(str(tmp_path))
    foreign(store, 1)
    with Lock(store):  # It was watched for four beats and is silent.
        pass

    foreign(store, 1)
    real = lock._read
    beats = iter(range(1, 100))

    def beating(store: Store) -> object:
        foreign(store, next(beats))
        return real(store)

    monkeypatch.setattr(lock, "_read", beating)
    with pytest.raises(UserError, match="in use by process 1 on elsewhere"):
        Lock(store).__enter__()


def test_it_beats_where_its_progress_cannot_be_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT", 0.1)
    store = Store(str(tmp_path))
    told = iter([{"done": 3}])  # Then StopIteration.
    with Lock(store, lambda: next(told)) as held:
        first = lock._read(store)
        time.sleep(0.5)
        later = lock._read(store)
        assert first is not None
        assert later is not None
        assert later["beat"] > first["beat"]
        assert later["progress"] == {"done": 3}
        assert not held.lost


def test_one_that_others_took_for_dead_ends_and_leaves_the_store_to_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its store was away for longer than they wait for a beat."""
    monkeypatch.setattr(lock, "BEAT", 0.1)
    store = Store(str(tmp_path))
    with Lock(store) as held:
        foreign(store, 1)
        time.sleep(0.5)
        assert "in use by process 1 on elsewhere" in held.lost
    record = lock._read(store)
    assert record is not None
    assert record["owner"] == "x"


def test_clocks_may_differ_by_an_hour_and_be_set_while_a_driver_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    an_hour_ago = time.time() - 3600
    late = HOLD.replace("import sys, time;", f"import sys, time; time.time = lambda: {an_hour_ago};")
    first = hold(tmp_path, late)
    try:
        # Times of day that a process has by the machine's clock change with it.
        real = psutil.Process.create_time
        monkeypatch.setattr(psutil.Process, "create_time", lambda process: real(process) + 3600)
        store = Store(str(tmp_path))
        assert holder(store) is not None
        with pytest.raises(UserError, match=f"in use by process {first.pid}"):
            Lock(store).__enter__()
    finally:
        first.kill()
        first.wait()
    assert holder(store) is None
    with Lock(store):
        pass


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"owner": 1}', b"\xff"])
def test_a_file_that_is_no_lock_holds_nothing(tmp_path: Path, content: bytes) -> None:
    store = Store(str(tmp_path))
    store.write(FILE, content)
    assert holder(store) is None
    with Lock(store):
        pass


def test_of_two_that_looked_before_either_wrote_one_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "holder", lambda store: None)  # What both saw: nobody.
    outcomes: list[str] = []

    def run() -> None:
        try:
            with Lock(Store(str(tmp_path))):
                outcomes.append("held")
                time.sleep(1)
        except UserError:
            outcomes.append("refused")

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["held", "refused"]


def test_processes_that_cannot_be_seen_are_not_taken_for_dead(tmp_path: Path) -> None:
    """A container with the host's name has process numbers of its own."""
    store = Store(str(tmp_path))
    foreign(store, 1)
    record = json.loads(store.read(FILE) or b"")
    name, boot, seen = lock.machine().split("/")
    for machine, alive in ((lock.machine(), False), (f"{name}/{boot}/pid:[1]", True)):
        store.write(FILE, json.dumps(record | {"machine": machine, "pid": 2**22 + 1}).encode())
        assert (holder(store) is not None) == alive
    assert seen.startswith("pid:[")
