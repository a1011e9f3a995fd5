"""What of the process's environment a sweep changes, and what it puts back."""

import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

import raysweep
from raysweep.cluster.connection import _own_signals, address, connected
from raysweep.cluster.environment import (
    CLIENT,
    LOCAL_CLUSTER,
    LONGEST_SOCKET,
    TRIAL,
    preserved_environment,
    ray_environment,
    ray_folder,
    temporary_folder,
)
from raysweep.errors import UserError
from raysweep.space import plugins
from raysweep.space.measure import Measurement
from raysweep.sweep.same_code import check_same_code, code


def test_the_environment_is_put_back_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AIR_NEW_OUTPUT", "mine")
    monkeypatch.setenv("KEPT", "before")
    before = dict(os.environ)

    def changes_and_fails() -> None:
        with preserved_environment():
            os.environ["KEPT"] = "changed"
            os.environ["ADDED"] = "x"
            del os.environ["RAY_AIR_NEW_OUTPUT"]
            raise KeyError

    with pytest.raises(KeyError):
        changes_and_fails()
    assert dict(os.environ) == before


@pytest.mark.parametrize("local", [True, False])
def test_ray_has_its_environment_in_the_context_only(local: bool) -> None:
    before = dict(os.environ)
    with ray_environment(local):
        assert {**os.environ} == before | CLIENT | TRIAL | (LOCAL_CLUSTER if local else {})
    assert dict(os.environ) == before


def test_who_wants_ray_to_start_workers_by_uv_has_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "1")
    with ray_environment(local=True):
        assert os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] == "1"


def test_handlers_of_signals_are_put_back() -> None:
    mine = signal.signal(signal.SIGTERM, lambda number, frame: None)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with _own_signals():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, mine)


