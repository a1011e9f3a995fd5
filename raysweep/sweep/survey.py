"""Which cells are done, diverged, failed or left, from the search space and the store alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from raysweep.space.cell import Cell
from raysweep.space.space import Space
from raysweep.store import Store
from raysweep.store.checkpoints import names, step_of
from raysweep.store.index import read_all
from raysweep.store.results import evaluated, finished
from raysweep.store.schemas import FAILURES
from raysweep.store.store import TRAIN


@dataclass
class CellState:
    """Where one planned cell stands.

    `training` is done, diverged, failed, started or new; an evaluation is done, failed or new (those of a diverged cell are
    not asked for).
    """

    cell: Cell
    training: str
    evaluations: dict[str, str] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    """Stage (`train` or a task) -> its last error."""
    versions: str = ""
    """The versions that it was trained under; empty until it is trained."""

    @property
    def trained(self) -> bool:
        """Whether nothing is left to train."""
        return self.training in ("done", "diverged")

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        return self.trained and set(self.evaluations.values()) <= {"done"}


@dataclass
class Survey:
    """Where every planned cell stands, in the order of the search space."""

    states: list[CellState]

    def count(self, *training: str) -> int:
        """How many cells' training is in one of these states."""
        return sum(state.training in training for state in self.states)

    @property
    def left(self) -> list[CellState]:
        """The cells that are not complete."""
        return [state for state in self.states if not state.complete]

    @property
    def errors(self) -> dict[str, dict[str, str]]:
        """Cell -> stage -> its last error, of the cells that have some."""
        return {state.cell.id: dict(state.errors) for state in self.states if state.errors}

    def counts(self, running: Iterable[str] = ()) -> dict[str, dict[str, int]]:
        """What `status --json` prints. Cells that are running are not also counted as failed or left."""
        running = set(running) & {state.cell.id for state in self.states if not state.trained}
        cells = dict.fromkeys(("planned", "done", "running", "failed", "diverged", "left"), 0)
        evaluations = dict.fromkeys(("planned", "done", "failed", "left"), 0)
        for state in self.states:
            cells["planned"] += 1
            if state.cell.id in running:
                cells["running"] += 1
            else:
                cells[{"started": "left", "new": "left"}.get(state.training, state.training)] += 1
            for outcome in state.evaluations.values():
                evaluations["planned"] += 1
                evaluations["left" if outcome == "new" else outcome] += 1
        return {"cells": cells, "evaluations": evaluations}

    def versions(self) -> dict[str, int]:
        """The versions that cells were trained under, and how many by each."""
        return dict(Counter(state.versions for state in self.states if state.versions))


def status(space: Space, store: str | Path | Store) -> Survey:
    """Where every cell of a search space stands, while a sweep runs or after.

    Parameters
    ----------
    space
        Which cells, and which evaluations.
    store
        The folder or URI of the results.

    Returns
    -------
    Survey
        `states` has each cell with its training, its evaluations and its errors; `counts()` counts them.

    Raises
    ------
    StoreError
        Where the store cannot be read.

    Examples
    --------
    >>> space = raysweep.load("search_spaces/demo.yaml")
    >>> raysweep.status(space, "runs/none").counts()["cells"]["planned"]
    16
    """
    return survey(Store.at(store), space)


def survey(store: Store, space: Space) -> Survey:
    """Read the store and say where each planned cell stands."""
    trained = finished(store)
    evaluations = {e.label: evaluated(store, e.label, e.identity) for e in space.evaluations}
    failures = {stage: read_all(store, f"failures/{stage}", FAILURES) for stage in (TRAIN, *evaluations)}
    begun = set(store.directories(TRAIN))

    def error(cell: Cell, stage: str) -> str | None:
        rows = failures[stage].get(cell.id)
        return str(rows[0]["error"]) if rows else None

    states = []
    for cell in space.cells:
        row = trained.get(cell.id)
        state = CellState(cell, row["status"] if row else "new")
        states.append(state)
        if row is not None:
            state.versions = f"raysweep {row['raysweep_version']}, torch {row['torch_version']}"
        if row is None and (failed := error(cell, TRAIN)) is not None:
            state.training, state.errors[TRAIN] = "failed", failed
        elif row is None and cell.id in begun and names(store, store.run_directory(cell.id)):
            state.training = "started"
        if state.training == "diverged":
            continue
        for task in (evaluation.label for evaluation in space.evaluations_of(cell)):
            rows = evaluations[task]
            if row and cell.id in rows:
                state.evaluations[task] = "done"
            elif (failed := error(cell, task)) is not None:
                state.evaluations[task], state.errors[task] = "failed", failed
            else:
                state.evaluations[task] = "new"
    return Survey(states)


def cells_missing_weights(survey: Survey, store: Store) -> set[str]:
    """The trained cells that lack evaluations and whose final weights the store does not have."""
    begun = set(store.directories(TRAIN))

    def steps(cell: Cell) -> set[int]:
        checkpoints = names(store, store.run_directory(cell.id)) if cell.id in begun else []
        return {step_of(name) for name in checkpoints}

    return {s.cell.id for s in survey.left if s.training == "done" and s.cell.steps not in steps(s.cell)}
