"""Two sweeps, the same claims: `raysweep analyze A B --output DIR`.

comparison.csv     every test of every claim, with its verdict and interval in both
comparison.md      the claims side by side
comparison.png     the tests that have an interval in both
comparison.html    both in one page
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from raysweep.analysis import claims, drawing, noise, regressions
from raysweep.analysis.summary import interval, table_cell
from raysweep.analysis.sweep_data import SweepData
from raysweep.errors import UserError, reason
from raysweep.files import put_in_place

COLUMNS = (
    "claim", "statement", "agreement", "verdict_a", "verdict_b", "effect_a", "effect_b", "a", "b", "reason_a", "reason_b",
)  # fmt: skip

# Verdicts of the two -> what to say of them.
_AGREEMENT = {
    ("supported", "supported"): "holds in both",
    ("contradicted", "contradicted"): "contradicted in both",
    ("supported", "contradicted"): "holds in A, contradicted in B",
    ("contradicted", "supported"): "contradicted in A, holds in B",
    ("supported", "undecided"): "holds in A, undecided in B",
    ("undecided", "supported"): "undecided in A, holds in B",
    ("contradicted", "undecided"): "contradicted in A, undecided in B",
    ("undecided", "contradicted"): "undecided in A, contradicted in B",
    ("undecided", "undecided"): "undecided in both",
}

# More tests than this make no figure that can be read.
_MOST = 40


@dataclass(frozen=True)
class Comparison:
    """What was found of two sweeps."""

    card: pd.DataFrame
    """A row for each claim, with the columns `COLUMNS`."""
    tests: pd.DataFrame
    """A row for each test of both: those of the scorecard, with `_a` and `_b`."""


def compare(first: SweepData, second: SweepData, step: Callable[[str, int, int], None]) -> Comparison:
    """The claims of the first sweep, on both: each is tested on its own cells.

    Raises `UserError` where the two have other claims.
    """
    if first.hypotheses.digest != second.hypotheses.digest:
        raise UserError(
            f"{first.name} and {second.name} have other hypotheses: name the same file under `hypotheses` in both"
        )
    cards, tests = zip(*(_scorecard(sweep, step) for sweep in (first, second)), strict=True)
    rows = []
    for a, b in zip(cards[0].to_dict("records"), cards[1].to_dict("records"), strict=True):
        rows.append(
            {
                "claim": a["claim"], "statement": a["statement"],
                "agreement": _AGREEMENT[a["verdict"], b["verdict"]],
                "verdict_a": a["verdict"], "verdict_b": b["verdict"], "effect_a": a["effect"], "effect_b": b["effect"],
                "a": interval(a["value"], a["low"], a["high"]), "b": interval(b["value"], b["low"], b["high"]),
                "reason_a": a["reason"], "reason_b": b["reason"],
            }
        )  # fmt: skip
    key = ["claim", "statement", "place", "effect", "rule"]
    # Two tests may have one text, where they are about other cells: the first of one is the first of the other.
    both = (
        tests[0]
        .assign(nth=tests[0].groupby(key).cumcount())
        .merge(
            tests[1].assign(nth=tests[1].groupby(key).cumcount()), on=[*key, "nth"], how="outer", suffixes=("_a", "_b")
        )
        .drop(columns="nth")
    )
    return Comparison(pd.DataFrame(rows, columns=COLUMNS), both)


def _scorecard(sweep: SweepData, step: Callable[[str, int, int], None]) -> tuple[pd.DataFrame, pd.DataFrame]:
    design = sweep.design
    statistics, _ = regressions.regressions(
        design, step=lambda done, of: step(f"regressions of {sweep.name}", done, of)
    )
    return claims.scorecard(claims.tested(design, statistics, noise.seed_noise(sweep)))


def write(found: Comparison, first: SweepData, second: SweepData, output: Path) -> None:
    """Write the files of the comparison. Raises `UserError` where the folder cannot be written."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        found.tests.to_csv(output / "comparison.csv", index=False)
        (output / "comparison.md").write_text(markdown(found, first, second), encoding="utf-8")
        picture: Path | None = output / "comparison.png"
        (output / "comparison.png").unlink(missing_ok=True)
        try:
            drawing.save(figure(found, first.name, second.name), output / "comparison.png")
        except drawing.NoData:
            picture = None
        with put_in_place(output / "comparison.html") as unfinished:
            unfinished.write_text(_page(found, first, second, picture), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{output} cannot be written: {reason(error)}") from None


def _about(sweep: SweepData) -> str:
    left = "" if len(sweep.cells) == sweep.planned else f" of {sweep.planned} planned"
    return f"{sweep.name}: {len(sweep.cells)} cells{left}" + "".join(
        f"; {name} {said}" for name, said in sweep.protocols.items() if name == "losses"
    )


def markdown(found: Comparison, first: SweepData, second: SweepData) -> str:
    """The claims side by side."""
    lines = [
        f"# {first.name} and {second.name}",
        "",
        f"A is {_about(first)}. B is {_about(second)}.",
        "",
        "Each claim is tested on each by itself. What is shown is the test that decided there, with its 95% interval.",
        "",
        "| claim | | A | B | effect in A | effect in B |",
        "|---|---|---|---|---|---|",
    ]
    for row in found.card.to_dict("records"):
        statement = table_cell(row["statement"])
        a, b = (table_cell(f"{row[f'effect_{side}']}: {row[side]} {row[f'reason_{side}']}") for side in "ab")
        lines.append(
            f"| {row['claim']}. {statement} | {row['agreement']} | {row['verdict_a']} | {row['verdict_b']} | {a} | "
            f"{b} |"
        )
    return "\n".join(lines) + "\n"


def figure(found: Comparison, first: str, second: str) -> Figure:
    """The tests that have an interval in both, or the first of them; the title says of how many."""
    tests = found.tests
    finite = tests[["low_a", "high_a", "low_b", "high_b"]].apply(pd.to_numeric, errors="coerce")
    of_both = tests[finite.notna().all(axis=1) & finite.abs().lt(math.inf).all(axis=1)]
    shown = of_both.head(_MOST)
    if shown.empty:
        raise drawing.NoData("no test has an interval in both")
    with mpl.rc_context(drawing.style()):
        made = Figure(figsize=(9.5, 0.9 + 0.3 * len(shown)), layout="constrained")
        axis = made.subplots()
        for place, row in enumerate(shown.to_dict("records")):
            for name, shift, colour in (("a", -0.14, "#20639b"), ("b", 0.14, "#c8553d")):
                ends = [row[f"{end}_{name}"] for end in ("low", "value", "high")]
                low, value, high = map(float, ends)
                axis.plot([low, high], [place + shift] * 2, color=colour, lw=1.6)
                axis.plot(value, place + shift, "o", color=colour, ms=4)
        axis.axvline(0, color="#888888", lw=0.8)
        names = [f"{row['claim']}: {_short(str(row['effect']))}" for row in shown.to_dict("records")]
        axis.set_yticks(range(len(shown)), names, fontsize=7)
        axis.invert_yaxis()
        # Correlations and fractions have a scale of their own; what is larger is seen by its sign and size.
        axis.set_xscale("symlog", linthresh=1.0)
        axis.set_xlabel("effect and 95% interval (beyond 1 the axis is logarithmic)")
        few = f": the first {_MOST} of {len(of_both)} tests" if len(of_both) > _MOST else ""
        axis.set_title(f"{first} (blue) and {second} (red){few}", loc="left")
    return made


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


def _page(found: Comparison, first: SweepData, second: SweepData, picture: Path | None) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("comparison.html").render(
        first=first, second=second, about_first=_about(first), about_second=_about(second),
        rows=found.card.to_dict("records"),
        picture=base64.b64encode(picture.read_bytes()).decode() if picture is not None else "",
    )  # fmt: skip
