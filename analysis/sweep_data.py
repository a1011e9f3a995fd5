"""The tables of a sweep as data frames, and which columns are tasks, metrics and hyperparameters: found by their names.

- A **task** is a column that ends in `_loss`, `_accuracy` or, where there is no loss of the same text, `_bits_per_byte`. The
  tasks of the paper carry the names of its tables.
- A **metric** ends in `_W` (of the unembedding) or `_H` (of the final-layer representations).
- A **hyperparameter** is a setting that can be chosen freely and differs between cells that are otherwise equal.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from raysweep.analysis.columns import (
    BASE_RATE,
    PAPER_METRICS,
    PAPER_TASKS,
    column_of_setting,
    of_domain,
    of_whole_model,
    words,
)
from raysweep.errors import UserError
from raysweep.exchange.published import PublishedResults
from raysweep.space.corpus import OLMO_VOCABULARY
from raysweep.space.hypotheses import Hypotheses, paper_hypotheses
from raysweep.space.size import SIZES
from raysweep.space.space import Space
from raysweep.store import Store, declarations
from raysweep.store import measures as measures_table
from raysweep.store.results import nothing_finished, results
from raysweep.store.schemas import MEASURES, PLAN, TRAJECTORIES

# What follows from other settings, or names a cell.
_DERIVED = {"id", "size", "parameters", "steps", "flops", "learning_rate", "validation_sequences", "reports"}
_NOT_A_TASK = {"train_loss"}


@dataclass(frozen=True)
class SweepData:
    """The finished cells of a sweep and what its columns are."""

    name: str
    cells: pd.DataFrame
    """One row per cell that is done, diverged ones left out."""
    trajectories: pd.DataFrame
    """Rows over training: `cell`, `step`, `tokens`, losses and metrics."""
    planned: int
    """Cells in the search space."""
    planned_sizes: tuple[float, ...] = ()
    """Parameters of every size that is planned, the smallest first; empty where nobody knows, or `where` chose cells."""
    diverged: tuple[str, ...] = ()
    """Ids of cells whose loss became NaN; no statistic includes them."""
    settings: tuple[str, ...] = tuple(PLAN.names)
    """Columns of `cells` that were decided before training."""
    measures: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=MEASURES.names))
    """What `measure` asked for: `cell`, `step`, `matrix`, `metric`, `value`."""
    units: dict[str, str] = field(default_factory=dict)
    protocols: dict[str, str] = field(default_factory=dict)
    """Task -> how it was evaluated."""
    fine_tuning_steps: dict[str, int] = field(default_factory=dict)
    """Task -> the fewest steps that a cell was trained on for it; those that do not train are left out."""
    hypotheses: Hypotheses = field(default_factory=paper_hypotheses)
    """What is claimed of it."""
    declared: str = ""
    """When that was declared; empty where nobody knows."""
    condition: str = ""
    """What `where` chose the cells by."""
    chosen: str = ""
    """How the cells were chosen where it was not by a grid alone, in words."""
    whole: SweepData | None = None
    """Of a sweep's `design` all of it, where an intervention acts on the W of some cells."""
    models: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Where each model is from and what is not known of it, of those that others have trained; else empty."""
    facts: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Where each setting of such models is from: `setting`, `how`, `source`."""
    sampled: dict[str, bool] = field(default_factory=dict)
    """Column of each setting that was sampled -> whether equal factors are equal steps of it."""

    @cached_property
    def tasks(self) -> dict[str, str]:
        """Task -> its column, the paper's tasks first."""
        # `z_loss` is a setting.
        others = {*_NOT_A_TASK, *PLAN.names}
        columns = [c for c in self.cells if self._is_task(c) and c not in others and not of_domain(c)]
        columns = [c for c in columns if self.cells[c].notna().any()]
        measured = {c: self.cells[c].notna().sum() for c in columns}
        if measured.get("in_distribution_loss", 0) > measured.get("validation_loss", 0) / 2:
            # The same text distribution, measured during training on less of it: for sweeps without evaluations.
            columns = [c for c in columns if c != "validation_loss"]
        paper = {PAPER_TASKS[c]: c for c in PAPER_TASKS if c in columns}
        return paper | {c.removesuffix("_loss"): c for c in columns if c not in PAPER_TASKS}

    def _is_task(self, column: str) -> bool:
        """Bits per byte are one where there is no loss of the same text, which says the same."""
        if column.endswith("_bits_per_byte"):
            return f"{column.removesuffix('_bits_per_byte')}_loss" not in self.cells
        return column.endswith(("_loss", "_accuracy"))

    @property
    def main_task(self) -> str:
        """The loss that the claims and figures about pretraining use."""
        return "validation" if "validation" in self.tasks else "in_distribution"

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        """The paper's metrics first, then what else was measured of the whole model and not of one of its layers.

        `finetune_python_cosine_W` is `cosine_W` of another model, and none of the cell's.
        """
        columns = [c for c in self.cells if c.endswith(("_W", "_H")) and not of_domain(c)]
        own = [c for c in columns if not c.startswith(("finetune_", "forgetting_"))]
        own += [c for c in of_whole_model(self.measures) if c in self.cells]
        own = [c for c in own if self.cells[c].notna().any()]
        return tuple(c for c in PAPER_METRICS if c in own) + tuple(c for c in own if c not in PAPER_METRICS)

    @cached_property
    def free_settings(self) -> list[str]:
        """The settings that a search space chooses, of which the others follow."""
        free = [s for s in self.settings if s in self.cells and s not in _DERIVED]
        return [*free, BASE_RATE] if BASE_RATE in self.cells else free

    @cached_property
    def hyperparameters(self) -> list[str]:
        """The numbers that were varied at equal size and with everything else equal, except the seed; or were sampled."""
        others = [s for s in self.free_settings if s not in ("width", "seed")]
        return [s for s in others if self.over_seeds.slices(s, self.at_equal_steps(s)) or self.is_sampled(s)]

    def is_sampled(self, setting: str) -> bool:
        """Whether a setting was sampled, and is a number of which there are several."""
        setting = column_of_setting(setting)
        if setting not in self.sampled or setting not in self.cells:
            return False
        values = self.cells[setting]
        return bool(pd.api.types.is_numeric_dtype(values) and values.nunique() > 1)

    @cached_property
    def kinds(self) -> list[str]:
        """The settings that are no numbers and differ between cells, such as the block or the corpus."""
        texts = [s for s in self.free_settings if not pd.api.types.is_numeric_dtype(self.cells[s])]
        return [s for s in texts if self.cells[s].nunique() > 1]

    def at_equal_steps(self, hyperparameter: str) -> bool:
        """Whether its values are compared at equal steps: token budgets are, as in the paper, where any two can be."""
        return hyperparameter == "tokens" and bool(self.over_seeds.slices(hyperparameter, equal_steps=True))

    @cached_property
    def controls(self) -> pd.DataFrame:
        """What the partial Spearman correlation controls for: size, tokens and every setting that varies.

        A setting that is no number becomes one column of 0 and 1 for each of its values but the first.
        """
        # The rate itself stands for its factor and its base, the number of parameters for the width.
        stands_for = {"learning_rate_factor", BASE_RATE, "width", "seed"}
        names = ["parameters", "tokens", "batch_size", "weight_decay", "learning_rate", "final_learning_rate_fraction"]
        names += [s for s in self.free_settings if s not in names and s not in stands_for]
        varied = [n for n in names if n in self.cells and self.cells[n].nunique(dropna=False) > 1]
        if not varied:
            return pd.DataFrame(index=self.cells.index)
        values = pd.get_dummies(self.cells[varied], drop_first=True).astype(float)
        # A setting that a cell does without is 0 there, and another level for those that do without.
        without = values.isna().loc[:, lambda absent: absent.any()].astype(float).add_suffix("_absent")
        return pd.concat([values.fillna(0.0), without], axis=1)

    @cached_property
    def configurations(self) -> np.ndarray[Any, Any]:
        """(n,) the number of each cell's configuration: cells that differ by their seed only share it."""
        settings = [s for s in self.free_settings if s != "seed"]
        return np.asarray(self.cells.groupby(settings, dropna=False, sort=False).ngroup())

    @cached_property
    def is_untreated(self) -> pd.Series:
        """(n,) of each cell, whether no intervention acts on its W."""
        present = [s for s in ("effective_rank_target", "spectral_norm_cap") if s in self.cells]
        return self.cells[present].isna().all(axis=1)

    @cached_property
    def design(self) -> SweepData:
        """The sweep that regressions, claims and effects of hyperparameters are about.

        Without the cells whose W an intervention acts on, where others are left alone; and without seeds that were added to
        a few configurations to learn the noise: those would count several times, and be compared with cells of other
        seeds. A seed belongs to the design where at least half as many configurations have it as have the commonest.
        """
        kept = self.is_untreated if self.is_untreated.any() else ~self.is_untreated
        if "seed" in self.cells and "seed" not in self.sampled:
            configurations = self.cells["seed"][kept].value_counts()
            common = configurations.index[configurations >= configurations.max() / 2]
            # Of models that others trained it may not be known.
            kept = kept & (self.cells["seed"].isin(common) | self.cells["seed"].isna())
        if kept.all():
            return self
        design = self.of(kept)
        return design if self.is_untreated.all() else replace(design, whole=self)

    def of(self, kept: pd.Series) -> SweepData:
        """The sweep of those cells for which `kept` (n,) is true."""
        return replace(self, cells=self.cells[kept].reset_index(drop=True))

    def where(self, condition: str) -> SweepData:
        """The sweep of those cells for which a condition on their columns holds, such as `steps >= 2048 and width > 16`.

        It is an expression of pandas, and as powerful as Python: not for text out of a file. Raises `UserError` where it
        cannot be read, or holds for none.
        """
        if "#" in condition:  # Python would leave out what follows.
            raise UserError(f"--where {condition!r}: '#' begins a comment: leave it out")
        try:
            kept = self.cells.eval(condition, engine="python")
            if not isinstance(kept, pd.Series) or kept.dtype != bool:
                raise TypeError("it is not true or false for each cell")
        except Exception as error:  # Of any kind, by what was typed.
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"--where {condition!r}: {reason}; a condition on the columns of `raysweep results`, such as steps >= 2048"
            ) from None
        if not kept.any():
            raise UserError(f"--where {condition!r} holds for none of the {len(kept)} finished cells")
        return replace(self.of(kept), condition=condition, planned_sizes=())

    @cached_property
    def over_seeds(self) -> SweepData:
        """The sweep with one row per configuration, the mean over its seeds: repetitions are no further configurations.

        Which seeds those were no longer counts.
        """
        if len(np.unique(self.configurations)) == len(self.cells):
            return replace(self, cells=self.cells.assign(seed=0))
        by_configuration = self.cells.groupby(self.configurations, sort=False)
        cells = by_configuration.first()
        for column in self.cells.select_dtypes("number"):
            # What all seeds share is taken as it is: the mean of equal numbers may differ from them in the last bit.
            if column not in (*self.settings, BASE_RATE):
                cells[column] = by_configuration[column].mean()
        return replace(self, cells=cells.assign(seed=0))

    def slices(self, hyperparameter: str, equal_steps: bool = False) -> list[pd.DataFrame]:
        """Groups of at least two cells that differ in one hyperparameter and nothing else, ordered by it.

        `equal_steps` asks that the number of steps is equal and lets the batch size differ: the way that the paper
        compares token budgets.
        """
        if not pd.api.types.is_numeric_dtype(self.cells[hyperparameter]):
            return []
        if (hyperparameter, equal_steps) not in self._slices:
            fixed = [s for s in self.free_settings if s != hyperparameter]
            if equal_steps:
                fixed = [s for s in fixed if s != "batch_size"] + ["steps"]
            # Numbers in place of settings: grouping by twenty columns takes twenty times as long.
            having = self.cells.dropna(subset=[hyperparameter])
            group = having.groupby(fixed, dropna=False, sort=False).ngroup()
            several = having[hyperparameter].groupby(group).transform("nunique") > 1
            self._slices[hyperparameter, equal_steps] = [
                cells.sort_values(hyperparameter, kind="stable")
                for _, cells in having[several].groupby(group[several], sort=False)
            ]
        return self._slices[hyperparameter, equal_steps]

    @cached_property
    def _slices(self) -> dict[tuple[str, bool], list[pd.DataFrame]]:
        return {}

    def label(self, column: str) -> str:
        """A column's name for an axis, with its unit."""
        unit = self.units.get(column, "").partition(",")[0]
        return f"{words(column)} ({unit})" if unit and unit != words(column) else words(column)


