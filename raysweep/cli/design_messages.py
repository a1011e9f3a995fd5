"""What `raysweep plan` and `raysweep run` say of declared tests that the planned cells cannot decide."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from raysweep.cli.console import say, show

if TYPE_CHECKING:
    from raysweep.analysis.design_check import WithoutVerdict


def show_without_verdict(tests: list[WithoutVerdict]) -> None:
    """Each with the reason, and what to do about most of them."""
    say(f"\n[yellow]{_how_many(tests)} can have no verdict from these cells, whatever they show:[/]")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("claim", "test", "why"):
        table.add_column(heading, overflow="fold")
    for test in tests:
        table.add_row(escape(test.claim), escape(test.test), escape(test.reason))
    show(table)
    say("[dim]a claim with such a test cannot be supported; docs/hypotheses.md says what to add[/]")


def before_training(tests: list[WithoutVerdict], file: str) -> str:
    """One line of them."""
    claims = ", ".join(dict.fromkeys(test.claim for test in tests))
    return (
        f"{_how_many(tests)} (of claims {claims}) can have no verdict from these cells, whatever they show: "
        f"`raysweep plan {file}` says why"
    )


def _how_many(tests: list[WithoutVerdict]) -> str:
    return "1 declared test" if len(tests) == 1 else f"{len(tests)} declared tests"
