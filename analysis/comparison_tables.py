"""The paper's Tables 2-9 beside this sweep's, as CSV, Markdown and LaTeX; a task beyond the paper's gets a table too.

`paper_tables.csv` holds what the paper (arXiv 2602.20433) prints. Its numbers are there to compare with: no code uses them
for anything else.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from raysweep.analysis.columns import PAPER_METRICS, outcome, words
from raysweep.analysis.regressions import STATISTIC_WORDS, STATISTICS

_MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Table:
    """One task's statistics by metric, with the paper's where it has them."""

    number: int | None
    """In the paper, or None."""
    task: str
    rows: pd.DataFrame
    """statistic, metric, value, low, high, n, reason, paper."""

    @property
    def stem(self) -> str:
        return f"table_{self.number}_{self.task}" if self.number is not None else f"further_{self.task}"

    @property
    def title(self) -> str:
        text = f"Metrics against {outcome(self.task)}"
        return f"Table {self.number}: {text}" if self.number is not None else text

    @property
    def metrics(self) -> list[str]:
        return list(dict.fromkeys(self.rows["metric"]))

    @property
    def statistics(self) -> list[str]:
        return list(dict.fromkeys(self.rows["statistic"]))

    def cell(self, statistic: str, metric: str) -> pd.Series:
        """The row of one statistic of one metric."""
        return self._cells[statistic, metric]

    @cached_property
    def _cells(self) -> dict[tuple[str, str], pd.Series]:
        return {(row["statistic"], row["metric"]): row for _, row in self.rows.iterrows()}

    def name(self, statistic: str) -> str:
        """What the table calls a statistic; of an added R² with the R² that it is added to."""
        without = self.rows.loc[self.rows["statistic"] == statistic, "baseline"].dropna()
        if not len(without):
            return STATISTIC_WORDS[statistic]
        ends = dict.fromkeys((number(without.min()), number(without.max())))
        return f"{STATISTIC_WORDS[statistic]}, added to {' to '.join(ends)}"

    def markdown(self) -> str:
        """A pipe table; each entry is `value [low, high]`, and the paper's value below it."""
        lines = [f"### {self.title}", "", "| | " + " | ".join(words(m) for m in self.metrics) + " |"]
        lines.append("|---" * (len(self.metrics) + 1) + "|")
        for statistic in self.statistics:
            entries = []
            for metric in self.metrics:
                cell = self.cell(statistic, metric)
                paper = f"<br>paper {number(cell['paper'])}" if np.isfinite(cell["paper"]) else ""
                entries.append(entry(cell) + paper)
            lines.append(f"| {self.name(statistic)} | " + " | ".join(entries) + " |")
        return "\n".join([*lines, "", *self.notes(), ""])

    def latex(self) -> str:
        """A booktabs table; the paper's values stand in the line below ours."""
        lines = [
            r"\begin{table}[t]", r"\centering\small", r"\resizebox{\textwidth}{!}{%",
            r"\begin{tabular}{l" + "c" * len(self.metrics) + "}", r"\toprule",
            " & ".join(["", *(_latex_words(m) for m in self.metrics)]) + r" \\", r"\midrule",
        ]  # fmt: skip
        for statistic in self.statistics:
            cells = [self.cell(statistic, m) for m in self.metrics]
            name = self.name(statistic).replace("R²", "$R^2$").replace(_MINUS, "$-$")
            lines.append(" & ".join([name, *(_latex_entry(c) for c in cells)]) + r" \\")
            if any(np.isfinite(c["paper"]) for c in cells):
                papers = [f"${c['paper']:.3f}$" if np.isfinite(c["paper"]) else "" for c in cells]
                lines.append(" & ".join([r"\quad\textit{paper}", *papers]) + r" \\")
        note = " ".join(self.notes()).replace("%", r"\%").replace("^", r"\^{}")
        lines += [
            r"\bottomrule", r"\end{tabular}}", rf"\caption{{Geometric metrics against {outcome(self.task)}. {note}}}",
            rf"\label{{tab:{self.task.replace('_', '-')}}}", r"\end{table}", "",
        ]  # fmt: skip
        return "\n".join(lines)

    def notes(self) -> list[str]:
        """How many models, what the brackets are, and why entries are missing."""
        counts = sorted({int(n) for n in self.rows["n"]})
        n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        notes = [f"In brackets: 95% intervals over configurations drawn from this design; n = {n} models."]
        reasons = dict.fromkeys(r for r in self.rows["reason"] if r)
        return notes + [f"Note: {reason}." for reason in reasons]


def tables(regressions: pd.DataFrame) -> list[Table]:
    """Tables 2-9 for the tasks that the sweep has, then one for each of its other tasks."""
    paper = pd.read_csv(Path(__file__).with_name("paper_tables.csv"))
    printed = paper.melt(["table", "task", "statistic"], var_name="metric", value_name="paper")
    numbers = dict(zip(paper["task"], paper["table"], strict=True))
    joined = regressions.merge(printed.drop(columns="table"), on=["task", "statistic", "metric"], how="left")
    made = []
    for task in dict.fromkeys(regressions["task"]):
        rows = joined[joined["task"] == task]
        metrics = [
            m for m in dict.fromkeys(rows["metric"]) if m in PAPER_METRICS or "isotropy" in m or task not in numbers
        ]
        order = {name: i for i, name in enumerate(STATISTICS)}
        rows = rows[rows["metric"].isin(metrics)].sort_values("statistic", key=lambda s: s.map(order), kind="stable")
        made.append(Table(int(numbers[task]) if task in numbers else None, task, rows.drop(columns=["task", "column"])))
    return made


def write(made: list[Table], folder: Path) -> None:
    """Write each table as `.csv`, `.md` and `.tex`."""
    folder.mkdir(parents=True, exist_ok=True)
    for table in made:
        table.rows.to_csv(folder / f"{table.stem}.csv", index=False)
        (folder / f"{table.stem}.md").write_text(table.markdown(), encoding="utf-8")
        (folder / f"{table.stem}.tex").write_text(table.latex(), encoding="utf-8")


def number(value: float) -> str:
    """Three decimals, with a minus sign."""
    text = f"{value:.3f}"
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", _MINUS)


def entry(row: pd.Series) -> str:
    """`value [low, high]`, or a dash where there is no value."""
    if not np.isfinite(row["value"]):
        return "\N{EN DASH}"
    if not np.isfinite(row["low"]):
        return number(row["value"])
    return f"{number(row['value'])} [{number(row['low'])}, {number(row['high'])}]"


def _latex_entry(row: pd.Series) -> str:
    if not np.isfinite(row["value"]):
        return "--"
    if not np.isfinite(row["low"]):
        return f"${_ascii(row['value'])}$"
    return rf"${_ascii(row['value'])}$ {{\scriptsize$[{_ascii(row['low'])}, {_ascii(row['high'])}]$}}"


def _ascii(value: float) -> str:
    return number(value).replace(_MINUS, "-")


def _latex_words(metric: str) -> str:
    name, _, of = words(metric).rpartition(" of ")
    return f"{name} of ${of}$" if name else of