def load(store: Store, space: Space) -> SweepData:
    """The sweep of a search space from its store; cells that are not finished are left out.

    Raises `UserError` where none is finished.
    """
    table = results(space, store)
    if not len(table):
        raise UserError(nothing_finished(space, store))
    cells = table.to_pandas()
    trajectories = []
    measures = [MEASURES.empty_table()]
    for cell in cells["id"]:
        rows = store.read_table(store.trajectory_file(cell), TRAJECTORIES)
        if rows is not None:
            trajectories.append(rows.to_pandas())
        if space.measure and (measured := store.read_table(store.measures_file(cell), MEASURES)) is not None:
            measures.append(measured)
    return from_tables(
        space.name,
        cells,
        pd.concat(trajectories),
        len(space.cells),
        measures=_asked(pa.concat_tables(measures).to_pandas(), space),
        units=_units(table),
        **said_of_space(space, declarations.read(store, space.name)),
    )


def published(folder: PublishedResults) -> SweepData:
    """The sweep of a folder that `raysweep publish` wrote: the same as of the store that it was published from."""
    cells, trajectories = folder.results.to_pandas(), folder.trajectories.to_pandas()
    planned = len(folder.space.cells)
    return from_tables(
        folder.space.name,
        cells,
        trajectories,
        planned,
        measures=_asked(folder.measures.to_pandas(), folder.space),
        units=_units(folder.results),
        **said_of_space(folder.space, folder.declared),
    )


