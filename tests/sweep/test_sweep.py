"""Whole sweeps through the command line and a real local Ray: finished, stopped, killed, damaged, extended.

The tests build on one another in the order they stand in: the first sweep is the undisturbed one that the others are
compared with, to the last bit.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from events import scalars
from script import call
from tiny import make_cell

from raysweep.corpora.tokenized import TokenizedCorpus
from raysweep.space import read as space
from raysweep.store import Store
from raysweep.store.sessions import processor
from raysweep.training.run import Run
from raysweep.version import __version__

# One cell at a time, so that there is a finished and an unfinished one to kill.
SPACE: dict[str, Any] = {
    "name": "tiny",
    "base": make_cell(tokens=102_400).model_dump(exclude={"batch_size"}) | {"batch_size": 4},
    "cross": {"batch_size": [8, 4]},
    "evaluations": [{"task": "in_distribution", "sequences": 8}],
    "measure": [{"of": ["blocks.0.*", "hidden.*"], "metrics": ["stable_rank", "isoscore"], "sequences": 32}],
    "resources": {"train": {"cpus": os.cpu_count()}, "evaluate": {"cpus": 1}},
    "loggers": ["tensorboard", "mlflow"],
}

# What must come out the same; `timings`, by its nature, does not.
TABLES = ("cells", "trajectories", "evaluations", "measures", "spectra")


def start(file: Path, store: Path, *more: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "raysweep.cli", "run", str(file), "--store", str(store), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: "subprocess.Popen[str]") -> str:
    try:
        return process.communicate(timeout=480)[0]
    finally:
        kill_tree(process)


def command(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "raysweep.cli", *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def kill_tree(process: "subprocess.Popen[str]") -> None:
    """SIGKILL to the driver and everything it started: the cluster, its actors and its workers.

    All are stopped first, so that none lives to see another die and to write of it.
    """
    try:
        everything = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for blow in (psutil.Process.suspend, psutil.Process.kill):
        for victim in everything:
            with suppress(psutil.NoSuchProcess):
                blow(victim)
    psutil.wait_procs(everything, timeout=30)


def wait_for(condition: Callable[[], bool], process: "subprocess.Popen[str]", seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(f"did not come: {finish(process)}")
        time.sleep(0.05)


def listening(root: int) -> set[tuple[str, str]]:
    """The addresses on which a process and what it started listen, each with the name of the listener."""
    processes = [psutil.Process(root), *psutil.Process(root).children(recursive=True)]
    return {
        (connection.laddr.ip, process.cmdline()[0].partition(".")[0])
        for process in processes
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }


def furthest(store: Path, cell: str) -> int:
    names = [path.name for path in (store / "train" / cell).glob("checkpoint_step*") if (path / "state.json").exists()]
    return max((int(name[15:27]) for name in names), default=0)


def contents(store: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(store)): path.read_bytes()
        for table in TABLES
        for path in sorted((store / table).rglob("*.parquet"))
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, corpus: TokenizedCorpus) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(SPACE), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"file:{folder}/mlruns")
        # MLflow wants to be told that a folder will do in place of a server.
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def ids(folder: Path) -> list[str]:
    return [cell.id for cell in space.load(folder / "tiny.yaml").cells]


@pytest.fixture(scope="module")
def undisturbed(folder: Path, ids: list[str]) -> tuple[Path, str]:
    """A sweep from beginning to end, its store and what it printed; on the way a second one is refused."""
    store = folder / "undisturbed"
    running = start(folder / "tiny.yaml", store)
    try:
        # Either may find a place first; what is shown of it is as old as the last beat of the driver.
        counts = {"cells": {"running": 0}}

        def one_runs() -> bool:
            counts.update(
                json.loads(command("status", str(folder / "tiny.yaml"), "--store", str(store), "--json").stdout)
            )
            return counts["cells"]["running"] > 0

        wait_for(lambda: max(furthest(store, cell) for cell in ids) > 10, running)
        wait_for(one_runs, running)
        # PyTorch's rendezvous, which a training worker holds, cannot be told an address.
        beyond = {
            (ip, name) for ip, name in listening(running.pid) if ip not in ("127.0.0.1", "::1", "::ffff:127.0.0.1")
        }
        assert {name for _, name in beyond} <= {"ray::RayTrainWorker"}, beyond
        cells = counts["cells"]
        assert (cells["planned"], cells["running"], cells["failed"], cells["diverged"]) == (2, 1, 0, 0)
        assert cells["done"] + cells["left"] == 1
        second = command("run", str(folder / "tiny.yaml"), "--store", str(store))
        assert second.returncode == 1
        assert f"in use by process {running.pid}" in second.stderr
        assert second.stderr.count("\n") == 1
    finally:
        printed = finish(running)
    assert running.returncode == 0, printed
    return store, printed


def test_a_sweep_from_beginning_to_end(undisturbed: tuple[Path, str], folder: Path, ids: list[str]) -> None:
    store, printed = undisturbed
    assert "2 cells, 2 to start, 2 evaluations to do" in printed
    assert "dashboard http://" in printed
    assert "2 of 2 cells done, 2 of 2 evaluations done" in printed
    assert not (store / "run.json").exists()
    counts = json.loads(command("status", str(folder / "tiny.yaml"), "--store", str(store), "--json").stdout)
    assert counts == {
        "cells": {"planned": 2, "done": 2, "running": 0, "failed": 0, "diverged": 0, "left": 0},
        "evaluations": {"planned": 2, "done": 2, "failed": 0, "left": 0},
        "versions": {f"raysweep {__version__}, torch {version('torch')}": 2},
    }
    assert [row["id"] for row in pq.read_table(store / "plan.parquet").to_pylist()] == ids
    assert all(len(list((store / "train" / cell).glob("checkpoint_step*"))) == 2 for cell in ids)


def test_results_is_one_row_per_cell(undisturbed: tuple[Path, str], folder: Path, ids: list[str]) -> None:
    store, _ = undisturbed
    output = folder / "results.parquet"
    done = command("results", str(folder / "tiny.yaml"), "--store", str(store), "--output", str(output))
    assert done.returncode == 0, done.stderr
    rows = pq.read_table(output).to_pylist()
    assert [row["id"] for row in rows] == ids
    for row in rows:
        assert row["steps_trained"] == row["steps"] == 102_400 // (32 * row["batch_size"])
        assert 4.5 < row["in_distribution_loss"] < 6.24  # ln 512, the loss of knowing nothing
        assert 0 < row["effective_rank_W"] <= 1
        assert row["train_seconds"] > 0
        assert row["trained_on"].startswith(f"{processor()}, float32, ")


def test_the_loggers_were_told_every_row(undisturbed: tuple[Path, str], folder: Path, ids: list[str]) -> None:
    store, _ = undisturbed
    client = mlflow.MlflowClient(f"file:{folder}/mlruns")
    experiment = client.get_experiment_by_name("tiny")
    runs = {run.data.tags["trial_name"]: run for run in client.search_runs([experiment.experiment_id])}
    for cell in ids:
        rows = pq.read_table(store / "trajectories" / f"{cell}.parquet").to_pylist()
        for name in ("validation_loss", "effective_rank_W"):
            wanted = {row["step"]: row[name] for row in rows}
            history = client.get_metric_history(runs[cell].info.run_id, name)
            assert {entry.step: entry.value for entry in history} == wanted
            # Event files hold float32.
            assert scalars(store / "tensorboard" / cell, f"ray/tune/{name}") == pytest.approx(wanted, rel=1e-6)
        assert runs[cell].data.params["cell/batch_size"] == str(rows[-1]["tokens"] // rows[-1]["step"] // 32)
        assert runs[cell].info.status == "FINISHED"


def test_rows_equal_training_without_ray(
    undisturbed: tuple[Path, str], folder: Path, ids: list[str], corpus: TokenizedCorpus
) -> None:
    """The same cell in this process, on one thread where the sweep had several: equal to rounding."""
    cell = space.load(folder / "tiny.yaml").cells[0]
    rows = [row for row in Run(cell, corpus).rows() if row is not None]
    stored = pq.read_table(undisturbed[0] / "trajectories" / f"{ids[0]}.parquet").to_pylist()
    assert_rows_close(stored, rows)


def assert_rows_close(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one["step"] == other["step"]
        assert one["validation_loss"] == pytest.approx(other["validation_loss"], abs=2e-3)
        assert one["effective_rank_W"] == pytest.approx(other["effective_rank_W"], abs=2e-3)


def test_a_finished_sweep_has_nothing_to_do(undisturbed: tuple[Path, str], folder: Path) -> None:
    before = contents(undisturbed[0])
    again = command("run", str(folder / "tiny.yaml"), "--store", str(undisturbed[0]))
    assert again.returncode == 0
    assert "2 cells, 2 trained, every evaluation done" in again.stdout
    assert contents(undisturbed[0]) == before


@pytest.fixture(scope="module")
def disturbed(undisturbed: tuple[Path, str], folder: Path, ids: list[str]) -> Path:
    """The same sweep from where its first cell is done: stopped by command in the second, killed there, run to its end."""
    store = folder / "disturbed"
    first, second = ids
    shutil.copytree(undisturbed[0], store)
    for path in sorted(store.rglob(f"{second}*")):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    stopped = start(folder / "tiny.yaml", store)
    try:
        wait_for(lambda: furthest(store, second) > 30, stopped)
        ended = command("stop", str(folder / "tiny.yaml"), "--store", str(store))
        assert ended.stdout == f"stopped process {stopped.pid}\n", ended.stderr
    finally:
        printed = finish(stopped)
    assert stopped.returncode == 130, printed
    assert "stopping: the cell in training writes a checkpoint first; a second Ctrl-C ends at once" in printed
    assert "stopped: 1 of 2 cells trained, nothing is lost. Resume with:" in printed
    assert f"raysweep run {folder / 'tiny.yaml'} --store {store}" in printed
    finished = contents(store)
    assert set(finished) >= {f"cells/{first}.parquet", f"trajectories/{first}.parquet"}
    touched = {name: (store / name).stat().st_mtime_ns for name in finished}
    reached = furthest(store, second)
    assert 30 < reached < 800

    killed = start(folder / "tiny.yaml", store)
    try:
        wait_for(lambda: furthest(store, second) > reached, killed)
    finally:
        kill_tree(killed)
    assert furthest(store, second) < 800, "the cell was done before it could be killed"
    counts = json.loads(command("status", str(folder / "tiny.yaml"), "--store", str(store), "--json").stdout)
    assert counts["cells"] == {"planned": 2, "done": 1, "running": 0, "failed": 0, "diverged": 0, "left": 1}

    # To its end from a script of the user's own: what was begun by command is the same sweep.
    last = call(folder / "tiny.yaml", store)
    assert (last["printed"], last["environment"], last["handlers"]) == ("", True, True)
    assert (last["complete"], last["interrupted"], last["failed"]) == (True, False, {})
    assert (last["rows"], last["same"]) == (2, True)
    assert last["status"] == {"planned": 2, "done": 2, "running": 0, "failed": 0, "diverged": 0, "left": 0}
    events = last["events"]
    assert events[0] == "SweepSurveyed"
    assert events.index("ClusterConnected") < events.index("CellStarted") < events.index("CellReported")
    assert events.count("CellFinished") == 1
    assert {name: (store / name).stat().st_mtime_ns for name in finished} == touched
    starts = pq.read_table(store / "timings" / "train" / f"{second}.parquet")["starts"].to_pylist()
    assert starts == [3]
    return store


def test_stopped_and_killed_the_tables_are_the_same_to_the_last_bit(
    undisturbed: tuple[Path, str], disturbed: Path
) -> None:
    assert contents(disturbed) == contents(undisturbed[0])
    assert len(contents(disturbed)) == 10


MORE_TASKS = [
    {"task": "in_distribution", "sequences": 8},
    {"task": "representation", "sequences": 20},
    {"task": "finetune_math", "tokens": 131_072, "batch_size": 4, "sequences": 8},
]


def evaluation_processes(root: int) -> list[psutil.Process]:
    return [p for p in psutil.Process(root).children(recursive=True) if "ray::evaluate_cell" in " ".join(p.cmdline())]


@pytest.fixture(scope="module")
def mended(undisturbed: tuple[Path, str], disturbed: Path, folder: Path, ids: list[str]) -> tuple[Path, str]:
    """The first cell loses its trajectory and its final checkpoint, the second an evaluation; two tasks are added, and
    the process of one evaluation is killed while it works."""
    trajectory = disturbed / "trajectories" / f"{ids[0]}.parquet"
    trajectory.write_bytes(trajectory.read_bytes()[:-100])
    final = max((disturbed / "train" / ids[0]).glob("checkpoint_step*")) / "model.safetensors"
    weights = bytearray(final.read_bytes())
    weights[-5] ^= 1
    final.write_bytes(weights)
    next((disturbed / "evaluations").rglob(f"{ids[1]}.parquet")).write_bytes(b"")

    (folder / "more.yaml").write_text(yaml.safe_dump(SPACE | {"evaluations": MORE_TASKS}), encoding="utf-8")
    again = start(folder / "more.yaml", disturbed)
    try:
        wait_for(lambda: bool(list(disturbed.glob("evaluations/representation-*/*"))), again)
        wait_for(lambda: bool(evaluation_processes(again.pid)), again)
        evaluation_processes(again.pid)[0].kill()
    finally:
        printed = finish(again)
    assert again.returncode == 0, printed
    return disturbed, printed


@pytest.mark.slow
def test_what_is_damaged_is_set_aside_and_made_again(
    undisturbed: tuple[Path, str], mended: tuple[Path, str], ids: list[str]
) -> None:
    store, printed = mended
    assert f"trajectories/{ids[0]}.parquet is damaged" in printed
    assert "model.safetensors is not what was written): resuming from the one before" in printed
    assert f"{ids[1]}.parquet is damaged" in printed
    assert "Traceback" not in printed
    assert list(store.rglob("*.damaged-*"))
    # The weights were gone: what was measured on them is measured again, on the new ones.
    assert list(store.glob(f"evaluations/*/{ids[0]}.parquet.damaged-*"))
    before, after = contents(undisturbed[0]), contents(store)
    assert {name: after[name] for name in before} == before


@pytest.mark.slow
def test_added_tasks_are_done_though_one_was_killed(mended: tuple[Path, str], ids: list[str]) -> None:
    store, printed = mended
    assert "2 of 2 cells done, 6 of 6 evaluations done" in printed
    for cell in ids:
        for task in ("representation", "finetune_math"):
            assert len(list(store.glob(f"evaluations/{task}-*/{cell}.parquet"))) == 1
    assert not list(store.glob("failures/*/*"))


@pytest.mark.slow
def test_a_row_that_is_gone_is_remade_alone(mended: tuple[Path, str], folder: Path, ids: list[str]) -> None:
    store, _ = mended
    before = contents(store)
    touched = {name: (store / name).stat().st_mtime_ns for name in before}
    gone = next(store.glob(f"evaluations/representation-*/{ids[0]}.parquet"))
    gone.unlink()
    done = command("evaluate", str(folder / "more.yaml"), "--store", str(store))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 cells, 2 trained, 1 evaluations to do" in done.stdout
    assert contents(store) == before
    remade = {name for name in before if (store / name).stat().st_mtime_ns != touched[name]}
    assert remade == {str(gone.relative_to(store))}


@pytest.mark.slow
def test_what_was_measured_later_outlives_a_lost_table(mended: tuple[Path, str], folder: Path, ids: list[str]) -> None:
    """The weights are there: only the table is written again."""
    store, _ = mended
    arguments = (str(folder / "more.yaml"), "--store", str(store))
    done = command("measure", *arguments, "--of", "unembedding", "--metrics", "hoyer")
    assert done.returncode == 0, done.stdout + done.stderr
    before = contents(store)
    assert "hoyer" in pq.read_table(store / "measures" / f"{ids[1]}.parquet")["metric"].to_pylist()
    (store / "trajectories" / f"{ids[1]}.parquet").write_bytes(b"")
    done = command("run", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert contents(store) == before


@pytest.mark.slow
def test_a_published_cell_is_made_again_to_the_same_bits(
    undisturbed: tuple[Path, str], folder: Path, ids: list[str]
) -> None:
    published, again = folder / "published", folder / "again"
    done = command("publish", str(folder / "tiny.yaml"), "--store", str(undisturbed[0]), "--output", str(published))
    assert done.returncode == 0, done.stderr
    assert "2 of 2 cells published" in done.stdout
    assert "times what the cores worked" in done.stdout
    done = command("reproduce", str(published), ids[0], "--store", str(again))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "numbers compared, all as published" in done.stdout
    assert [path.stem for path in (again / "cells").iterdir()] == [ids[0]]
    table = pq.read_table(published / "results.parquet")
    rows = table.to_pylist()
    rows[0]["validation_loss"] += 1.0
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), published / "results.parquet")
    done = command("reproduce", str(published), ids[0], "--store", str(again))
    assert done.returncode == 1
    assert "1 of " in done.stdout
    assert "validation_loss" in done.stdout
    done = command("reproduce", str(published), "nothing-like-it", "--store", str(again))
    assert done.returncode == 1
    assert "no cell with 'nothing-like-it' in the id" in done.stderr


@pytest.mark.slow
def test_a_longer_axis_trains_only_the_new_cell_here_with_two_workers(
    undisturbed: tuple[Path, str], folder: Path, corpus: TokenizedCorpus
) -> None:
    store = folder / "extended"
    shutil.copytree(undisturbed[0], store)
    before = contents(store)
    longer = SPACE | {
        "cross": {"batch_size": [8, 4, 16]},
        "resources": {"train": {"workers": 2, "cpus": 1}, "evaluate": {"cpus": 1}},
    }
    (folder / "longer.yaml").write_text(yaml.safe_dump(longer), encoding="utf-8")
    extending = start(folder / "longer.yaml", store)
    printed = finish(extending)
    assert extending.returncode == 0, printed
    assert "3 cells, 2 trained, 1 to start, 1 evaluations to do" in printed
    after = contents(store)
    assert {name: after[name] for name in before} == before
    new = space.load(folder / "longer.yaml").cells[2]
    assert len(after) == len(before) + len(TABLES)
    # Two workers with gloo give the losses of one.
    rows = [row for row in Run(new, corpus).rows() if row is not None]
    stored = Store(str(store)).read_rows(
        f"trajectories/{new.id}.parquet", pq.read_schema(store / f"trajectories/{new.id}.parquet")
    )
    assert stored is not None
    assert_rows_close(stored, rows)


def test_a_store_or_a_cell_that_cannot_be_is_refused_before_anything_starts(folder: Path) -> None:
    (folder / "file").write_text("")
    refused = command("run", str(folder / "tiny.yaml"), "--store", str(folder / "file" / "store"))
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "cannot be written: Not a directory" in refused.stderr

    refused = command("run", str(folder / "tiny.yaml"), "--store", str(folder / "new"), RAY_ADDRESS="127.0.0.1:9")
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "no Ray cluster answers at RAY_ADDRESS=127.0.0.1:9" in refused.stderr

    (folder / "typo.yaml").write_text("name: x\nbase: {sise: 4M}\n", encoding="utf-8")
    refused = command("run", str(folder / "typo.yaml"))
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "typo.yaml:2: base.sise: unknown field" in refused.stderr
    assert "did you mean 'size'" in refused.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "said"),
    [
        (1, r": resources\.train\.gpus is 1, and PyTorch \S+ (\(built without CUDA\) )?finds no GPU on "),
        # These must talk to each other first.
        (2, ": RuntimeError: Distributed package doesn't have NCCL built in"),
    ],
)
def test_cells_that_ask_for_a_gpu_that_torch_cannot_use_fail_with_a_line_each(
    folder: Path, workers: int, said: str
) -> None:
    """A node that says it has GPUs, as one whose PyTorch was built without CUDA does: nothing is computed on its CPU.

    None of the cells keeps the GPUs that the next one waits for.
    """
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    resources = {"train": {"gpus": 1, "workers": workers}, "evaluate": {"gpus": 1}}
    (folder / "gpu.yaml").write_text(yaml.safe_dump(SPACE | {"name": "gpu", "resources": resources}), "utf-8")
    store = folder / f"gpu{workers}"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    head = subprocess.Popen(
        [
            str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--port={port}",
            "--node-ip-address=127.0.0.1", "--num-cpus=2", f"--num-gpus={workers}", "--include-dashboard=false",
            "--disable-usage-stats", "--object-store-memory=200000000",
        ],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for(lambda: any(address == "127.0.0.1" for address, _ in listening(head.pid)), head)  # type: ignore[arg-type]
        time.sleep(5)
        done = command("run", str(folder / "gpu.yaml"), "--store", str(store), RAY_ADDRESS=f"127.0.0.1:{port}")
    finally:
        kill_tree(head)  # type: ignore[arg-type]
        # Where `ray start` says which cluster others should join.
        noted = Path("/tmp/ray/ray_current_cluster")
        if noted.exists() and noted.read_text().strip().endswith(f":{port}"):
            noted.unlink()
    assert done.returncode == 1, done.stdout
    lines = [line for line in done.stdout.splitlines() if line.startswith("failed train of ")]
    assert len(lines) == len(space.load(folder / "gpu.yaml").cells), done.stdout + done.stderr
    assert all(re.search(said, line) for line in lines)
    assert not list(store.glob("cells/*"))
