"""Whole sweeps whose store goes away, fills up, turns read-only, or is a bucket that answers with errors.

`make test-faults`; the mounts need root. Whatever happens the tables come out as on a good disk, to the last bit: in the
same run where the store comes back within a minute, in the next run where somebody has to mend it.
"""

import logging
import random
import re
import shutil
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest
import yaml
from moto.server import ThreadedMotoServer
from reliability.sweeps import Sweep, contents
from tiny import make_cell

from raysweep.corpora.tokenized import TokenizedCorpus

SPACE: dict[str, Any] = {
    "name": "faults",
    # 1,600 steps, a few seconds in which something can happen.
    "base": make_cell(tokens=204_800).model_dump(exclude={"seed"}) | {"batch_size": 4},
    "cross": {"seed": [1, 2, 3]},
    "evaluations": [{"task": "in_distribution", "sequences": 8}],
    "resources": {"train": {"cpus": 1}, "evaluate": {"cpus": 1}},
}

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, corpus: TokenizedCorpus) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("faults")
    (folder / "faults.yaml").write_text(yaml.safe_dump(SPACE))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, bytes]:
    status, printed = start(folder, folder / "good").finish()
    assert status == 0, printed
    found = contents(folder / "good")
    # Of each of three cells its row, its trajectory, its singular values and its evaluation.
    assert len(found) == 12
    return found


def start(folder: Path, store: Path | str, **environment: str) -> Sweep:
    return Sweep(folder / "faults.yaml", store, folder / "log", **environment)


def in_training(store: Path) -> bool:
    """Whether the last cell to be trained is on its way, the first done or nearly."""
    begun = [path for path in (store / "train").glob("*") if any(path.glob("checkpoint_step*/state.json"))]
    return len(begun) >= 2


def mount(*arguments: str | Path) -> None:
    done = subprocess.run(["mount", *map(str, arguments)], check=False, capture_output=True)
    if done.returncode:
        pytest.skip("cannot mount a file system here")


@contextmanager
def mounted(place: Path, *arguments: str | Path) -> Iterator[Path]:
    place.mkdir()
    mount(*arguments, place)
    try:
        yield place
    finally:
        while subprocess.run(["umount", "-l", str(place)], check=False, capture_output=True).returncode == 0:
            pass


def until_done(*arguments: str | Path) -> None:
    """Remounting is refused while a file is open for writing."""
    deadline = time.monotonic() + 20
    while subprocess.run(["mount", *map(str, arguments)], check=False, capture_output=True).returncode:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_store_that_vanishes_for_ten_seconds(folder: Path, expected: dict[str, bytes]) -> None:
    disk = folder / "disk"
    disk.mkdir()
    with mounted(folder / "vanishing", "--bind", disk) as store:
        sweep = start(folder, store)
        sweep.wait_for(lambda: in_training(disk))
        subprocess.run(["umount", "-l", str(store)], check=True)
        time.sleep(10)
        assert not list(store.glob("cells/*"))
        mount("--bind", disk, store)
        status, printed = sweep.finish()
        print(printed)
        assert status == 0, printed
        assert contents(store) == expected
        assert not list(store.glob("failures/*/*"))


@pytest.mark.parametrize("cause", ["full", "read-only"])
def test_a_disk_that_fills_up_or_turns_read_only(folder: Path, expected: dict[str, bytes], cause: str) -> None:
    with mounted(folder / cause, "-t", "tmpfs", "-o", "size=30m", "tmpfs") as store:
        sweep = start(folder, store)
        sweep.wait_for(lambda: in_training(store))
        filler = store / "filler"
        if cause == "full":
            with suppress(OSError), filler.open("wb") as file:
                while True:
                    file.write(bytes(4096))
                    file.flush()
            reason = "No space left on device"
        else:
            until_done("-o", "remount,ro", store)
            reason = "Read-only file system"
        status, printed = sweep.finish()
        print(printed)
        assert status == 1, printed
        refusals = [line for line in printed.splitlines() if "error:" in line]
        assert len(refusals) == 1, printed
        assert re.search(f"store .* cannot be written: .*{reason}; nothing that was finished is lost", refusals[0])
        # It can still be looked at.
        asked = subprocess.run(
            [*sweep.process.args[:3], "status", str(folder / "faults.yaml"), "--store", str(store)],  # type: ignore[index, misc]
            check=False, capture_output=True, text=True,
        )  # fmt: skip
        assert asked.returncode == 0, asked.stderr
        if cause == "full":
            filler.unlink()
        else:
            until_done("-o", "remount,rw", store)
        status, printed = start(folder, store).finish()
        assert status == 0, printed
        assert contents(store) == expected


