"""One test of a hypothesis on one sweep: the cells that it is about, its columns, its words and its bound."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from raysweep.analysis.columns import column_of_setting, words
from raysweep.analysis.findings import Array, Finding, Tests
from raysweep.analysis.hypothesis_statistics import within_size_spread
from raysweep.space.hypotheses import Among, Test
from raysweep.space.hypothesis_columns import columns_named


def chosen(among: Among, cells: pd.DataFrame, planned_sizes: Sequence[float] = ()) -> pd.Series:
    """(n,) of each cell, whether a test of `among` is about it; the smallest size is that of all that are planned."""
    kept = pd.Series(True, index=cells.index)
    if among.tokens_per_parameter is not None:
        kept &= cells["tokens"] >= among.tokens_per_parameter * cells["parameters"]
    if among.block is not None and "block" in cells:
        kept &= cells["block"] == among.block
    if among.sizes is not None:
        sizes = planned_sizes or sorted(cells["parameters"].unique())
        half = (len(sizes) + 1) // 2
        of = {"smallest": sizes[:1], "largest": sizes[-1:], "smaller half": sizes[:half], "larger half": sizes[-half:]}
        kept &= cells["parameters"].isin(of[among.sizes])
    return kept


@dataclass(frozen=True)
class Measured:
    """One test on one sweep, with the words and bounds that it uses."""

    of_sweep: Tests
    test: Test

    @property
    def spec(self) -> Any:
        """The kind's own fields."""
        return getattr(self.test, self.test.kind)

    @property
    def tests(self) -> Tests:
        """The tests on the cells that this one is about."""
        kept = chosen(self.test.among, self.of_sweep.cells, self.of_sweep.sweep.planned_sizes)
        return self.of_sweep if kept.all() else replace(self.of_sweep, sweep=self.of_sweep.sweep.of(kept))

    @property
    def columns(self) -> list[str]:
        """The columns that the test names, `loss` and settings left out."""
        return columns_named(self.test)

    @property
    def unmet(self) -> str:
        """Why the sweep is not such that the test would say anything; empty where it is."""
        needs, sweep = self.test.needs, self.of_sweep.sweep
        if needs.fine_tuning_steps is not None:
            for task, steps in sweep.fine_tuning_steps.items():
                subject = task.removeprefix("finetune_")
                of_task = (f"finetune_{subject}_", f"forgetting_{subject}_")
                if steps < needs.fine_tuning_steps and any(column.startswith(of_task) for column in self.columns):
                    return f"{steps} steps of {task}; at least {needs.fine_tuning_steps} are needed"
        if needs.decay_within is not None and len(sweep.cells):
            decayed = sweep.cells["learning_rate"] * sweep.cells["weight_decay"] * sweep.cells["steps"]
            median = float((1 / decayed.replace(0, np.nan)).fillna(np.inf).median())
            if median > needs.decay_within:
                over, most = (f"{100 * share:.2g}%" for share in (median, needs.decay_within))
                return f"weight decay acts over {over} of the median run; at most {most} is needed"
        return ""

    @property
    def narrowed(self) -> bool:
        """Whether it is about some cells only."""
        return self.test.among != Among()

    def column(self, name: str) -> str:
        """The column of a name in the file."""
        return self.of_sweep.loss if name == "loss" else name

    @property
    def over(self) -> str:
        """The column of the setting that the test varies."""
        return column_of_setting(self.spec.over)

    def words(self, name: str) -> str:
        return self.of_sweep.loss_words if name == "loss" else words(name)

    def called(self, default: str = "") -> str:
        """What tables call the effect."""
        if not self.test.called:
            return default
        of = getattr(self.spec, "of", "")
        said = self.test.called.replace("{loss}", self.of_sweep.loss_words)
        return said.replace("{of}", self.words(of) if isinstance(of, str) else "")

    @property
    def rule(self) -> str:
        """What is expected, in numbers."""
        kind, _, rest = self.test.expect.partition(" ")
        if kind != "within":
            return self.test.expect
        number, _, spreads = rest.partition(" ")
        if not spreads:
            return f"within \N{PLUS-MINUS SIGN}{number}"
        margin = float(number) * within_size_spread(self.of_sweep.cells, self.column(self.spec.of))
        return f"within \N{PLUS-MINUS SIGN}{margin:.3g}" if margin > 0 else "within \N{PLUS-MINUS SIGN}0.01"

    def resampled(
        self, default: str, columns: tuple[str, ...], statistic: Callable[[pd.DataFrame], Callable[[Array], Array]],
        **more: Any,
    ) -> Finding:  # fmt: skip
        return self.tests.resampled(self.called(default), self.rule, columns, statistic, **more)
