"""What the page's server gives, to whom, and what it refuses."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pyarrow as pa
import pytest
from serving import ROOT, ask, watching

PUBLISHED = Path(ROOT) / "results" / "mini"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with watching(str(PUBLISHED), cwd=Path(ROOT)) as url:
        yield url


def table(content: bytes) -> pa.Table:
    return pa.ipc.open_stream(content).read_all()


def test_the_page_and_its_files(address: str) -> None:
    page = ask(address)
    assert page.status == 200
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe-inline" not in policy.partition("style-src")[0]
    assert "http://" not in page.content.decode()
    assert "https://" not in page.content.decode()
    for name in ("page.css", "data.js", "plots.js", "live.js", "flechette.min.js", "plotly.js"):
        assert ask(f"{address}static/{name}").status == 200


@pytest.mark.parametrize(
    "path",
    ["static/content.py", "static/..%2fcontent.py", "static/../server.py", "static/%2e%2e/%2e%2e/pyproject.toml",
     "static//etc/passwd", "results.parquet", "runs", "docs", "openapi.json"],
)  # fmt: skip
def test_no_other_file_is_served(address: str, path: str) -> None:
    parts = urlsplit(address)
    connection = HTTPConnection(parts.hostname or "", parts.port or 80)
    connection.request("GET", f"/{path}")  # As it stands: other clients mend paths first.
    assert connection.getresponse().status == 404
    connection.close()


def test_cells_and_curves_are_those_that_were_published(address: str) -> None:
    import pandas as pd

    results = pd.read_parquet(PUBLISHED / "results.parquet")
    shown = table(ask(f"{address}cells?since=0").content).to_pandas()
    assert list(shown["id"]) == list(results["id"])
    assert shown["in_distribution_loss"].to_numpy() == pytest.approx(results["in_distribution_loss"], rel=1e-6)
    assert shown["weight_decay"].tolist() == results["weight_decay"].tolist()
    body = json.dumps({"column": "validation_loss", "cells": [0, 5]}).encode()
    curves = table(ask(f"{address}curves", body).content).to_pandas()
    rows = pd.read_parquet(PUBLISHED / "trajectories.parquet")
    for place in (0, 5):
        expected = rows[rows["cell"] == results["id"][place]].sort_values("step")
        assert curves[curves["cell"] == place]["value"].to_numpy() == pytest.approx(
            expected["validation_loss"], rel=1e-6
        )
    assert table(ask(f"{address}cells?since=1").content).num_rows == 0


@pytest.mark.parametrize(
    "body",
    [b"", b"[", b"{}", b'{"column": "validation_loss"}', b'{"column": 1, "cells": []}',
     b'{"column": "validation_loss", "cells": [-1]}', b'{"column": "validation_loss", "cells": [1000000]}',
     b'{"column": "validation_loss", "cells": ["0"]}', json.dumps({"column": "x", "cells": [0] * 401}).encode(),
     b'{"column": "' + b"x" * 100_000 + b'", "cells": []}'],
)  # fmt: skip
def test_a_question_that_makes_no_sense_is_refused(address: str, body: bytes) -> None:
    assert ask(f"{address}curves", body).status == 400


def test_other_columns_and_versions_are_refused(address: str) -> None:
    assert ask(f"{address}curves", b'{"column": "__class__", "cells": [0]}').status == 503
    assert ask(f"{address}cells?since=x").status == 400
    assert ask(f"{address}cells?since=-1").status == 400
    assert ask(f"{address}state", b"{}").status == 405


def test_a_name_that_only_leads_here_is_refused(address: str) -> None:
    """As a page of somebody else's would call us, whose name server says 127.0.0.1."""
    assert ask(f"{address}state", Host="evil.example").status == 400
    assert ask(f"{address}state", Host="localhost:1234").status == 200


def test_it_listens_on_this_machine_alone(address: str) -> None:
    port = urlsplit(address).port
    listening = [c.laddr.ip for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr.port == port]
    assert listening == ["127.0.0.1"]


def test_the_other_loopback_works(address: str) -> None:
    with watching(str(PUBLISHED), "--host", "::1", cwd=Path(ROOT)) as url:
        assert url.startswith("http://[::1]:")
        assert ask(f"{url}state").status == 200


def test_elsewhere_it_asks_for_a_token() -> None:
    with watching(str(PUBLISHED), "--host", "0.0.0.0", cwd=Path(ROOT)) as url:
        port, token = urlsplit(url).port, urlsplit(url).query.removeprefix("token=")
        assert len(token) >= 32
        here = f"http://127.0.0.1:{port}/"
        for path in ("", "state", "cells?since=0", "static/data.js", "verdicts", "?token=", f"?token={token[:-1]}x"):
            refused = ask(here + path)
            assert (refused.status, b"a token is needed" in refused.content) == (401, True), path
        assert ask(f"{here}curves", b"{}").status == 401
        connection = HTTPConnection("127.0.0.1", port or 80)
        connection.request("GET", f"/?token={token}")
        answer = connection.getresponse()
        cookie = answer.headers["Set-Cookie"]
        assert (answer.status, answer.headers["Location"]) == (303, "/")
        assert "HttpOnly" in cookie
        assert "samesite=strict" in cookie.lower()
        assert token not in ask(here, Cookie=cookie.partition(";")[0]).content.decode()
        assert ask(f"{here}state", Cookie=cookie.partition(";")[0]).status == 200


def test_a_token_can_be_asked_for_here_too() -> None:
    with watching(str(PUBLISHED), "--token", cwd=Path(ROOT)) as url:
        assert ask(url.partition("?")[0] + "state").status == 401


def refused(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "raysweep.cli", "watch", *arguments], capture_output=True, text=True, timeout=60,
        env=os.environ | {"PYTHONPATH": ROOT}, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode != 0
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


def test_a_port_that_is_taken_is_one_clear_line(address: str) -> None:
    port = str(urlsplit(address).port)
    assert refused(str(PUBLISHED), "--port", port) == (
        f"raysweep: error: 127.0.0.1: port {port} cannot be listened at: Address already in use; choose another with --port"
    )
    with watching(str(PUBLISHED), cwd=Path(ROOT)) as other:
        assert urlsplit(other).port != urlsplit(address).port


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--port", "99999"], "a port from 1 to 65535 is needed, not 99999"),
        (["--host", "no-such-host.invalid"], "--host no-such-host.invalid: this machine does not know that name"),
        (["--host", "192.0.2.1"], "192.0.2.1: a port from 8266 on cannot be listened at"),
        (["--store", "x"], "already contains its results: leave --store out"),
    ],
)
def test_bad_options_are_one_clear_line(arguments: list[str], says: str) -> None:
    assert says in refused(str(PUBLISHED), *arguments)


def test_bad_spaces_are_one_clear_line(tmp_path: Path) -> None:
    assert "is a suite of published models" in refused("search_spaces/pythia.yaml")
    assert "no-such.yaml" in refused("no-such.yaml")
    assert "results.parquet" in refused(str(tmp_path))
