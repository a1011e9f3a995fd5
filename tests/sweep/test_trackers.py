"""The loggers beside a sweep: in a bucket, with a tracker that comes late, with one that never answers."""

import socket
from pathlib import Path
from typing import Any

import mlflow
import pytest
from events import scalars
from ray.tune.experiment import Trial

from raysweep.errors import UserError
from raysweep.space.cell import Space
from raysweep.sweep import trackers as loggers

ROWS = [{"step": step, "tokens": 32 * step, "validation_loss": 6.0 / step, "done": False} for step in (1, 2, 5)]


def space(*names: str) -> Space:
    return Space(name="logged", cells=(), loggers=names)


@pytest.fixture
def cell() -> Trial:
    config = {"cell": {"id": "c1", "seed": 3}}
    return Trial("cell", stub=True, config=config, evaluated_params=config)


def tell(callback: Any, trial: Trial, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        callback.on_trial_result(row["step"], [trial], trial, row)


def test_tensorboard_beside_a_store_in_a_bucket(bucket: tuple[Any, str], cell: Trial, tmp_path: Path) -> None:
    client, location = bucket
    (callback,) = loggers.callbacks(space("tensorboard"), location)
    callback.setup()
    callback.on_trial_start(0, [cell], cell)
    tell(callback, cell, ROWS)
    callback.on_trial_complete(3, [cell], cell)
    callback.on_experiment_end([cell])
    (file,) = client.list_objects_v2(Bucket="sweeps", Prefix="store/tensorboard/c1/")["Contents"]
    client.download_file("sweeps", file["Key"], str(tmp_path / Path(file["Key"]).name))
    written = scalars(tmp_path, "ray/tune/validation_loss")
    assert written == pytest.approx({row["step"]: row["validation_loss"] for row in ROWS}, rel=1e-6)


def test_a_tracker_that_comes_late_is_told_from_then_on(
    cell: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/runs")
    (tmp_path / "runs").write_text("in its place")
    (callback,) = loggers.callbacks(space("mlflow"), "store")
    callback.setup()
    callback.on_trial_start(0, [cell], cell)
    tell(callback, cell, ROWS[:1])
    while callback._calls.qsize():
        pass
    (tmp_path / "runs").unlink()
    tell(callback, cell, ROWS[1:])
    callback.on_trial_complete(3, [cell], cell)
    callback.on_experiment_end([cell])
    assert "MLflow was not told of a row" in caplog.text
    client = mlflow.MlflowClient(f"file://{tmp_path}/runs")
    experiment = client.get_experiment_by_name("logged")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    told = {entry.step: entry.value for entry in client.get_metric_history(run.info.run_id, "validation_loss")}
    # The thread may be at the first row still when the place becomes free.
    assert told.items() >= {row["step"]: row["validation_loss"] for row in ROWS[1:]}.items()


def test_a_tracker_that_never_answers_holds_nothing_up(
    cell: Trial, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loggers, "LAST_WORDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        (callback,) = loggers.callbacks(space("mlflow"), "store")
        callback.setup()
        callback.on_trial_start(0, [cell], cell)
        tell(callback, cell, ROWS)
        callback.on_experiment_end([cell])
        # It still waits for its first answer.
        assert callback._thread.is_alive()
        assert "MLflow does not answer and was not told everything" in caplog.text


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setitem(loggers.PACKAGES, "wandb", ("json", ""))  # Whether it is installed is not asked here.
    return tmp_path


def test_wandb_without_a_login_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="needs `wandb login`"):
        loggers.check(space("wandb"))
    netrc = home / ".netrc"
    netrc.touch(0o600)
    netrc.write_text("machine api.wandb.ai login user password 0123")
    loggers.check(space("wandb"))
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org/")
    with pytest.raises(UserError):
        loggers.check(space("wandb"))


def test_a_logger_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(loggers.PACKAGES, "wandb", ("no_such_module", "'raysweep[wandb]'"))
    with pytest.raises(UserError, match=r"needs no_such_module: pip install 'raysweep\[wandb\]'"):
        loggers.check(space("wandb"))
