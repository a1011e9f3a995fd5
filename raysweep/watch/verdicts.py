"""The scorecard and the effects of what is finished so far, as a piece of the page; a process of its own computes them.

    python -m raysweep.watch.verdicts SPACE [STORE]

prints `{"analysed": n, "planned": n, "html": ...}`, or `{"reason": ...}` where there is too little to say anything.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from raysweep.analysis import claims, intervention_effects, noise, regressions, summary, sweep_data
from raysweep.analysis.report import of_claims
from raysweep.errors import UserError, one_line
from raysweep.exchange.published import read_published
from raysweep.page.content import environment
from raysweep.space.read import load_to_read
from raysweep.store import Store


def verdicts(space: str, store: str | None) -> dict[str, Any]:
    """What the process prints."""
    try:
        if store is None:
            sweep = sweep_data.published(read_published(Path(space)))
        else:
            sweep = sweep_data.load(Store(store), load_to_read(Path(space)))
        design = sweep.design
        statistics, _ = regressions.regressions(design)
        between_seeds = noise.seed_noise(sweep)
        card, tests = claims.scorecard(claims.tested(design, statistics, between_seeds))
        moved = intervention_effects.interventions(sweep, between_seeds)
        effects = [
            summary.of_hyperparameters(between_seeds, noise.effects(design, between_seeds)),
            *summary.of_interventions(between_seeds, moved),
        ]
    except UserError as error:
        return {"reason": str(error)}
    except Exception as error:  # A statistic that few cells break must not end the page.
        return {"reason": f"{type(error).__name__}: {one_line(error)}"}
    template = environment(Path(claims.__file__).parent).get_template("verdicts.html")
    page = template.render(**of_claims(sweep, card, tests, effects))
    return {"analysed": len(sweep.cells), "planned": sweep.planned, "html": page}


if __name__ == "__main__":
    os.nice(19)  # Whatever trains goes first.
    print(json.dumps(verdicts(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None)))
