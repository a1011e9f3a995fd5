"""One HTML page with everything: it needs no network, no server and no other file, and prints well.

The template is `report.html`; what it shares with the live page is in `raysweep.page`. All data, figures and scripts are
inside the page, and its content security policy forbids the browser to fetch anything.
"""

from __future__ import annotations

import base64
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from raysweep.analysis import explorer
from raysweep.analysis.columns import outcome, short, words
from raysweep.analysis.comparison_tables import Table, entry, number
from raysweep.analysis.coverage import said
from raysweep.analysis.example import SIMULATED
from raysweep.analysis.regressions import STATISTIC_WORDS
from raysweep.analysis.summary import VIEWS_NOTE, VIEWS_TITLE, Effects, further_views, interval
from raysweep.analysis.sweep_data import SweepData
from raysweep.page import content as page


def render(
    sweep: SweepData, card: pd.DataFrame, tests: pd.DataFrame, tables: list[Table], laws: pd.DataFrame,
    drawn: pd.DataFrame, drawings: Path, effects: list[Effects], further: pd.DataFrame, held: pd.DataFrame,
    across_layers: dict[str, Any] | None = None,
) -> str:  # fmt: skip
    """The page, from the tables of the analysis and the folder of the figures."""
    here = Path(__file__).parent
    scripts = [*map(page.script, (*page.SCRIPTS, "plotly.js")), (here / "layers.js").read_text(encoding="utf-8")]
    return (
        page.environment(here)
        .get_template("report.html")
        .render(
            style=Markup(page.style()),  # noqa: S704 (our own file)
            scripts=[Markup(script) for script in (*scripts, page.script("frozen.js"))],  # noqa: S704 (our own files)
            frozen=page.frozen(*explorer.of_sweep(sweep)),
            name=sweep.name,
            today=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            models=sweep.models.fillna("").to_dict("records"),
            facts=sweep.facts.to_dict("records"),
            simulated=bool(len(sweep.cells)) and (sweep.cells.get("corpus_fingerprint") == SIMULATED).any(),
            numbers=_numbers(sweep),
            **of_claims(sweep, card, tests, effects),
            tables=tables,
            statistic_words=STATISTIC_WORDS,
            outcome=outcome,
            number=number,
            entry=entry,
            laws=_laws(laws),
            views=further_views(further),
            views_title=VIEWS_TITLE,
            views_note=VIEWS_NOTE,
            coverage=said(held),
            figures=_figures(drawn, drawings),
            missing=[row for row in drawn.to_dict("records") if not row["file"]],
            layers=None if across_layers is None else page.in_script(across_layers),
        )
    )


def of_claims(sweep: SweepData, card: pd.DataFrame, tests: pd.DataFrame, effects: list[Effects]) -> dict[str, Any]:
    """What `scorecard.html` and `effects.html` show."""
    return {
        "sweep": sweep,
        "claims": [
            row | {"bar": _bar(row), "tests": _of_claim(tests, row["claim"])} for row in card.to_dict("records")
        ],
        "effects": [table for table in effects if table.rows],
        "words": words,
        "interval": _interval,
        "isfinite": lambda value: value is not None and math.isfinite(value),
    }


def _beyond_the_design(sweep: SweepData) -> list[tuple[str, str]]:
    others = len(sweep.cells) - len(sweep.design.cells)
    what = "further seeds, for the noise, and cells with interventions on W: not in regressions, claims and effects"
    return [("of them beyond the design", f"{others} ({what})")] if others else []


def _numbers(sweep: SweepData) -> list[tuple[str, str]]:
    """What the sweep was, for the head of the page."""
    cells, varied = sweep.cells, [*sweep.hyperparameters, *sweep.kinds]
    seconds, rate = cells.get("train_seconds", pd.Series(dtype=float)), cells.get("train_tokens_per_second")
    rows = [
        ("cells analysed", f"{len(cells)} of {sweep.planned} planned"),
        *([("how they were chosen", sweep.chosen)] if sweep.chosen else []),
        *((f"evaluation {task}", said) for task, said in sweep.protocols.items()),
        *_beyond_the_design(sweep),
        ("diverged cells, left out", ", ".join(sweep.diverged) or "none"),
        ("sizes", ", ".join(dict.fromkeys(cells.sort_values("parameters")["size"]))),
        ("parameters, without the input embedding", f"{cells['parameters'].min():,} to {cells['parameters'].max():,}"),
        *_work(cells),
        (
            "varied at equal size",
            ", ".join(f"{words(h)} {_levels(cells[h], sweep.is_sampled(h))}" for h in varied) or "nothing",
        ),
        ("tasks", ", ".join(outcome(t) for t in sweep.tasks)),
        ("metrics", ", ".join(words(m) for m in sweep.metrics)),
    ]
    if seconds.notna().any():
        rows.append(("time in training, all cells", f"{seconds.sum() / 3600:,.2f} hours"))
    if rate is not None and rate.notna().any():
        rows.append(("tokens per second of a cell, median", f"{rate.median():,.0f}"))
    for column in ("trained_on", "corpus", "corpus_fingerprint", "raysweep_version", "torch_version"):
        if column in cells:
            rows.append((words(column), ", ".join(sorted(map(str, cells[column].dropna().unique())))))
    return rows


