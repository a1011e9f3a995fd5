"""What Prometheus sees of a running sweep: gauges of the driver's, on Ray's own metrics port.

`ray.util.metrics` puts `ray_` before each name. `monitoring/` has what reads them.
"""

from __future__ import annotations

from ray.util.metrics import Gauge

from raysweep.sweep.events import CellFailed, CellFinished, CellReported, ClusterLost, Event, Heartbeat
from raysweep.sweep.state import RunState


class Gauges:
    """The gauges of one sweep; every one has the label `sweep`."""

    def __init__(self, sweep: str, state: RunState) -> None:
        self._labels = {"sweep": sweep}
        self._state = state
        self._rows: dict[str, dict[str, float]] = {}
        """What the cells that run reported last."""
        self._cells = self._gauge("cells", "Cells of the sweep by state", "state")
        self._tokens = self._gauge("tokens", "Tokens that cells have been trained on")
        self._planned = self._gauge("tokens_planned", "Tokens that all cells will have been trained on")
        self._rate = self._gauge("tokens_per_second", "Tokens per second of all cells together")
        self._left = self._gauge("seconds_left", "Time until all cells are trained, as `raysweep status` says it")
        self._of_cell = {
            key: self._gauge(f"cell_{key}", text, "cell")
            for key, text in (
                ("tokens", "Tokens that the cell has been trained on"),
                ("tokens_per_second", "Tokens per second of the cell"),
                ("train_loss", "Training loss, nats per token"),
                ("validation_loss", "Validation loss, nats per token"),
                ("effective_rank_W", "Effective rank of W, as a fraction of the width"),
                ("cosine_W", "Mean cosine between rows of W"),
                ("isotropy_W", "Isotropy of W"),
                ("gradient_norm", "L2 norm of the gradient before clipping"),
                ("learning_rate", "Learning rate"),
            )
        }

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        gauge = Gauge(f"raysweep_{name}", text, tag_keys=("sweep", *labels))
        gauge.set_default_tags(self._labels)
        return gauge

    def __call__(self, event: Event) -> None:
        """Set what an event changes."""
        match event:
            case ClusterLost():
                return  # With what would have shown it.
            case CellReported():
                row = {**event.row, "tokens": event.tokens, "tokens_per_second": event.tokens_per_second}
                self._rows.setdefault(event.cell, {}).update(
                    {key: row[key] for key in self._of_cell if row.get(key) is not None}
                )
                self._set_cell(event.cell)
            case CellFinished() | CellFailed():
                # A cell that is over trains at no rate, and is kept no longer.
                self._rows.pop(event.cell, None)
                self._of_cell["tokens_per_second"].set(0.0, {"cell": event.cell})
            case Heartbeat():
                # Ray drops a gauge 20 s after it exported what it was set to last.
                for cell in self._rows:
                    self._set_cell(cell)
        self._set_sweep()

    def _set_sweep(self) -> None:
        counts, pace = self._state.counts(), self._state.pace()
        for state, number in counts.items():
            self._cells.set(number, {"state": state})
        self._tokens.set(self._state.tokens_trained)
        self._planned.set(self._state.tokens_planned)
        self._rate.set(pace.tokens_per_second)
        self._left.set(pace.seconds_left if pace.seconds_left is not None else 0.0)

    def _set_cell(self, cell: str) -> None:
        for key, value in self._rows[cell].items():
            self._of_cell[key].set(value, {"cell": cell})
