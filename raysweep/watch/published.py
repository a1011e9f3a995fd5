"""The folder that `raysweep publish` wrote, as the page shows it: read once."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from raysweep.analysis import explorer, sweep_data
from raysweep.exchange.published import PublishedResults
from raysweep.watch.snapshot import Snapshot


class PublishedReader:
    """A `snapshot.Reader` of results that do not change."""

    def __init__(self, folder: PublishedResults) -> None:
        self.space = folder.space
        self._sweep = sweep_data.published(folder)
        self._content, self._curves = explorer.of_sweep(self._sweep)
        self.curve_columns = list(self._content.curve_columns)
        planned, cells = len(folder.space.cells), len(self._sweep.cells)
        left = planned - cells - len(self._sweep.diverged)
        counts = {"done": cells, "diverged, not shown": len(self._sweep.diverged), "not published": left}
        self._snapshot = Snapshot(
            self._content, 1, {name: number for name, number in counts.items() if number}, {"planned": 0, "done": 0},
            "published results", finished=cells,
        )  # fmt: skip

    def planned(self) -> Snapshot:
        """The sweep before it was read: it was."""
        return self._snapshot

    def read(self) -> Snapshot:
        """The sweep as it was published."""
        return self._snapshot

    def curves(self, column: str, rows: Iterable[int]) -> pd.DataFrame:
        """As `snapshot.Reader.curves`."""
        of = self._curves[self._curves["cell"].isin(set(rows))]
        return of[["cell", "step", "tokens"]].assign(value=of[column].astype(float))
