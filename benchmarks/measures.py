"""What measuring costs: a cell of the demo, trained with the demo's `measure` and without it.

The cells are of width 32, reports and validation included. `only W` is a run whose search space asks for nothing, which
keeps the singular values of W.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.harness import arguments, in_turn, ratios, show
from raysweep.corpora.build import open_corpus
from raysweep.space.read import load
from raysweep.training.run import Run

DEMO = Path(__file__).parents[1] / "search_spaces/demo.yaml"
WITH, WITHOUT = "with the demo's measure", "only W"


def main() -> int:
    options = arguments(__doc__ or "", rounds=5).parse_args()
    space = load(DEMO)
    results = []
    for batch_size in (8, 32):
        cell = next(c for c in space.cells if c.size.width == 32 and c.batch_size == batch_size)
        corpus = open_corpus(cell.corpus)

        def run(measure: bool, cell=cell, corpus=corpus) -> Callable[[], None]:  # type: ignore[no-untyped-def]
            def turn() -> None:
                for _ in Run(cell, corpus, measure=space.measure if measure else ()).rows():
                    pass

            return turn

        costs = in_turn({WITH: run(True), WITHOUT: run(False)}, options.rounds)
        results += ratios(f"{cell.steps} steps", WITH, costs, "times as fast")
    show(results, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
