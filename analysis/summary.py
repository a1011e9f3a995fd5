"""`summary.md`: the scorecard and the effects against the noise of seeds, as Markdown for a README."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from raysweep.analysis.columns import COSINE, ISOTROPY, RANK, capital, outcome, words
from raysweep.analysis.comparison_tables import Table, entry, number
from raysweep.analysis.coverage import said
from raysweep.analysis.noise import standard_deviations
from raysweep.analysis.regressions import STATISTIC_WORDS, STATISTICS
from raysweep.analysis.sweep_data import SweepData
from raysweep.analysis.trends import TURN
from raysweep.space.hypotheses import paper_hypotheses

_MINUS = "\N{MINUS SIGN}"

# What the table of effects shows of the columns of `effects.csv`, where the sweep has them.
SHOWN = (
    RANK, COSINE, ISOTROPY, "spectral_norm_W", "effective_rank_H", "in_distribution_loss", "validation_loss",
    "out_of_distribution_loss", "quantized_4bit_in_distribution_loss_change", "quantized_3bit_in_distribution_loss_change",
    "finetune_python_loss", "forgetting_python_loss_change", "finetune_math_loss", "forgetting_math_loss_change",
)  # fmt: skip


def _sizes(sweep: SweepData) -> str:
    return ", ".join(sweep.cells.sort_values("parameters")["size"].unique())


def summary(
    sweep: SweepData, card: pd.DataFrame, tests: pd.DataFrame, tables: list[Table], shown: list[Effects],
    further: pd.DataFrame, held: pd.DataFrame,
) -> str:  # fmt: skip
    """The Markdown text; without the scorecard where there was too little to decide any claim."""
    parts = []
    if sweep.condition:
        parts += [f"Only the cells for which `{sweep.condition}`: {len(sweep.cells)} of {sweep.planned}.", ""]
    elif len(sweep.cells) < sweep.planned:
        diverged = f"; {len(sweep.diverged)} of the others diverged" if sweep.diverged else ""
        cells = "models" if len(sweep.models) else f"planned cells, of the sizes {_sizes(sweep)}"
        parts += [f"**{len(sweep.cells)} of {sweep.planned} {cells}{diverged}.**", ""]
    if "corpus" in sweep.cells and (corpora := sorted(sweep.cells["corpus"].unique()))[1:]:
        parts += [
            f"The cells are of {len(corpora)} corpora ({', '.join(corpora)}), whose losses are of different text. Effects "
            "compare cells of one corpus; correlations over all cells mix them, and the partial one adjusts for the corpus. "
            f"""`raysweep analyze --where 'corpus == "{corpora[0]}"'` is about one.""",
            "",
        ]
    if {"tokenizer", "vocabulary"} <= set(sweep.cells) and "tokenizer_sha256" not in sweep.cells:
        tokenizers = sweep.cells[["tokenizer", "vocabulary"]].drop_duplicates()
        if len(tokenizers) > 1:
            parts += [
                f"The cells have {len(tokenizers)} tokenizers. Losses per token do not compare between them: neither in "
                "effects of the vocabulary nor in correlations over all cells. Bits per byte compare.",
                "",
            ]
    if sweep.chosen:
        parts += [f"The cells: {sweep.chosen}.", ""]
    own = sweep.hypotheses != paper_hypotheses()
    if own or (card["verdict"] != "undecided").any():
        declared = [f"They were {sweep.declared}.", ""] if sweep.declared else []
        title = "### The hypotheses" if own else "### The paper's claims"
        parts += [title, "", *declared, *scorecard(card, tests), ""]
    of_rank = [table for table in tables if table.number is not None and RANK in table.metrics]
    if any(np.isfinite(table.rows["value"]).any() for table in of_rank):
        parts += ["### The effective rank of W in Tables 2-9", "", *digest(of_rank), ""]
        parts += [said(held), ""] if len(held) else []
    if views := further_views(further):
        parts += [f"### {VIEWS_TITLE}", "", *views.markdown(), ""]
    for effects in shown:
        if effects.rows:
            parts += [f"### {effects.title}", "", *effects_table(effects), ""]
    if sweep.protocols:
        parts += ["### How it was evaluated", "", *(f"- {task}: {said}" for task, said in sweep.protocols.items()), ""]
    return "\n".join(parts)


def scorecard(card: pd.DataFrame, tests: pd.DataFrame) -> list[str]:
    """A pipe table: each claim as the paper has it, its verdict, and the test that decided."""
    tally = card["verdict"].value_counts()
    counts = [f"{tally.get(v, 0)} {v}" for v in ("supported", "contradicted", "undecided")]
    lines = [
        f"{', '.join(counts)}.",
        "",
        "| | the claim | here | the deciding test | of its tests |",
        "|---|---|---|---|---|",
    ]
    for row in card.to_dict("records"):
        of_claim = tests[tests["claim"] == row["claim"]]
        tested = of_claim[np.isfinite(of_claim["low"])]
        held = f"{(tested['verdict'] == 'supported').sum()} of {len(tested)} supported"
        if missing := len(of_claim) - len(tested):
            held += f", {missing} not tested"
        decided = f"{row['effect']}: {interval(row['value'], row['low'], row['high'])}, claimed {row['rule']}"
        if row["reason"]:
            decided = (
                f"{decided} ({row['reason']})" if math.isfinite(row["low"]) else f"{row['effect']}: {row['reason']}"
            )
        says = table_cell(row["statement"]) + (f" ({row['place']})" if row["place"] else "")
        lines.append(f"| {row['claim']} | {says} | **{row['verdict']}** | {table_cell(decided)} | {held} |")
    note = (
        "A test is supported where its whole 95% interval is on the claimed side of the bound, contradicted where it is on "
        "the other side; a claim is supported if all its tests are, contradicted if one is after correction for the number "
        "of its tests (Bonferroni), else undecided. No correction for the number of claims; `claim_tests.csv` has the "
        "false-discovery rate of each test (q)."
    )
    return [*lines, "", note]


def digest(tables: list[Table]) -> list[str]:
    """A pipe table: of each of the paper's tables the column of the effective rank of W, and what the paper prints."""
    lines = ["| | " + " | ".join(STATISTIC_WORDS[s] for s in STATISTICS) + " |", "|---" * (len(STATISTICS) + 1) + "|"]
    for table in tables:
        cells = [table.cell(statistic, RANK) for statistic in STATISTICS]
        without = [f" on {number(c['baseline'])}" if np.isfinite(c["baseline"]) else "" for c in cells]
        paper = [f"<br>paper {number(c['paper'])}" if np.isfinite(c["paper"]) else "" for c in cells]
        entries = [entry(c) + base + printed for c, base, printed in zip(cells, without, paper, strict=True)]
        lines.append(f"| {table.number}: {outcome(table.task)} | " + " | ".join(entries) + " |")
    note = (
        'In brackets: 95% intervals over configurations drawn from this design. "On": the R² of predictions without the '
        "metric; what a metric adds may lie a little below its interval, since cross-validation pays for its coefficient. "
        "All metrics are in `tables/`."
    )
    return [*lines, "", note]


