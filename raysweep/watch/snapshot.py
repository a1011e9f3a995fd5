"""What a sweep looks like now: read from its store again and again, each file once.

Every row has the version that it last changed in, so that a page is sent what it does not have yet.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from raysweep.analysis import explorer
from raysweep.analysis.sweep_data import with_sizes
from raysweep.page.content import Content
from raysweep.space.cell import Cell
from raysweep.space.space import Space
from raysweep.store import Store, lock
from raysweep.store.measures import asked
from raysweep.store.results import results
from raysweep.store.schemas import CELLS, MEASURES, PLAN, TRAJECTORIES
from raysweep.store.store import LIVE
from raysweep.sweep.survey import CellState, Survey, survey
from raysweep.text import abbreviate, duration

STATES = ("done", "diverged", "training", "evaluating", "starting", "failed", "stopped", "waiting")
"""Where a cell can stand, in the order in which the page counts them."""


@dataclass(frozen=True)
class Snapshot:
    """A sweep at one moment."""

    content: Content
    version: int
    """Grows whenever a row changes."""
    counts: dict[str, int]
    """State -> cells."""
    evaluations: dict[str, int]
    """How many are `planned` and `done`."""
    pace: str
    """Who runs it, how fast and for how long, in words."""
    dashboard: str = ""
    failures: list[tuple[str, str, str]] = field(default_factory=list)
    """Cell, stage and error."""
    finished: int = 0
    """Cells that are trained and have their evaluations."""


class Reader:
    """Reads one search space's store; each snapshot costs a listing, and what is new."""

    def __init__(self, space: Space, store: Store) -> None:
        self.space = space
        self.store = Store(store.location, remembers=True)
        self.curve_columns = explorer.curve_columns(_measured(space))
        self._plan = with_sizes(pd.DataFrame([cell.describe() for cell in space.cells]))
        alike = self._plan.drop(columns=["id", "seed"]).assign(corpus=[cell.corpus.key for cell in space.cells])
        self._configuration = alike.groupby(list(alike), dropna=False, sort=False).ngroup()
        self._place = {cell.id: row for row, cell in enumerate(space.cells)}
        self._live: dict[str, pd.DataFrame] = {}
        self._trained: dict[str, tuple[list[Any], pd.DataFrame]] = {}
        self._last: Snapshot | None = None
        self._begun = False

    def planned(self) -> Snapshot:
        """The sweep before its store was read."""
        cells = self._plan.assign(state="waiting", share=0.0)
        shown = self._content(cells, {})
        return Snapshot(shown, 1, {"waiting": len(cells)}, {"planned": 0, "done": 0}, "")

    def read(self) -> Snapshot:
        """The sweep now. Raises `StoreError`, and `FileNotFoundError` where the store was there and is not."""
        self._check_there()
        driver = self._driver()
        self._live = self._live_rows()
        now = survey(self.store, self.space)
        table = results(self.space, self.store)
        self._check_there()  # What went away in between looks like a store in which nothing has run.
        running = {} if driver is None or driver["silent"] else driver["progress"].get("running", {})
        cells = self._cells(now, table, running)
        units = {f.name: f.metadata[b"unit"].decode() for f in table.schema if f.metadata and b"unit" in f.metadata}
        self._last = self._versioned(self._content(cells, units), now, driver, self._last)
        return self._last

    def _check_there(self) -> None:
        begun = self.store.begun()
        if self._begun and not begun:
            raise FileNotFoundError(f"the store {self.store.location} is not there (moved, or not mounted?)")
        self._begun = begun

    def _content(self, cells: pd.DataFrame, units: dict[str, str]) -> Content:
        return explorer.content(cells, units, self.curve_columns, "validation_loss", self._configuration)

    def _driver(self) -> dict[str, Any] | None:
        """What the driver says of itself, and for how long it has been `silent`, 0 while it is not."""
        driver = lock.holder(self.store)
        if driver is None:
            return None
        silence = lock.silence(self.store)
        return {"progress": {}, **driver, "silent": silence if silence > lock.SILENT else 0.0}

    def _live_rows(self) -> dict[str, pd.DataFrame]:
        table = self.store.read_table(LIVE, TRAJECTORIES)
        if table is None:
            return {}
        return {str(cell): rows for cell, rows in table.to_pandas().groupby("cell", sort=False)}

    def _cells(self, now: Survey, table: pa.Table, running: dict[str, dict[str, Any]]) -> pd.DataFrame:
        """A row for each planned cell: settings, where it stands, its results; of one in training its last report."""
        found = table.to_pandas().set_index("id") if table.num_rows else pd.DataFrame(index=pd.Index([], name="id"))
        cells = self._plan.set_index("id", drop=False)
        more = [name for name in found if name not in cells]
        cells = cells.join(found[more])
        for name in TRAJECTORIES.names:
            if name in CELLS.names and name not in cells:
                cells[name] = np.nan
        live = pd.DataFrame({cell: rows.iloc[-1] for cell, rows in self._live.items() if cell in self._place}).T
        unfinished = [cell for cell in live.index if cell not in found.index]
        # Of the learning rate cells have the peak, and rows that of their step.
        for name in [name for name in live if name in cells and name not in ("cell", *PLAN.names)]:
            cells.loc[unfinished, name] = live.loc[unfinished, name].astype(float)
        states = [_state(state, state.cell.id in running, running.get(state.cell.id, {})) for state in now.states]
        ended = dict(zip(table["id"].to_pylist(), table["steps_trained"].to_pylist(), strict=True))
        steps = [self._step(state, running.get(state.cell.id, {}), ended) for state in now.states]
        share = np.array(steps) / cells["steps"].to_numpy(float)
        errors = [next(iter(state.errors.items()), ("", "")) for state in now.states]
        return cells.reset_index(drop=True).assign(
            state=states, step=np.array(steps, dtype=float), share=share,
            stage=[stage for stage, _ in errors], error=[error for _, error in errors],
        )  # fmt: skip

    def _step(self, state: CellState, running: dict[str, Any], ended: dict[str, int]) -> float:
        """How far a cell is: of a diverged one where it ended, of one in training what it says itself."""
        if state.trained:
            return float(ended.get(state.cell.id, state.cell.steps))
        if running.get("step") is not None:
            return float(running["step"])
        rows = self._live.get(state.cell.id)
        return 0.0 if rows is None else float(rows["step"].iloc[-1])

    def _versioned(self, shown: Content, now: Survey, driver: dict[str, Any] | None, last: Snapshot | None) -> Snapshot:
        """The snapshot, whose rows have the version of the last one where they have not changed since."""
        version, cells = (1, None) if last is None else (last.version, last.content.cells)
        names = [column.name for column in shown.columns]
        if cells is None or last is None or names != [column.name for column in last.content.columns]:
            version += 1
            changed = np.full(len(shown.cells), version, dtype=np.int32)
        else:
            differ = np.zeros(len(cells), dtype=bool)
            for name in names:
                old, new = cells[name].to_numpy(), shown.cells[name].to_numpy()
                both_missing = pd.isna(old) & pd.isna(new)
                differ |= ~(both_missing | (old == new))
            version += int(differ.any())
            changed = np.where(differ, version, cells["changed"]).astype(np.int32)
        content = replace(shown, cells=shown.cells.assign(changed=changed))
        counts = shown.cells["state"].value_counts()
        done = [state for state in now.states if state.complete]
        evaluations = now.counts()["evaluations"]
        return Snapshot(
            content, version, {name: int(counts[name]) for name in STATES if name in counts},
            {name: evaluations[name] for name in ("planned", "done")}, _pace(driver, now, self._begun),
            (driver or {"progress": {}})["progress"].get("dashboard", ""),
            [(cell, stage, error) for cell, of_cell in now.errors.items() for stage, error in of_cell.items()], len(done),
        )  # fmt: skip

    def curves(self, column: str, rows: Iterable[int]) -> pd.DataFrame:
        """One column over training of some cells: `cell` (the row), `step`, `tokens`, `value`. Raises `StoreError`."""

        def curve(row: int) -> pd.DataFrame | None:
            found = self._trajectory(self.space.cells[row])
            if found is None or column not in found:
                return None
            return found[["step", "tokens"]].assign(cell=np.int32(row), value=found[column].astype(float))

        with ThreadPoolExecutor(16) as threads:
            parts = [part for part in threads.map(curve, rows) if part is not None]
        if not parts:
            return pd.DataFrame({"cell": np.array([], np.int32), "step": [], "tokens": [], "value": []}, dtype=float)
        return pd.concat(parts, ignore_index=True)

    def _trajectory(self, cell: Cell) -> pd.DataFrame | None:
        """The rows of a cell over training, and what was measured of it; those of trained cells stay in memory."""
        remembered = self.store.remembered
        files = [remembered.get(of, {}).get(f"{cell.id}.parquet", (None,))[0] for of in ("trajectories", "measures")]
        if files[0] is None:
            return self._live.get(cell.id)
        if self._trained.get(cell.id, (None, None))[0] != files:
            table = self.store.read_table(self.store.trajectory_file(cell.id), TRAJECTORIES)
            if table is None:
                return None
            measured = self.store.read_rows(self.store.measures_file(cell.id), MEASURES) if files[1] else None
            wanted = asked(self.space, cell) if measured else set()
            # A store may have others: of more sequences, or of an older version.
            kept = [row for row in measured or [] if (row["matrix"], row["metric"], row["settings"]) in wanted]
            self._trained[cell.id] = files, explorer.curves_of(table.to_pandas(), pd.DataFrame(kept))
        return self._trained[cell.id][1]


