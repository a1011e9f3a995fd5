"""The experiment trackers that a search space asks for by `loggers`, through Ray Tune's own loggers.

Each is told the rows of every cell's training as they are reported, by step, and the cell's settings as hyperparameters.
They run in the driver, each in its own thread: one that is down blocks nothing. What they show is a copy: results
are in the store.
"""

from __future__ import annotations

import importlib.util
import logging
import netrc
import os
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from raysweep.errors import UserError, one_line
from raysweep.space.space import Space
from raysweep.store import Store
from raysweep.sweep.events import CellFailed, CellFinished, CellReported, CellStarted, Event

if TYPE_CHECKING:
    from ray.tune.experiment import Trial
    from ray.tune.logger import LoggerCallback

log = logging.getLogger("raysweep")

# Logger -> the package that it needs, and the name it is installed by.
PACKAGES = {
    "tensorboard": ("tensorboardX", "tensorboardX"),  # Ray Tune brings it.
    "mlflow": ("mlflow", "'raysweep[mlflow]'"),
    "wandb": ("wandb", "'raysweep[wandb]'"),
}

# How long, in seconds, the end of a sweep waits for a tracker that was not told everything yet.
CLOSE_TIMEOUT_S = 60.0


def check(space: Space) -> None:
    """Raise `UserError` where a logger's package is not installed, or what it needs is not set."""
    for name in space.loggers:
        module, package = PACKAGES[name]
        if importlib.util.find_spec(module) is None:
            raise UserError(f"the logger {name} of {space.name} needs {module}: pip install {package}")
    if "mlflow" in space.loggers and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise UserError(
            f"the logger mlflow of {space.name} needs MLFLOW_TRACKING_URI in the environment: set it to your server"
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


def trackers(space: Space, location: str) -> list[BackgroundLogger]:
    """The trackers of a search space whose store is at `location`, each a subscriber of events."""
    make = {"tensorboard": _tensorboard, "mlflow": _mlflow, "wandb": _wandb}
    cells = {cell.id: cell.describe() for cell in space.cells}
    folder = os.getcwd() if "://" in location else location
    return [BackgroundLogger(*make[name](space, location), cells, folder) for name in space.loggers]


class BackgroundLogger:
    """Tells one of Tune's loggers of a sweep's events, in a thread.

    `cells` has the settings of each cell by its id; what a tracker writes for itself is put into `folder`.
    """

    def __init__(self, name: str, logger: LoggerCallback, cells: Mapping[str, dict[str, Any]], folder: str) -> None:
        self.name = name
        self._logger, self._cells = logger, cells
        self._trials: dict[str, Trial] = {}
        self._began = time.strftime("%Y%m%d-%H%M%S")
        self._folder = folder
        self._calls: queue.SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()
        self._calls.put((logger.setup, ()))

    def __call__(self, event: Event) -> None:
        """Pass on the events that a tracker shows."""
        match event:
            case CellStarted():
                self._calls.put((self._logger.log_trial_start, (self._trial(event.cell),)))
            case CellReported() if "validation_loss" in event.row:
                trial = self._trial(event.cell)
                row = {**event.row, "step": event.step, "tokens": event.tokens}
                row |= {"tokens_per_second": event.tokens_per_second, "config": trial.config}
                # Loggers that need a count are given the step.
                row |= {"timesteps_total": event.step, "training_iteration": event.step}
                self._calls.put((self._logger.log_trial_result, (event.step, trial, row)))
            case CellFinished():
                self._calls.put((self._logger.log_trial_end, (self._trial(event.cell), False)))
            case CellFailed():
                self._calls.put((self._logger.log_trial_end, (self._trial(event.cell), event.process_lost)))

    def close(self, wait: bool = True) -> None:
        """Wait for the tracker to be told everything, for `CLOSE_TIMEOUT_S` seconds at most, unless there is no time to."""
        self._calls.put((self._logger.on_experiment_end, (list(self._trials.values()),)))
        self._calls.put(None)
        self._thread.join(CLOSE_TIMEOUT_S if wait else 0.0)
        if self._thread.is_alive():
            log.warning("%s does not answer and was not told everything; results are in the store", self.name)

    def _trial(self, cell: str) -> Trial:
        """The cell as Tune's loggers know it."""
        from ray.tune.experiment import Trial  # After Ray's environment is set.

        if cell not in self._trials:
            config = {"cell": self._cells[cell]}
            trial = self._trials[cell] = Trial("cell", stub=True, config=config, evaluated_params=config)
            trial.custom_trial_name = cell
            # What the Weights & Biases logger asks of it: a group for the runs, and the folder of its own `wandb` folder.
            storage = SimpleNamespace(experiment_dir_name=self._began, trial_driver_staging_path=self._folder)
            trial.storage = storage  # type: ignore[assignment]
        return self._trials[cell]

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call[0](*call[1])
            except Exception as error:  # A tracker that is away must not end a sweep.
                message = one_line(error)
                log.warning("%s was not told of a row: %s: %s", self.name, type(error).__name__, message)


def _tensorboard(space: Space, location: str) -> tuple[str, LoggerCallback]:
    from ray.tune.logger import TBXLoggerCallback
    from tensorboardX import SummaryWriter

    class Files(TBXLoggerCallback):
        """Event files in <store>/tensorboard/<cell>/."""

        def __init__(self) -> None:
            super().__init__()
            # The writer of event files can hang forever on a bucket: the files are written here and copied.
            self._local_folder = tempfile.TemporaryDirectory(prefix="raysweep-") if "://" in location else None

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
            return Path(
                self._local_folder.name if self._local_folder else location, "tensorboard", trial.config["cell"]["id"]
            )

        def _copy(self, trial: Any) -> None:
            if self._local_folder:
                for file in self._folder(trial).iterdir():
                    Store(location).put_file(file, str(file.relative_to(self._local_folder.name)))

    return "TensorBoard", Files()


def _mlflow(space: Space, location: str) -> tuple[str, LoggerCallback]:
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    class Runs(MLflowLoggerCallback):
        """An experiment named as the search space, where MLFLOW_TRACKING_URI says."""

        def log_trial_start(self, trial: Any) -> None:
            if self.mlflow_util.experiment_id is None:  # The server was away when the sweep began.
                super().setup()
            super().log_trial_start(trial)

        def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
            if self.mlflow_util.experiment_id is None or trial not in self._trial_runs:
                self.log_trial_start(trial)
            super().log_trial_result(iteration, trial, result)

    return "MLflow", Runs(os.environ["MLFLOW_TRACKING_URI"], experiment_name=space.name, tags={"store": location})


def _wandb(space: Space, location: str) -> tuple[str, LoggerCallback]:
    from ray.air.integrations.wandb import WandbLoggerCallback

    class Project(WandbLoggerCallback):
        """A project named as the search space, unless WANDB_PROJECT_NAME says otherwise."""

        def setup(self, *arguments: Any, **info: Any) -> None:
            # The key is left for wandb to find: in ~/.netrc, or in the environment that its processes have from this one.
            # Ray's callback would hand it on in a runtime environment, which Ray logs.
            os.environ.pop("WANDB_API_KEY", None)

    return "Weights & Biases", Project(
        project=os.environ.get("WANDB_PROJECT_NAME") or space.name,
        group=os.environ.get("WANDB_RUN_GROUP"),
        upload_timeout=int(CLOSE_TIMEOUT_S) // 2,
    )