VIEWS_TITLE = "The effective rank of W at each size, within settings, and between seeds"
VIEWS_NOTE = (
    'Spearman\'s correlations with 95% intervals, bold where they leave out zero: over the cells of one size; "two-way": of '
    'what is left after a mean for each size and each setting; "between seeds": of runs that differ in their seed alone, '
    "pooled over the configurations that have several. `views.csv` has the other metrics."
)


@dataclass(frozen=True)
class Views:
    """What `views.csv` has of the effective rank of W and the most telling outcomes."""

    names: list[str]
    rows: list[tuple[str, list[tuple[str, bool]]]]
    """Outcome and, for each view, value with interval and whether that leaves out zero."""

    def markdown(self) -> list[str]:
        lines = ["| | " + " | ".join(self.names) + " |", "|---" * (len(self.names) + 1) + "|"]
        for outcome_of, entries in self.rows:
            texts = [f"**{text}**" if bold else text for text, bold in entries]
            lines.append(f"| {capital(words(outcome_of))} | " + " | ".join(texts) + " |")
        return [*lines, "", VIEWS_NOTE]


def further_views(table: pd.DataFrame) -> Views | None:
    """None where no view of the effective rank has a value."""
    of_rank = table[(table["metric"] == RANK) & table["value"].notna()]
    outcomes = [c for c in SHOWN if c in set(of_rank["outcome"])]
    if not outcomes:
        return None
    names = list(dict.fromkeys(of_rank["view"]))
    found = of_rank.set_index(["outcome", "view"])
    rows = []
    for one in outcomes:
        entries = []
        for view in names:
            if (one, view) not in found.index:
                entries.append(("\N{EN DASH}", False))
                continue
            row = found.loc[(one, view)]
            entries.append((entry(row), bool(row["low"] > 0 or row["high"] < 0)))
        rows.append((one, entries))
    return Views(names, rows)


# What the tables of effects have in common.
_BOLD = "bold where that leaves out zero (with no effect, one in twenty does so by chance)"
_NOISE = "the same over the standard deviation of one run between seeds"
_BETWEEN = (
    "Between seeds: that standard deviation, pooled over the sizes, and in brackets the least and the most of one size."
)


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
    rows: list[tuple[str, str, list[Entry]]]
    """Column, its standard deviation between seeds (a dash without seeds), and an entry for each name."""


