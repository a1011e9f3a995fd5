"""The trackers beside a sweep: in a bucket, with one that comes late, with one that never answers."""

import socket
from pathlib import Path
from typing import Any

import mlflow
import pytest
from events import scalars

from raysweep.errors import UserError
from raysweep.space.space import Space
from raysweep.sweep import trackers
from raysweep.sweep.events import CellFinished, CellReported, CellStarted
from raysweep.sweep.trackers import BackgroundLogger

LOSSES = {step: 6.0 / step for step in (1, 2, 5)}


def space(*names: str) -> Space:
    return Space(name="logged", cells=(), loggers=names)


def tracker(name: str, location: str) -> BackgroundLogger:
    (made,) = trackers.trackers(space(name), location)
    made._cells = {"c1": {"id": "c1", "seed": 3}}
    return made


def tell(made: BackgroundLogger, *steps: int) -> None:
    for step in steps:
        made(CellReported("c1", step, 5, 32 * step, 64.0, {"validation_loss": LOSSES[step]}))


def test_tensorboard_beside_a_store_in_a_bucket(bucket: tuple[Any, str], tmp_path: Path) -> None:
    client, location = bucket
    tensorboard = tracker("tensorboard", location)
    tensorboard(CellStarted("c1"))
    tell(tensorboard, 1, 2, 5)
    tensorboard(CellFinished("c1"))
    tensorboard.close()
    (file,) = client.list_objects_v2(Bucket="sweeps", Prefix="store/tensorboard/c1/")["Contents"]
    client.download_file("sweeps", file["Key"], str(tmp_path / Path(file["Key"]).name))
    written = scalars(tmp_path, "ray/tune/validation_loss")
    assert written == pytest.approx(LOSSES, rel=1e-6)


def test_a_tracker_that_comes_late_is_told_from_then_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/runs")
    (tmp_path / "runs").write_text("in its place")
    late = tracker("mlflow", "store")
    late(CellStarted("c1"))
    tell(late, 1)
    while late._calls.qsize():
        pass
    (tmp_path / "runs").unlink()
    tell(late, 2, 5)
    late(CellFinished("c1"))
    late.close()
    assert "MLflow was not told of a row" in caplog.text
    client = mlflow.MlflowClient(f"file://{tmp_path}/runs")
    experiment = client.get_experiment_by_name("logged")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    told = {entry.step: entry.value for entry in client.get_metric_history(run.info.run_id, "validation_loss")}
    # The thread may be at the first row still when the place becomes free.
    assert told.items() >= {step: LOSSES[step] for step in (2, 5)}.items()


def test_a_cell_is_to_a_tracker_what_a_trial_of_tune_is(tmp_path: Path) -> None:
    """Weights & Biases asks where a trial works, and which run of Tune it is of."""
    trial = tracker("tensorboard", str(tmp_path))._trial("c1")
    assert (str(trial), trial.local_path) == ("c1", str(tmp_path))
    assert trial.experiment_dir_name
    assert trial.config["cell"]["seed"] == 3


def test_a_tracker_that_never_answers_holds_nothing_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trackers, "CLOSE_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        mute = tracker("mlflow", "store")
        mute(CellStarted("c1"))
        tell(mute, 1, 2, 5)
        mute.close()
        # It still waits for its first answer.
        assert mute._thread.is_alive()
        assert "MLflow does not answer and was not told everything" in caplog.text


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setitem(trackers.PACKAGES, "wandb", ("json", ""))  # Whether it is installed is not asked here.
    return tmp_path


def test_wandb_without_a_login_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="needs `wandb login`"):
        trackers.check(space("wandb"))
    netrc = home / ".netrc"
    netrc.touch(0o600)
    netrc.write_text("machine api.wandb.ai login user password 0123")
    trackers.check(space("wandb"))
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org/")
    with pytest.raises(UserError):
        trackers.check(space("wandb"))


def test_a_logger_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(trackers.PACKAGES, "wandb", ("no_such_module", "'raysweep[wandb]'"))
    with pytest.raises(UserError, match=r"needs no_such_module: pip install 'raysweep\[wandb\]'"):
        trackers.check(space("wandb"))