def _state(state: CellState, running: bool, progress: dict[str, Any]) -> str:
    if state.training == "diverged":
        return "diverged"
    if state.complete:
        return "done"
    if running:
        if progress.get("starting"):
            return "starting"
        return "evaluating" if state.trained else "training"
    if state.errors:
        return "failed"
    return "stopped" if state.training in ("started", "done") else "waiting"


def _pace(driver: dict[str, Any] | None, now: Survey, begun: bool) -> str:
    """Who runs the sweep, how fast, and for how much longer."""
    if driver is None and not begun:
        return "no sweep has begun in this store"
    if driver is None:
        return "complete" if not now.left else "nothing runs on this store now"
    if driver["silent"]:
        silence = duration(driver["silent"])
        return f"the sweep on {driver['host']} has said nothing for {silence}: it may be gone, or its machine away"
    progress = driver["progress"]
    said = [f"running on {driver['host']} since {driver['started']}"]
    if progress.get("waiting"):
        said.append(f"waiting: {progress['waiting']}")
    elif progress.get("share", 0.0) >= 1:
        said.append("all cells are trained, evaluating")
    elif progress.get("tokens_per_second"):
        said.append(f"{abbreviate(progress['tokens_per_second'])} tokens/s")
        if "share" in progress:
            said.append(f"{math.floor(100 * progress['share'])}% of the tokens trained")
        if progress.get("seconds_left") is not None:
            said.append(f"about {duration(progress['seconds_left'])} left")
    return ", ".join(said)


def _measured(space: Space) -> list[tuple[str, str]]:
    """Metric and matrix of everything that the search space measures over training, of any cell."""
    found: dict[tuple[str, str], None] = {}
    shapes = {(c.size.depth, c.size.heads, c.corpus.name): c for c in space.cells} if space.measure else {}
    for cell in shapes.values():
        found |= dict.fromkeys((metric, matrix) for matrix, metric, _ in sorted(asked(space, cell)))
    return list(found)
