"""`summary.md`: the scorecard and the effects against the noise of seeds, as Markdown for a README."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.claims import COSINE, ISOTROPY, RANK
from analysis.noise import standard_deviations
from analysis.regressions import STATISTIC_WORDS, STATISTICS
from analysis.sweep import Sweep, capital, outcome, words
from analysis.tables import Table, entry, number

_MINUS = "\N{MINUS SIGN}"

# What the table of effects shows of the columns of `effects.csv`, where the sweep has them.
SHOWN = (
    RANK, COSINE, ISOTROPY, "effective_rank_H", "in_distribution_loss", "validation_loss", "out_of_distribution_loss",
    "quantized_4bit_in_distribution_loss_change", "finetune_python_loss", "forgetting_python_loss_change",
    "finetune_math_loss", "forgetting_math_loss_change",
)  # fmt: skip


def summary(sweep: Sweep, card: pd.DataFrame, tests: pd.DataFrame, tables: list[Table], shown: list[Effects]) -> str:
    """The Markdown text; without the scorecard where there was too little to decide any claim."""
    parts = []
    if sweep.condition:
        parts += [f"Only the cells for which `{sweep.condition}`: {len(sweep.cells)} of {sweep.planned}.", ""]
    if (card["verdict"] != "undecided").any():
        parts += ["### The fifteen claims", "", *scorecard(card, tests), ""]
    of_rank = [table for table in tables if table.number is not None and RANK in table.metrics]
    if any(np.isfinite(table.rows["value"]).any() for table in of_rank):
        parts += ["### The effective rank of W in Tables 2-9", "", *digest(of_rank), ""]
    for effects in shown:
        if effects.rows:
            parts += [f"### {effects.title}", "", *effects_table(effects), ""]
    return "\n".join(parts)


def scorecard(card: pd.DataFrame, tests: pd.DataFrame) -> list[str]:
    """A pipe table: each claim as the paper has it, its verdict, and the test that decided."""
    tally = card["verdict"].value_counts()
    counts = [f"{tally.get(v, 0)} {v}" for v in ("supported", "contradicted", "undecided")]
    lines = [
        f"{', '.join(counts)}.",
        "",
        "| | the paper says | here | the deciding test | of its tests |",
        "|---|---|---|---|---|",
    ]
    for row in card.to_dict("records"):
        of_claim = tests[tests["claim"] == row["claim"]]["verdict"]
        held = f"{(of_claim == 'supported').sum()} of {len(of_claim)} supported"
        decided = f"{row['effect']}: {interval(row['value'], row['low'], row['high'])}, claimed {row['rule']}"
        if row["reason"]:
            decided = f"{row['effect']}: {row['reason']}"
        lines.append(f"| {row['claim']} | {row['statement']} | **{row['verdict']}** | {_cell(decided)} | {held} |")
    note = (
        "A test is supported where its whole 95% interval is on the claimed side of the bound, contradicted where it is on "
        "the other side; a claim is supported if all its tests are, contradicted if one is, else undecided. The bounds are "
        "raysweep's (`analysis/claims.py`). No correction for the number of claims."
    )
    return [*lines, "", note]


def digest(tables: list[Table]) -> list[str]:
    """A pipe table: of each of the paper's tables the column of the effective rank of W, and what the paper prints."""
    lines = ["| | " + " | ".join(STATISTIC_WORDS[s] for s in STATISTICS) + " |", "|---" * (len(STATISTICS) + 1) + "|"]
    for table in tables:
        cells = [table.cell(statistic, RANK) for statistic in STATISTICS]
        entries = [entry(c) + (f"<br>paper {number(c['paper'])}" if np.isfinite(c["paper"]) else "") for c in cells]
        lines.append(f"| {table.number}: {outcome(table.task)} | " + " | ".join(entries) + " |")
    note = "In brackets: bootstrap 95% intervals over configurations. All metrics are in `tables/`."
    return [*lines, "", note]


@dataclass(frozen=True)
class Entry:
    """One effect."""

    text: str
    """The change with its interval."""
    beyond_zero: bool
    noise: str
    """The change in standard deviations between seeds; empty where there is none."""
    swing: str
    """The largest difference between two values tested, where it is far more than the change; else empty."""


