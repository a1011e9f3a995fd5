"""A store -> a folder with everything: `raysweep analyze SPACE --output DIR`.

regressions.csv   every task x metric x statistic with its interval, n, and the reason where it is empty
scaling_law.csv   each task's fitted law
claims.csv        the hypotheses with their verdicts; claim_tests.csv has every test behind them
seed_noise.csv    how much seeds of one configuration differ; effects.csv compares every effect with that
views.csv         metrics and outcomes at each size, within sizes and settings, and between seeds
coverage.csv      how often the intervals hold what is planted in simulations of these very cells
layers.csv        what was measured of each layer, and what it has to do with the loss; empty where nothing was
interventions.csv what follows when the rank of W alone is moved; empty where no cell has an intervention
summary.md        the scorecard, Tables 2-9 in one, and the effects, for a README
tables/           the paper's Tables 2-9 beside this sweep's, as CSV, Markdown and LaTeX
figures/          the paper's Figures 2-27, as PNG and PDF, and figures.csv
report.html       one page with all of it
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from raysweep.analysis import (
    claims,
    coverage,
    figures,
    layers,
    noise,
    regressions,
    report,
    summary,
    views,
)
from raysweep.analysis import (
    comparison_tables as tables,
)
from raysweep.analysis import (
    intervention_effects as interventions,
)
from raysweep.analysis import (
    sweep_data as sweep,
)
from raysweep.errors import UserError, reason
from raysweep.exchange.published import read_published
from raysweep.files import put_in_place
from raysweep.space.space import Space
from raysweep.store import Store

Step = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True)
class AnalysisSummary:
    """What was found, and how much of the sweep it rests on."""

    analysed: int
    """Finished cells."""
    planned: int
    """Cells of the search space."""
    claims: pd.DataFrame
    """The scorecard: one row per claim with its verdict, effect and interval."""
    design: sweep.SweepData
    """What the claims are about: without interventions and seeds that were added for the noise."""
    tested: list[claims.Tested]
    """Every test behind the claims."""
    noise: pd.DataFrame
    """How much seeds of one configuration differ, as `noise.seed_noise` has it."""
    figures: pd.DataFrame
    """What was drawn, and why the others were not, as `figures.draw` has it."""


def analyze(
    space: Space | str | Path,
    store: str | Path | Store | None,
    output: str | Path,
    where: str | None = None,
    on_step: Step = lambda what, done, of: None,
) -> AnalysisSummary:
    """Analyse the finished cells of a sweep: regressions, scaling law, claims, tables, figures, a report.

    Parameters
    ----------
    space
        A search space, or the folder of published results.
    store
        The folder or URI of its results; None for published results.
    output
        The folder to write to; the module says what. Results of the same name are replaced.
    where
        Only the cells for which it holds, such as `steps >= 2048`: an expression of pandas, as powerful as Python.
    on_step
        Called with what is being done, how much of it is done, and how much there is.

    Returns
    -------
    AnalysisSummary
        How many cells were analysed, and the scorecard.

    Raises
    ------
    UserError
        Where no cell is finished, the condition holds for none, or the folder cannot be written.

    Examples
    --------
    >>> space = raysweep.load("search_spaces/demo.yaml")
    >>> raysweep.analyze(space, "runs/demo", "report").analysed        # doctest: +SKIP
    16
    """
    if isinstance(space, Space):
        if store is None:
            raise UserError(f"the results of {space.name} are in a store: name it")
        loaded = sweep.load(store if isinstance(store, Store) else Store(str(store)), space)
    else:
        loaded = sweep.published(read_published(Path(space)))
    if where is not None:
        loaded = loaded.where(where)
    return analyze_sweep(loaded, Path(output), on_step)


def analyze_sweep(loaded: sweep.SweepData, output: Path, step: Step = lambda what, done, of: None) -> AnalysisSummary:
    """Analyse a sweep whose tables are loaded, and write all results to the folder `output`.

    Raises `UserError` where the folder cannot be written.
    """
    try:
        return _write(loaded, output, step)
    except OSError as error:
        raise UserError(f"{output} cannot be written: {reason(error)}") from None


def _made_earlier(output: Path) -> set[Path]:
    """The figures and tables of an earlier analysis in a folder: of each the file that is always there."""
    listed = output / "figures" / "figures.csv"
    figures = pd.read_csv(listed, keep_default_na=False)["file"] if listed.exists() else ()
    # A table is there in three forms, so that nothing of somebody else's is taken for one.
    tables = [path for name in ("table_[0-9]_*.csv", "further_*.csv") for path in (output / "tables").glob(name)]
    whole = {path for path in tables if path.with_suffix(".md").exists() and path.with_suffix(".tex").exists()}
    return whole | {output / "figures" / Path(file).name for file in figures if file}


def _write(loaded: sweep.SweepData, output: Path, step: Step) -> AnalysisSummary:
    drawings = output / "figures"
    drawings.mkdir(parents=True, exist_ok=True)
    earlier = _made_earlier(output)

    design = loaded.design
    statistics, laws = regressions.regressions(design, step=lambda done, of: step("regressions", done, of))
    statistics.to_csv(output / "regressions.csv", index=False)
    laws.to_csv(output / "scaling_law.csv", index=False)
    between_seeds = noise.seed_noise(loaded)
    between_seeds.to_csv(output / "seed_noise.csv", index=False)
    tested = claims.tested(design, statistics, between_seeds)
    card, tests = claims.scorecard(tested)
    card.to_csv(output / "claims.csv", index=False)
    tests.to_csv(output / "claim_tests.csv", index=False)
    effects = noise.effects(design, between_seeds)
    effects.to_csv(output / "effects.csv", index=False)
    moved = interventions.interventions(loaded, between_seeds)
    moved.to_csv(output / "interventions.csv", index=False)
    further = views.views(loaded)
    further.to_csv(output / "views.csv", index=False)
    of_layers = layers.layers(design, step=lambda done, of: step("layers", done, of))
    of_layers.to_csv(output / "layers.csv", index=False)
    step("coverage", 0, 1)
    held = coverage.coverage(design)
    held.to_csv(output / "coverage.csv", index=False)
    step("coverage", 1, 1)
    shown = [summary.of_hyperparameters(between_seeds, effects), *summary.of_interventions(between_seeds, moved)]
    made = tables.tables(statistics)
    (output / "summary.md").write_text(
        summary.summary(loaded, card, tests, made, shown, further, held), encoding="utf-8"
    )
    tables.write(made, output / "tables")
    drawn = figures.draw(loaded, drawings, statistics, of_layers, step=lambda done, of: step("figures", done, of))
    drawn.to_csv(drawings / "figures.csv", index=False)

    page = report.render(
        loaded, card, tests, made, laws, drawn, drawings, shown, further, held, layers.explorer(loaded, of_layers)
    )
    with put_in_place(output / "report.html") as unfinished:
        unfinished.write_text(page, encoding="utf-8")
    now = {*(drawings / file for file in drawn["file"]), *(output / "tables" / f"{table.stem}.csv" for table in made)}
    for path in earlier - now:
        for ending in (".png", ".pdf", ".csv", ".md", ".tex"):
            path.with_suffix(ending).unlink(missing_ok=True)
    return AnalysisSummary(len(loaded.cells), loaded.planned, card, design, tested, between_seeds, drawn)