def _asked(measures: pd.DataFrame, space: Space) -> pd.DataFrame:
    """The rows of what the search space asks for."""
    asked = {cell.id: measures_table.asked(space, cell) for cell in space.cells}
    columns = [measures[name] for name in ("cell", "matrix", "metric", "settings")]
    kept = [key[1:] in asked.get(key[0], ()) for key in zip(*columns, strict=True)]
    return measures[np.array(kept, dtype=bool)]


def said_of_space(space: Space, declared: list[dict[str, Any]]) -> dict[str, Any]:
    """What the search space says of the results: how they were evaluated, and what was claimed of them."""
    hypotheses = space.hypotheses or paper_hypotheses()
    fitting = {one.label: space.cells_of(one) for one in space.evaluations}
    steps = {evaluation.label: evaluation.training_steps(fitting[evaluation.label]) for evaluation in space.evaluations}
    return {
        "fine_tuning_steps": {task: fewest for task, fewest in steps.items() if fewest},
        "protocols": {one.label: one.protocol(fitting[one.label]) for one in space.evaluations},
        "hypotheses": hypotheses,
        "chosen": space.design.said,
        "planned_sizes": tuple(sorted({float(cell.describe()["parameters"]) for cell in space.cells})),
        "sampled": {column_of_setting(name): over.is_logarithmic for name, over in space.design.over.items()},
        "declared": declarations.said(declared, hypotheses.digest) if declared or space.hypotheses else "",
    }


