"""The experiment trackers that a search space asks for by `loggers`, through Ray Tune's own callbacks.

Each gets the rows of every cell's training as they are reported, by step, and the cell's settings as hyperparameters. They
run in the driver, each in a thread of its own: one that is away holds nothing up. What they show is a copy: results are in
the store.
"""

from __future__ import annotations

import importlib.util
import logging
import netrc
import os
import queue
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysweep.errors import UserError
from raysweep.store import Store
from raysweep.store.schemas import TRAJECTORIES

if TYPE_CHECKING:
    from ray import tune

    from raysweep.space.cell import Space

log = logging.getLogger("raysweep")

# Logger -> the package that it needs, and the name it is installed by.
PACKAGES = {
    "tensorboard": ("tensorboardX", "tensorboardX"),  # Ray Tune brings it.
    "mlflow": ("mlflow", "'raysweep[mlflow]'"),
    "wandb": ("wandb", "'raysweep[wandb]'"),
}

# How long, in seconds, the end of a sweep waits for a logger that still has something to tell.
LAST_WORDS = 60.0

_REPORTED = {*TRAJECTORIES.names, "tokens_per_second"} - {"cell"}


def check(space: Space) -> None:
    """Raise `UserError` where a logger's package is not installed, or what it needs is not set."""
    for name in space.loggers:
        module, package = PACKAGES[name]
        if importlib.util.find_spec(module) is None:
            raise UserError(f"the logger {name} of {space.name} needs {module}: pip install {package}")
    if "mlflow" in space.loggers and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise UserError(
            f"the logger mlflow of {space.name} needs MLFLOW_TRACKING_URI in the environment: your server's"
        )
    if "wandb" in space.loggers and not _known_to_wandb():
        raise UserError(f"the logger wandb of {space.name} needs `wandb login` on this machine, or WANDB_MODE=offline")


def _known_to_wandb() -> bool:
    if os.environ.get("WANDB_MODE") == "offline" or os.environ.get("WANDB_API_KEY"):
        return True
    server = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").partition("://")[2].partition("/")[0]
    with suppress(OSError, netrc.NetrcParseError):
        return netrc.netrc(os.environ.get("NETRC")).authenticators(server) is not None
    return False


def callbacks(space: Space, location: str) -> list[tune.Callback]:
    """The Tune callbacks of the loggers of a search space whose store is at `location`."""
    make = {"tensorboard": _tensorboard, "mlflow": _mlflow, "wandb": _wandb}
    return [make[name](space, location) for name in space.loggers]


class OfThisProcess:
    """Tune pickles callbacks and stoppers for a restore that raysweep never asks for."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (object, ())


class _Apart(OfThisProcess):
    """Comes before a logger of Tune's: calls it in a thread, with the rows of training alone."""

    def setup(self, *arguments: Any, **info: Any) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()
        self._calls.put((super().setup, ()))  # type: ignore[misc]

    def log_trial_start(self, trial: Any) -> None:
        self._calls.put((super().log_trial_start, (trial,)))  # type: ignore[misc]

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        if "validation_loss" in result:
            row = {key: value for key, value in result.items() if key in _REPORTED}
            # Tune's iterations start anew when a cell is resumed. Loggers that need a count are given the step.
            row |= {"timesteps_total": result["step"], "training_iteration": result["step"], "config": trial.config}
            self._calls.put((super().log_trial_result, (iteration, trial, row)))  # type: ignore[misc]

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:
        self._calls.put((super().log_trial_end, (trial, failed)))  # type: ignore[misc]

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        self._calls.put((super().on_experiment_end, (trials,)))  # type: ignore[misc]
        self._calls.put(None)
        self._thread.join(LAST_WORDS)
        if self._thread.is_alive():
            log.warning("%s does not answer and was not told everything; results are in the store", self._name())

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call[0](*call[1])
            except Exception as error:  # A tracker that is away must not end a sweep.
                what = " ".join(f"{type(error).__name__}: {error}".split())
                log.warning("%s was not told of a row: %s", self._name(), what)

    def _name(self) -> str:
        return type(self).__name__


def _tensorboard(space: Space, location: str) -> tune.Callback:
    from ray.tune.logger import TBXLoggerCallback
    from tensorboardX import SummaryWriter

    class Files(TBXLoggerCallback):
        """Event files in <store>/tensorboard/<cell>/."""

        def __init__(self) -> None:
            super().__init__()
            # What writes event files to buckets waits for ever where it cannot: they are written here and copied.
            self._aside = tempfile.TemporaryDirectory(prefix="raysweep-") if "://" in location else None

        def log_trial_start(self, trial: Any) -> None:
            folder = self._folder(trial)
            folder.mkdir(parents=True, exist_ok=True)
            self._trial_writer[trial] = SummaryWriter(str(folder), flush_secs=30)
            self._trial_result[trial] = {}

        def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
            super().log_trial_result(iteration, trial, result)
            self._copy(trial)

        def log_trial_end(self, trial: Any, failed: bool = False) -> None:
            super().log_trial_end(trial, failed)
            self._copy(trial)

        def _folder(self, trial: Any) -> Path:
            return Path(self._aside.name if self._aside else location, "tensorboard", trial.config["cell"]["id"])

        def _copy(self, trial: Any) -> None:
            if self._aside:
                for file in self._folder(trial).iterdir():
                    Store(location).put_file(file, str(file.relative_to(self._aside.name)))

    class TensorBoard(_Apart, Files):
        pass

    return TensorBoard()


def _mlflow(space: Space, location: str) -> tune.Callback:
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    class Runs(MLflowLoggerCallback):
        """An experiment named as the search space, where MLFLOW_TRACKING_URI says."""

        def log_trial_start(self, trial: Any) -> None:
            if self.mlflow_util.experiment_id is None:  # The server was away when the sweep began.
                super().setup()
            super().log_trial_start(trial)

        def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
            if self.mlflow_util.experiment_id is None or trial not in self._trial_runs:
                Runs.log_trial_start(self, trial)
            super().log_trial_result(iteration, trial, result)

    class MLflow(_Apart, Runs):
        pass

    return MLflow(os.environ["MLFLOW_TRACKING_URI"], experiment_name=space.name, tags={"store": location})


def _wandb(space: Space, location: str) -> tune.Callback:
    from ray.air.integrations.wandb import WandbLoggerCallback

    class Project(WandbLoggerCallback):
        """A project named as the search space, unless WANDB_PROJECT_NAME says otherwise."""

        def setup(self, *arguments: Any, **info: Any) -> None:
            # The key is left for wandb to find: in ~/.netrc, or in the environment that its processes have from this one.
            # Ray's callback would hand it on in a runtime environment, which Ray logs.
            os.environ.pop("WANDB_API_KEY", None)

    class WeightsAndBiases(_Apart, Project):
        pass

    return WeightsAndBiases(
        project=os.environ.get("WANDB_PROJECT_NAME") or space.name,
        group=os.environ.get("WANDB_RUN_GROUP"),
        upload_timeout=int(LAST_WORDS) // 2,
    )