@pytest.mark.parametrize("set_to", [{}, {"TMPDIR": "/a"}, {"RAY_TMPDIR": "/b"}, {"TMPDIR": "/a", "RAY_TMPDIR": "/b"}])
def test_the_temporary_folder_is_ray_s(set_to: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._common.utils import get_default_ray_temp_dir

    for name in ("TMPDIR", "RAY_TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in set_to.items():
        monkeypatch.setenv(name, value)
    assert str(temporary_folder() / "ray") == get_default_ray_temp_dir()


@pytest.mark.parametrize("name", ["TMPDIR", "RAY_TMPDIR"])
def test_a_temporary_folder_that_is_too_long_for_sockets_is_replaced(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Against the system's own limit."""
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    session = "/ray/session_2026-11-25_23-59-59_123456_4194304/sockets/"
    longest = "/tmp/" + "x" * (LONGEST_SOCKET - len("/tmp/" + session + "plasma_store"))
    with socket.socket(socket.AF_UNIX) as unix, pytest.raises(FileNotFoundError):
        unix.bind(f"{longest}{session}plasma_store")
    with socket.socket(socket.AF_UNIX) as unix, pytest.raises(OSError, match="too long"):
        unix.bind(f"{longest}x{session}plasma_store")
    monkeypatch.setenv(name, longest)
    assert ray_folder() is None
    assert not caplog.messages
    monkeypatch.setenv(name, f"{longest}x")
    folder = ray_folder()
    assert folder is not None
    own = folder.parent
    assert own == Path(f"/tmp/ray-{os.getuid()}")
    assert stat.S_IMODE(own.stat().st_mode) == 0o700
    assert re.fullmatch(f"{name}=/tmp/x+ is too long .*, by 1 bytes: .* has its folder in {own}", caplog.messages[0])


def test_a_temporary_folder_that_is_no_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    monkeypatch.setenv("RAY_TMPDIR", "file")
    with pytest.raises(UserError, match="Ray cannot write in file: set RAY_TMPDIR to a folder of your own"):
        ray_folder()


@pytest.fixture
def web_server() -> Iterator[int]:
    """The port of something that answers and is no cluster."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                connection.recv(100)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                connection.close()

        threading.Thread(target=answer, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def test_what_answers_and_is_no_cluster(web_server: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{web_server}")
    with pytest.raises(UserError, match=rf"^no Ray cluster answers at RAY_ADDRESS=127\.0\.0\.1:{web_server}"):
        address()
    monkeypatch.setenv("RAY_ADDRESS", f"http://127.0.0.1:{web_server}")
    with pytest.raises(UserError, match="the address of Ray's dashboard, for jobs: set it to the cluster's own"):
        address()
    monkeypatch.setenv("RAY_ADDRESS", "ray://127.0.0.1:10001")
    with pytest.raises(UserError, match=r"address of Ray's client server, .* set it to the cluster's own, host:port"):
        address()
    # What `ray start` wrote down once, where another service has the port now.
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{web_server}")
    assert address() is None


def test_a_cluster_that_another_user_started_is_not_joined_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr("raysweep.cluster.connection.SILENCE", 0.2)
    (tmp_path / "ray").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        listening = f"127.0.0.1:{server.getsockname()[1]}"
        (tmp_path / "ray" / "ray_current_cluster").write_text(listening)
        assert address() == listening
        mine = os.getuid()
        monkeypatch.setattr("os.getuid", lambda: mine + 1)
        assert address() is None
    assert caplog.messages == [
        f"the Ray cluster at {listening} is another user's, and is not joined: set RAY_ADDRESS={listening} to join it"
    ]


@pytest.mark.slow
def test_what_listens_and_says_nothing_is_neither_waited_for_nor_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster that is too busy to answer is not replaced by one of this machine's, which may be smaller."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        listening = f"127.0.0.1:{server.getsockname()[1]}"
        (tmp_path / "ray" / "ray_current_cluster").write_text(listening)
        assert address() == listening
        with (
            pytest.raises(UserError, match=rf"^what listens at {listening} answers nothing .* delete {tmp_path}"),
            connected(),
        ):
            pass


def test_an_answer_in_two_pieces_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As tunnels give it."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(100)
                for piece in (b"\0\0", b"\x12\x04\0\0\0\0\0"):
                    connection.sendall(piece)
                    time.sleep(0.2)

        threading.Thread(target=answer, daemon=True).start()
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{server.getsockname()[1]}")
        assert address() == os.environ["RAY_ADDRESS"]


FROM_WORKER = """
import json, sys, time
from pathlib import Path
from raysweep.cluster.connection import connected
from raysweep.sweep.same_code import code

def found():
    import importlib.util, os
    return [importlib.util.find_spec(name).origin for name in ("raysweep", "olmo")] + [os.environ.get("RAYSWEEP_CACHE")]

if __name__ == "__main__":
    with connected() as connection:
        import ray
        print(json.dumps(ray.get(ray.remote(found).remote())), flush=True)
        if "delete" in sys.argv:
            import shutil
            shutil.rmtree(connection.context.address_info["session_dir"], ignore_errors=True)
            time.sleep(60)
"""


def run_script(script: str, folder: Path, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """In another process, from `folder`, by a file that is elsewhere."""
    elsewhere = folder.parent / "script.py"
    elsewhere.write_text(script)
    return subprocess.run(
        [sys.executable, str(elsewhere), *arguments], cwd=folder, capture_output=True, text=True, check=False, timeout=120,
        env=os.environ | {"RAY_ADDRESS": "local"} | environment,
    )  # fmt: skip


def test_modules_that_lie_where_a_sweep_is_started_are_not_the_workers(tmp_path: Path) -> None:
    """Another checkout of raysweep, or somebody's own `olmo.py`: Ray puts that folder first."""
    folder = tmp_path / "mine"
    (folder / "raysweep").mkdir(parents=True)
    for name in ("raysweep/__init__.py", "olmo.py"):
        (folder / name).write_text("raise SystemExit('not this one')")
    done = run_script(FROM_WORKER, folder, RAYSWEEP_CACHE="own/cache")
    assert done.returncode == 0, done.stderr
    of_raysweep, of_olmo, cache = json.loads(done.stdout)
    assert of_raysweep == raysweep.__file__
    assert not of_olmo.startswith(str(tmp_path))
    assert cache == str(folder / "own" / "cache")


@pytest.mark.slow
def test_ray_s_folder_that_is_deleted_ends_what_runs_in_it(tmp_path: Path) -> None:
    begun = time.monotonic()
    (tmp_path / "mine").mkdir()
    done = run_script(FROM_WORKER, tmp_path / "mine", "delete")
    assert done.returncode == 1
    assert "the folder of the local Ray cluster, " in done.stderr
    assert " was deleted while it ran" in done.stderr
    assert time.monotonic() - begun < 50


@pytest.mark.slow
def test_a_cluster_that_is_too_slow_to_start_is_started_again() -> None:
    """Its raylet is stopped as it appears, as on a machine that has no time for it."""
    script = "from raysweep.cluster.connection import connected\nwith connected() as c: print(c.shared)"
    starting = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    first: psutil.Process | None = None
    while first is None and starting.poll() is None:
        for process in psutil.Process(starting.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if process.name() == "raylet":
                    process.suspend()
                    first = process
        time.sleep(0.02)
    printed, error = starting.communicate(timeout=240)
    assert (starting.returncode, printed, error) == (0, "False\n", "")
    assert first is not None
    with suppress(psutil.NoSuchProcess):
        assert first.status() == psutil.STATUS_ZOMBIE, "what was stopped is left behind"


def test_other_code_than_the_driver_s_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "own_changing"
    own.mkdir()
    (own / "__init__.py").write_text("def one(matrix):\n    return 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    driver = code([Measurement.model_validate({"of": "unembedding", "metrics": ["own_changing:one"]})])
    check_same_code(driver)
    (own / "__init__.py").write_text("def one(matrix):\n    return 2.0\n")
    plugins.version.cache_clear()
    with pytest.raises(UserError, match=rf"own_changing:one is \w+ here and {driver['own_changing:one']} there"):
        check_same_code(driver)
    changed = tmp_path / "raysweep"
    shutil.copytree(
        Path(raysweep.__file__).parent, changed, symlinks=False, ignore=shutil.ignore_patterns("__pycache__")
    )
    with (changed / "training" / "schedule.py").open("a") as file:
        file.write("\n# One line more.\n")
    check = f"from raysweep.sweep.same_code import check_same_code; check_same_code({code()!r})"
    done = subprocess.run(
        [sys.executable, "-c", check], cwd="/", capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert "has other code than the driver of this sweep (raysweep is " in done.stderr
    assert "ai2-olmo" not in done.stderr.rpartition("has other code")[2]