def of_hyperparameters(noise: pd.DataFrame, effects: pd.DataFrame) -> Effects:
    """The tables of `noise` as what is shown of them."""
    adjusted = dict.fromkeys(effects["hyperparameter"][effects["comparisons"] == 0])
    said = (
        f"Of what was sampled ({', '.join(map(words, adjusted))}) no two cells are equal but for one setting: there it is "
        "the slope of a regression on all settings over the range sampled, and the interval is the jackknife's over points. "
    ) if adjusted else ""  # fmt: skip
    note = (
        "Each entry: the slope of a straight line over the values tested, taken as equally spaced, from the lowest to the "
        f"highest, all else equal; its 95% permutation interval, {_BOLD}; {_NOISE}; and where the column turns in between "
        "(more than half as far again as the line goes, and more than two standard deviations), the largest difference "
        "between two values. Cells that have some of the values tell of their part of the line. Tokens at equal steps, so "
        f"that the batch size goes with them, where they were varied so. {said}{_BETWEEN}"
    )
    return _effects("Effects against the noise of seeds", note, noise, effects)


def of_interventions(noise: pd.DataFrame, moved: pd.DataFrame) -> list[Effects]:
    """The table of `interventions`, all sizes together: against the cells left alone, and against controls."""
    together = moved[moved["size"] == ""].rename(columns={"intervention": "hyperparameter", "change": "effect"})
    together = together.assign(swing=math.nan)
    note = (
        "Each entry: the mean change of a cell by the intervention, seed and all else equal; its 95% permutation interval "
        f"over pairs, {_BOLD}; {_NOISE}. Slope: the change per unit of effective rank, over the cells whose rank was not "
        f"raised above the one left alone. {_BETWEEN}"
    )
    tables = [_effects("When the rank is pushed", note, noise, together[together["against"] == ""])]
    for control, of_control in together[together["against"] != ""].groupby("against"):
        note = (
            f"The same against the cells under the control, {control}, which has the penalty and leaves the rank nearly "
            "where it was."
        )
        tables.append(_effects(f"When the rank is pushed, against {control}", note, noise, of_control))
    return tables


def _effects(title: str, note: str, noise: pd.DataFrame, effects: pd.DataFrame) -> Effects:
    names = list(dict.fromkeys(effects["hyperparameter"]))
    rows = []
    for column in [c for c in SHOWN if c in set(effects["column"])]:
        by_name = effects[effects["column"] == column].set_index("hyperparameter").to_dict("index")
        entries = [_entry(by_name[name]) if name in by_name else Entry("\N{EN DASH}", False, "", "") for name in names]
        rows.append((column, _between(noise, column), entries))
    return Effects(title, note, [words(name) for name in names], rows)


def _between(noise: pd.DataFrame, column: str) -> str:
    pooled = standard_deviations(noise)
    if column not in pooled:
        return "\N{EN DASH}"
    of_sizes = [standard_deviations(noise, size).get(column) for size in noise["size"].unique() if size]
    deviations = [deviation for deviation in of_sizes if deviation is not None]
    return f"{pooled[column]:.2g}" + (
        f" ({min(deviations):.2g} to {max(deviations):.2g})" if len(deviations) > 1 else ""
    )


def _entry(effect: dict[str, Any]) -> Entry:
    times = effect["seed_standard_deviations"]
    return Entry(
        interval(effect["effect"], effect["low"], effect["high"]),
        effect["low"] > 0 or effect["high"] < 0,
        f"{round(times, 1) + 0.0:+.1f} sd".replace("-", _MINUS) if math.isfinite(times) else "",
        _swing(effect["effect"], effect["swing"], times),
    )


def _swing(effect: float, swing: float, times: float) -> str:
    if not (math.isfinite(times) and effect != 0 and swing > TURN * abs(effect)):
        return ""
    deviations = abs(swing * times / effect)
    return f"turns: {swing:.3g}, {deviations:.1f} sd" if deviations > 2 else ""


def effects_table(shown: Effects) -> list[str]:
    """A pipe table of it."""
    lines = ["| | between seeds | " + " | ".join(shown.names) + " |", "|---" * (len(shown.names) + 2) + "|"]
    for column, between, entries in shown.rows:
        texts = [between]
        for one in entries:
            text = f"**{one.text}**" if one.beyond_zero else one.text
            texts.append("<br>".join(part for part in (text, one.noise, one.swing) if part))
        lines.append(f"| {capital(words(column))} | " + " | ".join(texts) + " |")
    return [*lines, "", shown.note]


def interval(value: float, low: float, high: float) -> str:
    """`value [low, high]`, three significant digits."""
    if not np.isfinite(value):
        return "no value"
    text = _three(value) + (f" [{_three(low)}, {_three(high)}]" if np.isfinite(low) else "")
    return text.replace("-", _MINUS)


def _three(number: float) -> str:
    """Three significant digits, or as many as 0.0001 has: what is smaller is rounded to it."""
    return f"{number:.3g}" if abs(number) >= 1e-4 or number == 0 else f"{number:.5f}"


def table_cell(text: str) -> str:
    """Text as a cell of a pipe table has it."""
    return text.replace("|", "\\|")
