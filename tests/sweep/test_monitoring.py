"""What a person sees of a running sweep in monitoring/: a real sweep, a real Prometheus, and every query of the dashboard.

`make test-monitoring`. One cell of the sweep reports its start and then nothing for hours, as large ones do for
minutes; a short one comes and goes beside it. The tests build on one another in the order they stand in.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from reliability.sweeps import Sweep
from tiny import make_cell

from raysweep.corpora.tokenized import TokenizedCorpus
from raysweep.space import read as space

MONITORING = Path(__file__).parents[2] / "monitoring"
DASHBOARD = json.loads((MONITORING / "grafana-dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
# These are empty where no node has a GPU.
WITH_A_GPU = {"GPUs given out", "GPU use", "GPU memory"}

LONG, SHORT = 10**12, 307_200
SPACE: dict[str, Any] = {
    "name": "monitored",
    "base": make_cell().model_dump(exclude={"tokens"}),
    "cross": {"tokens": [LONG, SHORT]},
    "resources": {"train": {"cpus": 1}},
}
# Ray drops a gauge so many seconds after it exported what it was set to last.
DROPPED = 20.0

pytestmark = [
    pytest.mark.monitoring,
    pytest.mark.skipif(
        not (shutil.which("prometheus") and shutil.which("promtool")), reason="no prometheus: apt install prometheus"
    ),
    pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two cells at once need two cores"),
]


@dataclass
class Watched:
    """A sweep that runs, and the Prometheus that reads its gauges."""

    sweep: Sweep
    store: Path
    cells: dict[int, space.Cell]
    """By their tokens."""
    address: str

    def ask(self, path: str, **parameters: str) -> Any:
        """Of Prometheus's HTTP API."""
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series of an expression, now."""
        found: list[dict[str, Any]] = self.ask("query", query=expression)["result"]
        return found

    def values(self, expression: str) -> list[float]:
        return [float(series["value"][1]) for series in self.query(expression)]

    def until(self, condition: Callable[[], Any], seconds: float) -> Any:
        """What the condition says once that is something, while the sweep runs; else what it said last."""
        deadline = time.monotonic() + seconds
        while not (found := condition()) and time.monotonic() < deadline:
            assert self.sweep.process.poll() is None, f"ended too early: {self.sweep.printed()}"
            time.sleep(0.5)
        return found


def filled_in(expression: str) -> str:
    """A query as Grafana sends it, with its variables replaced."""
    for variable, value in (
        ("$sweep", SPACE["name"]),
        ("$cell", ".+"),
        ("$__rate_interval", "1m"),
        ("$__interval", "10s"),
        ("$__range", "1h"),
    ):
        expression = expression.replace(variable, value)
    assert "$" not in expression, f"a variable that nothing stands for: {expression}"
    return expression


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, corpus: TokenizedCorpus) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("monitoring")
    (folder / "space.yaml").write_text(yaml.safe_dump(SPACE))
    cells = {cell.tokens: cell for cell in space.load(folder / "space.yaml").cells}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    # Of its own, so that no other cluster of this machine is joined or read. Not in `folder`: the path of a Unix socket has
    # at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="rs-", ignore_cleanup_errors=True) as temporary:
        configuration = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
        configuration["global"]["scrape_interval"] = "2s"
        discovery = configuration["scrape_configs"][0]["file_sd_configs"][0]
        discovery["files"] = [str(temporary / Path(file).relative_to("/tmp")) for file in discovery["files"]]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
        sweep = Sweep(folder / "space.yaml", folder / "store", folder / "log", RAY_TMPDIR=temporary)
        with (folder / "prometheus.log").open("wb") as log:
            prometheus = subprocess.Popen(
                ["prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--web.listen-address={address}",
                 f"--storage.tsdb.path={folder / 'prometheus'}"],
                stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        try:
            yield Watched(sweep, folder / "store", cells, address)
        finally:
            sweep.processes()
            if sweep.process.poll() is None:
                sweep.process.send_signal(signal.SIGINT)
                sweep.process.wait(60)
            sweep.sweep_up()
            prometheus.terminate()
            prometheus.wait(30)


def test_prometheus_takes_the_configuration() -> None:
    checked = subprocess.run(
        ["promtool", "check", "config", MONITORING / "prometheus.yml"], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_dashboard_fits_together() -> None:
    assert DASHBOARD["title"] == "raysweep"
    assert [variable["name"] for variable in DASHBOARD["templating"]["list"]] == ["datasource", "sweep", "cell"]
    places = {panel["id"]: panel["gridPos"] for panel in DASHBOARD["panels"]}
    assert len(places) == len(DASHBOARD["panels"]), "an id is there twice"
    for place in places.values():
        assert place["x"] >= 0
        assert place["x"] + place["w"] <= 24
    for one, other in combinations(places.values(), 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below, f"panels lie over one another: {one} and {other}"
    for panel in PANELS:
        for source in (panel, *panel["targets"]):
            assert source["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, panel["title"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        assert panel["fieldConfig"]["defaults"]["unit"]
        if panel["type"] in ("stat", "gauge"):
            # A number out of a range of time would stay on the screen after the sweep has ended.
            assert all(target["instant"] and not target["range"] for target in panel["targets"]), panel["title"]
    assert {panel["title"] for panel in PANELS} >= WITH_A_GPU


def test_every_panel_shows_something_while_the_sweep_runs(watched: Watched) -> None:
    empty = {target["expr"] for panel in PANELS if panel["title"] not in WITH_A_GPU for target in panel["targets"]}

    def filled() -> bool:
        with suppress(OSError):  # Prometheus is starting.
            empty.difference_update([expression for expression in empty if watched.query(filled_in(expression))])
        return not empty

    watched.until(filled, 120)
    assert not empty


def test_the_variables_list_the_sweep_and_its_cells(watched: Watched) -> None:
    _, sweep, cell = DASHBOARD["templating"]["list"]
    found = []
    for variable in (sweep, cell):
        series, label = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"]).groups()  # type: ignore[union-attr]
        found.append(watched.ask(f"label/{label}/values", **{"match[]": filled_in(series)}))
    assert found[0] == ["monitored"]
    assert set(found[1]) == {cell.id for cell in watched.cells.values()}


def test_every_gauge_is_explained(watched: Watched) -> None:
    """The table of README.md has what there is and nothing else."""
    exported = {name for name in watched.ask("label/__name__/values") if "raysweep" in name}
    explained = set(re.findall(r"^\| `(ray_raysweep_\w+)", (MONITORING / "README.md").read_text(), re.MULTILINE))
    assert exported == explained


def test_the_sweep_is_counted(watched: Watched) -> None:
    # Between two numbers that belong together Ray may export.
    assert watched.until(lambda: watched.values('sum(ray_raysweep_cells{sweep="monitored"})') == [2.0], 15)
    planned = sum(cell.steps * cell.tokens_per_step for cell in watched.cells.values())
    assert watched.values("ray_raysweep_tokens_planned") == [planned]
    assert 0 < watched.values("ray_raysweep_tokens")[0] < planned


def test_a_finished_cell_shows_its_last_row(watched: Watched) -> None:
    """What stays of it in Prometheus is what the store has."""
    cell = watched.cells[SHORT].id
    assert watched.until((watched.store / "cells" / f"{cell}.parquet").exists, 120)
    last = pq.read_table(watched.store / "trajectories" / f"{cell}.parquet").to_pylist()[-1]
    for key in ("validation_loss", "train_loss", "effective_rank_W", "cosine_W", "gradient_norm", "tokens"):
        shown = f'last_over_time(ray_raysweep_cell_{key.lower()}{{cell="{cell}"}}[5m])'
        assert watched.until(lambda shown=shown, key=key: watched.values(shown) == [last[key]], 25), key


def test_a_cell_between_two_reports_stays(watched: Watched) -> None:
    """A report may be minutes away, and who watches must not see an empty panel until then."""
    shown = f'ray_raysweep_cell_validation_loss{{cell="{watched.cells[LONG].id}"}}'
    running = 'ray_raysweep_cells{state="running"}'
    first = min(float(series["value"][1]) for series in watched.query(f"min_over_time(timestamp({shown})[5m:1s])"))
    time.sleep(max(0.0, first + DROPPED + 8 - time.time()))
    scrapes = watched.values("count_over_time(up[20s])")[0]
    for gauge in (shown, running):
        assert watched.query(gauge), f"{gauge} went"
        assert watched.values(f"count_over_time({gauge}[20s])")[0] >= scrapes - 1, f"{gauge} went for a while"


def test_a_sweep_that_has_ended_shows_nothing(watched: Watched) -> None:
    """Its cells would else be running for ever."""
    assert watched.query("ray_raysweep_cells")
    watched.sweep.processes()
    watched.sweep.process.send_signal(signal.SIGINT)
    assert watched.sweep.process.wait(60) == 130
    deadline = time.monotonic() + 15
    stats = [target for panel in PANELS if panel["type"] in ("stat", "gauge") for target in panel["targets"]]
    while shown := [stat["expr"] for stat in stats if watched.query(filled_in(stat["expr"]))]:
        assert time.monotonic() < deadline, shown
        time.sleep(0.5)
