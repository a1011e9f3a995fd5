"""The tables of a cell in a store, written without training it."""

from raysweep.space.cell import Cell
from raysweep.space.evaluations import Evaluation
from raysweep.store import Store
from raysweep.store.schemas import CELLS, EVALUATIONS, TRAJECTORIES


def write_trained(store: Store, cell: Cell, losses: dict[int, float], loss: float) -> None:
    """A cell that is trained: its validation loss by step, and at its end."""
    rows = [{"cell": cell.id, "step": s, "tokens": 128 * s, "validation_loss": losses[s]} for s in losses]
    store.write_table(store.trajectory_file(cell.id), rows, TRAJECTORIES)
    row = cell.describe() | {"status": "done", "steps_trained": cell.steps, "validation_loss": loss}
    store.write_table(store.cell_file(cell.id), [row], CELLS)


def write_value(store: Store, cell: Cell, task: Evaluation, metric: str, value: float, unit: str) -> None:
    """One number of an evaluation."""
    row = {"cell": cell.id, "task": task.label, "metric": metric, "value": value, "unit": unit}
    store.write_table(store.evaluation_file(cell.id, task.label, task.identity), [row], EVALUATIONS)