@dataclass(frozen=True)
class Effects:
    """Effects on what is most telling."""

    title: str
    note: str
    """What an entry is."""
    names: list[str]
    """Of the columns."""
    rows: list[tuple[str, float, list[Entry]]]
    """Column, its standard deviation between seeds (NaN without seeds), and an entry for each name."""


def of_hyperparameters(noise: pd.DataFrame, effects: pd.DataFrame) -> Effects:
    """The tables of `analysis.noise` as what is shown of them."""
    note = (
        "Each entry: the slope of a straight line over the values tested, times their range, all else equal, with its 95% "
        "permutation interval, bold where that leaves out zero (of twenty that are nothing, one does so by chance); the "
        "same over the standard deviation of one run between seeds; and where the column turns in between (more than half "
        "as far again as the line goes, and more than two standard deviations), the largest difference between two values. "
        "Tokens at equal steps."
    )
    return _effects("Effects against the noise of seeds", note, noise, effects)


def of_interventions(noise: pd.DataFrame, moved: pd.DataFrame) -> Effects:
    """The table of `analysis.interventions`, all sizes together."""
    note = (
        "Each entry: the mean change of a cell by the intervention, seed and all else equal, with its 95% permutation "
        "interval over pairs, bold where that leaves out zero (of twenty that are nothing, one does so by chance); and the "
        "change over the standard deviation of one run between seeds. Slope: the change per unit of effective rank, over "
        "the cells whose rank was not raised above the one left alone."
    )
    together = moved[moved["size"] == ""].rename(columns={"intervention": "hyperparameter", "change": "effect"})
    return _effects("When the rank is pushed", note, noise, together.assign(swing=math.nan))


def _effects(title: str, note: str, noise: pd.DataFrame, effects: pd.DataFrame) -> Effects:
    deviation = standard_deviations(noise)
    names = list(dict.fromkeys(effects["hyperparameter"]))
    rows = []
    for column in [c for c in SHOWN if c in set(effects["column"])]:
        found = effects[effects["column"] == column].set_index("hyperparameter").to_dict("index")
        entries = [_entry(found[name]) if name in found else Entry("\N{EN DASH}", False, "", "") for name in names]
        rows.append((column, deviation.get(column, math.nan), entries))
    return Effects(title, note, [words(name) for name in names], rows)


def _entry(effect: dict[str, Any]) -> Entry:
    times = effect["seed_standard_deviations"]
    return Entry(
        interval(effect["effect"], effect["low"], effect["high"]),
        effect["low"] > 0 or effect["high"] < 0,
        f"{times:+.1f} sd".replace("-", _MINUS) if math.isfinite(times) else "",
        _swing(effect["effect"], effect["swing"], times),
    )


def _swing(effect: float, swing: float, times: float) -> str:
    if not (math.isfinite(times) and effect != 0 and swing > 1.5 * abs(effect)):
        return ""
    deviations = abs(swing * times / effect)
    return f"turns: {swing:.3g}, {deviations:.1f} sd" if deviations > 2 else ""


def effects_table(shown: Effects) -> list[str]:
    """A pipe table of it."""
    lines = ["| | between seeds | " + " | ".join(shown.names) + " |", "|---" * (len(shown.names) + 2) + "|"]
    for column, deviation, entries in shown.rows:
        texts = [f"{deviation:.2g}" if math.isfinite(deviation) else "\N{EN DASH}"]
        for one in entries:
            text = f"**{one.text}**" if one.beyond_zero else one.text
            texts.append("<br>".join(part for part in (text, one.noise, one.swing) if part))
        lines.append(f"| {capital(words(column))} | " + " | ".join(texts) + " |")
    return [*lines, "", shown.note]


def interval(value: float, low: float, high: float) -> str:
    """`value [low, high]`, three significant digits."""
    if not np.isfinite(value):
        return "no value"
    text = f"{value:.3g}" + (f" [{low:.3g}, {high:.3g}]" if np.isfinite(low) else "")
    return text.replace("-", _MINUS)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