class Bucket:
    """An S3-compatible server on localhost behind a proxy that can answer with errors or not at all."""

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.server = ThreadedMotoServer("127.0.0.1", 0)
        self.server.start()
        self.failing, self.away, self.failed, self.asked = 0.0, False, 0, 0
        host, port = self.server.get_host_and_port()
        bucket, rng = self, random.Random(0)

        class Proxy(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def forward(self) -> None:
                body = self.body()
                bucket.asked += 1
                if bucket.away or rng.random() < bucket.failing:
                    bucket.failed += 1
                    if bucket.away or rng.random() < 0.3:
                        self.close_connection = True
                        self.connection.close()
                        return
                    self.send_response(rng.choice([500, 503]))
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                connection = HTTPConnection(host, port, timeout=60)
                with suppress(HTTPException, OSError):
                    connection.request(self.command, self.path, body, dict(self.headers))
                    answer = connection.getresponse()
                    content = answer.read()
                    self.send_response(answer.status)
                    for name, value in answer.getheaders():
                        if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                            self.send_header(name, value)
                    length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
                    self.send_header("Content-Length", length or "0")
                    self.end_headers()
                    self.wfile.write(content)
                connection.close()

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = forward

            def body(self) -> bytes:
                if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length", 0)))
                parts = []
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                del self.headers["Transfer-Encoding"]
                return b"".join(parts)

            def log_message(self, *arguments: Any) -> None:
                pass

        self.proxy = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
        threading.Thread(target=self.proxy.serve_forever, daemon=True).start()
        port_of_proxy = self.proxy.server_address[1]
        urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/sweeps", method="PUT")).close()
        self.uri = f"s3://sweeps/faults?scheme=http&region=us-east-1&endpoint_override=127.0.0.1:{port_of_proxy}"

    def stop(self) -> None:
        self.proxy.shutdown()
        self.server.stop()


SECRET = "wJalrXUtnFEMI-not-to-be-found-anywhere"


def test_a_bucket_with_errors(
    folder: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One request in twenty fails for the whole sweep, and in mid-training none is answered for ten seconds; the
    credentials are in no file that the sweep leaves, neither its tables nor Ray's logs."""
    credentials = {"AWS_ACCESS_KEY_ID": "raysweep", "AWS_SECRET_ACCESS_KEY": SECRET, "HF_TOKEN": SECRET}
    for name, value in credentials.items():
        monkeypatch.setenv(name, value)
    bucket = Bucket()
    try:
        fs, root = pafs.FileSystem.from_uri(bucket.uri)
        bucket.failing = 0.05
        logs = Path("/tmp/ray")
        before = set(logs.glob("session_2*"))
        sweep = start(folder, bucket.uri, **credentials)

        def begun() -> bool:
            found = fs.get_file_info(pafs.FileSelector(f"{root}/train", recursive=True, allow_not_found=True))
            return len({file.path.split("/")[-3] for file in found if file.base_name == "state.json"}) >= 2

        sweep.wait_for(begun)
        bucket.away = True
        time.sleep(10)
        bucket.away = False
        status, printed = sweep.finish()
        print(printed, bucket.failed, "of", bucket.asked, "requests failed")
        assert status == 0, printed
        assert bucket.failed > 20
        bucket.failing = 0.0
        pafs.copy_files(bucket.uri, str(tmp_path / "copy"))
        assert contents(tmp_path / "copy") == expected
        sessions = set(logs.glob("session_2*")) - before
        assert sessions
        left = [path for place in (tmp_path, *sessions) for path in place.rglob("*") if path.is_file()]
        assert len(left) > 50
        assert [path for path in left if SECRET.encode() in path.read_bytes()] == []
        assert SECRET not in printed
    finally:
        bucket.stop()


def test_a_bucket_that_does_not_exist(folder: Path) -> None:
    bucket = Bucket()
    try:
        environment = {"AWS_ACCESS_KEY_ID": "raysweep", "AWS_SECRET_ACCESS_KEY": "x"}
        status, printed = start(folder, bucket.uri.replace("//sweeps", "//nowhere"), **environment).finish()
        assert (status, printed.count("\n")) == (1, 1), printed
        assert "cannot be" in printed
    finally:
        bucket.stop()