def _units(table: pa.Table) -> dict[str, str]:
    return {f.name: f.metadata[b"unit"].decode() for f in table.schema if f.metadata and b"unit" in f.metadata}


def from_tables(
    name: str, cells: pd.DataFrame, trajectories: pd.DataFrame, planned: int | None = None, **rest: Any
) -> SweepData:
    """A sweep from tables in the form of `raysweep results` and of the store's trajectories."""
    diverged = cells["status"] == "diverged" if "status" in cells else pd.Series(False, index=cells.index)
    kept = _finite(cells[~diverged].reset_index(drop=True))
    # What a cell does without is a kind of its own.
    texts = [name for name in PLAN.names if name in kept and kept[name].notna().any() and kept[name].isna().any()]
    texts = [name for name in texts if not pd.api.types.is_numeric_dtype(kept[name])]
    # Switches that are not known of all models are among them.
    kept = kept.assign(**{name: kept[name].replace({True: "yes", False: "no"}).fillna("default") for name in texts})
    # Kinds, and no numbers.
    switches = kept.select_dtypes(bool)
    kept = kept.assign(**{name: np.where(switches[name], "yes", "no") for name in switches})
    if {"size", "width", "vocabulary"} <= set(kept):
        kept = with_sizes(kept)
    if {"corpus", "tokenizer", "vocabulary", "corpus_fingerprint"} <= set(kept):
        # One name may stand for several texts: another fraction of them, another mixture.
        fingerprints = kept.groupby(["corpus", "tokenizer", "vocabulary"], dropna=False)[
            "corpus_fingerprint"
        ].transform("nunique")
        several = kept["corpus"] + "-" + kept["corpus_fingerprint"].astype(str).str[:8]
        kept = kept.assign(corpus=kept["corpus"].where(fingerprints <= 1, several))
    if {"learning_rate", "learning_rate_factor"} <= set(kept):
        # Rounded, so that two ways to compute one rate make one rate.
        # Models that others trained have no factor: their rate is the one before it.
        base = kept["learning_rate"] / kept["learning_rate_factor"].fillna(1.0)
        kept = kept.assign(**{BASE_RATE: [float(f"{rate:.9g}") for rate in base]})
    return SweepData(
        name=name, cells=kept, trajectories=_finite(trajectories.reset_index(drop=True)),
        planned=len(cells) if planned is None else planned, diverged=tuple(cells["id"][diverged]), **rest,
    )  # fmt: skip


def with_sizes(cells: pd.DataFrame) -> pd.DataFrame:
    """`4M` is a width of 64 under the paper's vocabulary; under another it is a model of another size, `d64`."""
    other = cells["size"].isin(SIZES) & (cells["vocabulary"] != OLMO_VOCABULARY)
    return cells.assign(size=cells["size"].where(~other, "d" + cells["width"].astype(str)))


def _finite(table: pd.DataFrame) -> pd.DataFrame:
    """The table with nothing where a number is infinite: a loss that overflowed was not measured."""
    real = table.select_dtypes("float").columns
    finite = table.assign(**{c: table[c].where(np.isfinite(table[c])) for c in real})
    return finite.copy()  # In one piece: with hundreds of columns pandas warns of many.
