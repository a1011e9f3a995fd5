"""A store -> a folder with everything: `raysweep analyze SPACE --output DIR`.

regressions.csv   every task x metric x statistic with its interval, n, and the reason where it is empty
scaling_law.csv   each task's fitted law
claims.csv        the fifteen claims with their verdicts; claim_tests.csv has every test behind them
seed_noise.csv    how much seeds of one configuration differ; effects.csv has every effect, held against that
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

from raysweep.analysis import claims, figures, interventions, noise, regressions, report, summary, sweep, tables
from raysweep.errors import UserError

Step = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True)
class Answer:
    """What was found, and how much of the sweep it rests on."""

    analysed: int
    planned: int
    claims: pd.DataFrame


def analyze(found: sweep.Sweep, output: Path, step: Step = lambda what, done, of: None) -> Answer:
    """Analyse the finished cells of a sweep and write all results to the folder `output`.

    Raises `UserError` where the folder cannot be written.
    """
    try:
        return _write(found, output, step)
    except OSError as error:
        raise UserError(f"{output} cannot be written: {error.strerror or error}") from None


def _write(found: sweep.Sweep, output: Path, step: Step) -> Answer:
    drawings = output / "figures"
    for folder, names in (
        (drawings, ("figure_[0-9][0-9]_*", "further_*")),
        (output / "tables", ("table_[0-9]_*", "further_*")),
    ):
        for stale in [path for name in names for path in folder.glob(name)]:
            stale.unlink()
    drawings.mkdir(parents=True, exist_ok=True)

    design = found.design
    statistics, laws = regressions.regressions(design, step=lambda done, of: step("regressions", done, of))
    statistics.to_csv(output / "regressions.csv", index=False)
    laws.to_csv(output / "scaling_law.csv", index=False)
    card, tests = claims.claims(design, statistics)
    card.to_csv(output / "claims.csv", index=False)
    tests.to_csv(output / "claim_tests.csv", index=False)
    between_seeds = noise.seed_noise(found)
    between_seeds.to_csv(output / "seed_noise.csv", index=False)
    effects = noise.effects(design, between_seeds)
    effects.to_csv(output / "effects.csv", index=False)
    moved = interventions.interventions(found, between_seeds)
    moved.to_csv(output / "interventions.csv", index=False)
    shown = [summary.of_hyperparameters(between_seeds, effects), *summary.of_interventions(between_seeds, moved)]
    made = tables.tables(statistics)
    (output / "summary.md").write_text(summary.summary(found, card, tests, made, shown), encoding="utf-8")
    tables.write(made, output / "tables")
    drawn = figures.draw(found, drawings, step=lambda done, of: step("figures", done, of))
    drawn.to_csv(drawings / "figures.csv", index=False)

    page = report.render(found, card, tests, made, laws, drawn, drawings, shown)
    unfinished = output / "report.html.unfinished"
    unfinished.write_text(page, encoding="utf-8")
    unfinished.replace(output / "report.html")
    return Answer(len(found.cells), found.planned, card)
