"""Which declared tests a design leaves without a verdict, whatever its cells will show: asked before they are trained.

The tests are made on random numbers in place of results. What then has no interval has too few cells that are equal in all
else, or does not meet what the test needs.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import numpy as np
import pandas as pd

from raysweep.analysis import scaling_law
from raysweep.analysis.claims import expanded
from raysweep.analysis.findings import FEWEST_CONFIGURATIONS, Finding, Tests
from raysweep.analysis.hypothesis_tests import findings
from raysweep.analysis.measured import Measured
from raysweep.analysis.noise import seed_noise
from raysweep.analysis.regressions import FEWEST_FOR_FOLDS
from raysweep.analysis.sweep_data import SweepData, from_tables, said_of_space
from raysweep.space.hypotheses import Hypotheses, Hypothesis, Test
from raysweep.space.hypothesis_columns import columns_named
from raysweep.space.space import Space

# They take seconds: of them only what they need is looked at, and whether there are enough configurations.
_SLOW = ("correlation", "attenuation", "closer", "line", "added_r2", "spread")

_ALWAYS = ("validation_loss", "in_distribution_loss", "effective_rank_W", "effective_rank_H", "isotropy_W")


@dataclass(frozen=True)
class WithoutVerdict:
    """A declared test that no result of these cells can decide."""

    claim: str
    test: str
    reason: str


def without_verdict(space: Space) -> list[WithoutVerdict]:
    """The declared tests of a search space that its cells cannot decide; none where it declares no hypotheses.

    Of a hypothesis for each of several columns, those that are not known before training are one test, with `*` in its name.
    """
    if space.hypotheses is None:
        return []
    whole = _with_random_results(space, space.hypotheses)
    sweep = whole.design
    planned = {*_ALWAYS, *space.cells[0].describe()}
    tests = Tests(sweep, pd.DataFrame(), seed_noise(whole))
    found = []
    for hypothesis in space.hypotheses.hypotheses:
        # What other hypotheses name may not be measured, and is nothing that this one is about.
        kept = planned.union(_columns_of(space, hypothesis))
        of_it = replace(sweep, cells=sweep.cells[[column for column in sweep.cells if column in kept]])
        for test in expanded(hypothesis, of_it):
            for finding in [test] if isinstance(test, Finding) else _findings(tests, test):
                if not math.isfinite(finding.low):
                    found.append(WithoutVerdict(str(hypothesis.id), finding.effect, finding.reason))
    return found


def _findings(tests: Tests, test: Test) -> list[Finding]:
    if test.intervention is not None and test.intervention.against:
        # Which penalty leaves the rank where it is, and is a control, only results say: both are to be there.
        both = (test.intervention.by, test.intervention.against)
        each = [test.intervention.model_copy(update={"by": name, "against": ""}) for name in both]
        return [f for one in each for f in findings(tests, test.model_copy(update={"intervention": one}))]
    if test.kind not in _SLOW:
        return findings(tests, test)
    measured = Measured(tests, test)
    sweep = measured.tests.sweep
    sizes = sweep.cells["parameters"]
    # A correlation at one size, or the difference of those at two, is over the cells of these alone.
    kinds = [sizes == (sizes.min() if size == "smallest" else sizes.max()) for size in _sizes(measured)] or [sizes > 0]
    numbers = [len(np.unique(sweep.configurations[kind])) for kind in kinds]
    reason = measured.unmet
    if not reason and len(kinds) == 2 and sizes.nunique() == 1:
        reason = "all cells are of one size"
    if not reason and min(numbers) < FEWEST_CONFIGURATIONS:
        reason = f"{sum(numbers)} configurations; at least {FEWEST_CONFIGURATIONS} of a kind are needed"
    if not reason and test.added_r2 is not None and min(numbers) < FEWEST_FOR_FOLDS:
        reason = f"{min(numbers)} configurations; at least {FEWEST_FOR_FOLDS} are needed for 5 folds"
    if not reason and getattr(measured.spec, "given", None) == "law":
        trained = sweep.cells["steps"] * sweep.cells["batch_size"] * sweep.cells["sequence_length"]
        reason = scaling_law.enough(sizes.to_numpy(float), trained.to_numpy(float))
    name = measured.called(f"{test.kind} of {' and '.join(measured.columns)}")
    return [Finding(name, measured.rule, reason=reason)] if reason else []


def _sizes(measured: Measured) -> list[str]:
    """`smallest` or `largest`, of a correlation at one size or of the difference of two."""
    ends = (getattr(measured.spec, name, None) for name in ("size", "minus_size"))
    return [end for end in ends if end is not None]


def _with_random_results(space: Space, hypotheses: Hypotheses) -> SweepData:
    """Every planned cell as if it were done, with a random number under each name that a test asks for."""
    cells = pd.DataFrame([cell.describe() for cell in space.cells])
    rng = np.random.default_rng(0)
    for column in dict.fromkeys([*_ALWAYS, *_columns(space, hypotheses)]):
        if column not in cells:
            cells[column] = rng.normal(5.0, 1.0, len(cells))
    falling = [
        {"cell": cell.id, "step": step, "validation_loss": 5.0 - step} for cell in space.cells for step in (1, 2)
    ]
    sweep = from_tables(space.name, cells.assign(status="done"), pd.DataFrame(falling), **said_of_space(space, []))
    return replace(sweep, hypotheses=hypotheses)


def _columns(space: Space, hypotheses: Hypotheses) -> list[str]:
    """What the tests name; of `for_each`, the losses that the evaluations have, or else the pattern itself."""
    return [column for hypothesis in hypotheses.hypotheses for column in _columns_of(space, hypothesis)]


def _columns_of(space: Space, hypothesis: Hypothesis) -> list[str]:
    labels = [evaluation.label for evaluation in space.evaluations]
    losses = [f"{label}_loss" for label in labels]
    losses += [f"{label.replace('finetune_', 'forgetting_')}_loss" for label in labels if label.startswith("finetune_")]
    pattern = hypothesis.for_each
    each = [] if pattern is None else [loss for loss in losses if fnmatchcase(loss, pattern)]
    if pattern is not None and not each:
        each = [re.sub(r"\[(.)[^]]*\]", r"\1", pattern)]  # `[eu]` does not match itself, `*` does.
    named = [column for test in hypothesis.tests for column in columns_named(test)]
    return [*each, *(column.replace("{each}", one) for column in named for one in each or [""])]