def _work(cells: pd.DataFrame) -> list[tuple[str, str]]:
    """What the cells were trained on, as far as that is known."""
    known = cells.dropna(subset=["tokens", "flops"])
    if not len(known):
        return [("tokens per cell", "not known")]
    of = "" if len(known) == len(cells) else f" (known of {len(known)})"
    return [
        ("tokens per cell", f"{known['tokens'].min():,.0f} to {known['tokens'].max():,.0f}{of}"),
        ("training compute", f"{known['flops'].sum():.3g} FLOP{of}"),
    ]


def _levels(values: pd.Series, sampled: bool = False) -> str:
    if sampled:
        return f"({short(values.min())} to {short(values.max())}, {values.nunique()} values)"
    return f"({', '.join(short(value) for value in sorted(values.dropna().unique()))})"


def _of_claim(tests: pd.DataFrame, claim: int) -> list[dict[str, Any]]:
    return [row | {"bar": _bar(row)} for row in tests[tests["claim"] == claim].to_dict("records")]


def _bar(row: dict[str, Any]) -> Markup:
    """A small drawing of an interval beside the bound of its rule: what lies on the claimed side is shaded."""
    low, high, value, rule = row["low"], row["high"], row["value"], str(row["rule"])
    if not (math.isfinite(low) and math.isfinite(high)):
        return Markup("")
    sign, _, text = rule.partition(" ")
    bound = float(text.removeprefix("±"))
    marks = [-bound, bound] if sign == "within" else [bound]
    ends = [low, high, value, *marks]
    reach = max(max(ends) - min(ends), 1e-12)
    left, scale = min(ends) - 0.08 * reach, 120 / (1.16 * reach)

    def at(x: float) -> float:
        return float(round((x - left) * scale, 1))

    start, end = {"within": (at(-bound), at(bound)), ">": (at(bound), 120.0), "<": (0.0, at(bound))}.get(
        sign, (0.0, 0.0)
    )
    lines = "".join(f'<line x1="{at(m)}" x2="{at(m)}" y1="1" y2="17" class="bound"/>' for m in marks)
    return Markup(  # noqa: S704 (numbers only)
        f'<svg class="interval" viewBox="0 0 120 18" width="120" height="18" aria-hidden="true">'
        f'<rect x="{start}" y="1" width="{max(end - start, 0)}" height="16" class="claimed"/>{lines}'
        f'<line x1="{at(low)}" x2="{at(high)}" y1="9" y2="9" class="reach"/><circle cx="{at(value)}" cy="9" r="3.2"/></svg>'
    )


def _interval(row: dict[str, Any]) -> str:
    return interval(row["value"], row["low"], row["high"])


def _laws(laws: pd.DataFrame) -> list[dict[str, Any]]:
    """One row per task: parameter -> text."""
    rows = []
    for task, of_task in laws.groupby("task", sort=False):
        entries = {}
        for row in of_task.to_dict("records"):
            value = f"{row['value']:.4g}" if math.isfinite(row["value"]) else "\N{EN DASH}"
            interval = f" [{row['low']:.3g}, {row['high']:.3g}]" if math.isfinite(row["low"]) else ""
            entries[row["parameter"]] = value + interval
        rows.append({"task": task, "entries": entries, "reason": of_task["reason"].iloc[0]})
    return rows


def _figures(drawn: pd.DataFrame, drawings: Path) -> list[dict[str, Any]]:
    rows = []
    for row in drawn[drawn["file"] != ""].to_dict("records"):
        picture = base64.b64encode((drawings / row["file"]).read_bytes()).decode()
        name = f"Figure {row['figure']}" if not pd.isna(row["figure"]) else "Further figure"
        rows.append({"name": name, "title": row["title"], "file": row["file"], "picture": picture})
    return rows
