"""Each kind of test on simulated sweeps whose truth is its bound: any verdict is false, and 5% of sweeps may have one.

The cells are the paper's 108; what they measure is drawn. `added_r2` takes its interval as it is from
`statistics.added_r2_interval`, whose coverage `test_statistics` measures; test_moved_rank.py has `intervention`.
"""

import json
import math
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pandas as pd
import pytest

from raysweep.analysis import example, hypothesis_tests, noise
from raysweep.analysis import sweep_data as sweep
from raysweep.analysis.findings import Tests as SweepTests
from raysweep.space.hypotheses import KINDS
from raysweep.space.hypotheses import Test as OneTest

SWEEPS = 400

Rng = np.random.Generator
Columns = dict[str, Any]


@lru_cache(1)
def grid() -> pd.DataFrame:
    return pd.DataFrame([cell.describe() for cell in example.space().cells])


def normal(rng: Rng, n: int = 108) -> pd.Series:
    return pd.Series(rng.standard_normal(n))


def unrelated(rng: Rng) -> Columns:
    return {"effective_rank_W": normal(rng), "in_distribution_loss": normal(rng)}


def unrelated_within_sizes(rng: Rng) -> Columns:
    size = np.log(grid()["parameters"])
    return {"effective_rank_W": size + normal(rng), "in_distribution_loss": -size + normal(rng)}


def related_whatever_the_settings(rng: Rng) -> Columns:
    rank = normal(rng)
    return {"effective_rank_W": rank, "in_distribution_loss": rank + normal(rng)}


def as_close_to_either(rng: Rng) -> Columns:
    rank, loss = normal(rng), normal(rng)
    return {"effective_rank_W": rank, "in_distribution_loss": loss, "cosine_W": rank + loss + normal(rng)}


def noise_of_seeds(rng: Rng) -> Columns:
    """One rank and one loss for each size, but for seeds."""
    size = np.log(grid()["parameters"])
    return {"effective_rank_W": size + normal(rng), "in_distribution_loss": -size + normal(rng)}


def straight(rng: Rng) -> Columns:
    rank = normal(rng)
    return {"effective_rank_W": rank, "cosine_W": rank + normal(rng)}


def two_of_one_strength(rng: Rng) -> Columns:
    """Weight decay and the learning rate change the isotropy by 3 over their ranges."""
    cells = grid()
    of_decay = cells["weight_decay"].map({0.01: 0.0, 0.1: 0.5, 0.5: 1.0})
    of_rate = cells["learning_rate_factor"].map({0.1: 0.0, 1.0: 0.5, 10.0: 1.0})
    return {"isotropy_W": 3 * of_decay - 3 * of_rate + 0.1 * normal(rng)}


def rises(rng: Rng) -> pd.DataFrame:
    """Runs whose validation loss ends above its lowest, by 1% on average."""
    ends = 1 + np.abs(0.01 + 0.002 * rng.standard_normal(108))
    # The last two of forty are a twentieth of the run.
    losses = np.column_stack([np.full((108, 38), 3.0), 3 * ends, 3 * ends])
    cells, steps = np.repeat(grid()["id"], 40), np.tile(np.arange(1, 41), 108)
    return pd.DataFrame({"cell": cells.to_numpy(), "step": steps, "validation_loss": losses.ravel()})


@dataclass(frozen=True)
class Planted:
    """A test, and sweeps in which its effect is what it is held to."""

    spec: Columns
    expect: str
    columns: Callable[[Rng], Columns] = unrelated
    trajectories: Callable[[Rng], pd.DataFrame] | None = None
    rest: Columns = field(default_factory=dict)


RANK = {"of": "effective_rank_W"}
LOSS = {"with": "loss"}
TWO_SEEDS = 2 / math.sqrt(math.pi)
PLANTED = {
    "correlation": Planted(RANK | LOSS, "> 0"),
    "correlation of a size": Planted(RANK | LOSS | {"size": "smallest"}, "> 0"),
    "correlation within sizes": Planted(RANK | LOSS | {"given": "size"}, "> 0", unrelated_within_sizes),
    "correlation given settings": Planted(RANK | LOSS | {"given": "settings"}, "> 0", unrelated_within_sizes),
    "attenuation": Planted(RANK | LOSS, "> 0", related_whatever_the_settings),
    "closer": Planted({"of": "cosine_W", "with": "loss", "than": "effective_rank_W"}, "> 0", as_close_to_either),
    "line": Planted({"from": "effective_rank_W", "to": "loss"}, "> 0.5", related_whatever_the_settings),
    "trend": Planted(RANK | {"over": "batch_size"}, "> 0"),
    "at": Planted({"of": "loss", "over": "final_learning_rate_fraction", "value": 0.1, "than": "lower"}, "> 0"),
    "turn": Planted({"of": "loss", "over": "batch_size", "part": "rise"}, "> 0"),
    "trend_by_size": Planted(RANK | {"over": "batch_size"}, "> 0"),
    "spread": Planted(RANK | {"minus": "loss"}, "> 0"),
    "spread over another": Planted(RANK | {"over": "loss", "given": "size"}, "> 1", unrelated_within_sizes),
    "spread of quartiles": Planted(RANK | {"minus": "loss", "measure": "interquartile_range"}, "> 0"),
    "mean": Planted(RANK | {"minus": "loss"}, "> 0"),
    "spread_at_equal": Planted(RANK | {"at": "loss"}, "> 1"),
    "apart": Planted(RANK | {"at": "loss"}, f"> {TWO_SEEDS:.4f}", noise_of_seeds),
    "percentile": Planted(RANK | {"in": "loss", "end": "highest"}, "> 0.5"),
    "under_trained": Planted(RANK, "> 0.5"),
    "late_rise": Planted({"over": "batch_size"}, "> 0.01", trajectories=rises),
    "curvature": Planted({"of": "cosine_W", "in": "effective_rank_W"}, "> 0", straight),
    "strongest": Planted({"of": "isotropy_W", "over": "weight_decay"}, "> 0", two_of_one_strength),
}  # fmt: skip


def seeds(rng: Rng) -> pd.DataFrame:
    """The noise of three more seeds of a base cell of each size, each column's standard deviation being 1."""
    rows = []
    for column in ("effective_rank_W", "in_distribution_loss"):
        own = [(size, 3, math.sqrt(rng.chisquare(3) / 3)) for size in grid()["size"].unique()]
        pooled = math.sqrt(sum(f * s**2 for _, f, s in own) / 18)
        rows += [(column, s, math.nan, math.nan, f, 1, size) for size, f, s in [("", 18, pooled), *own]]
    return pd.DataFrame(rows, columns=noise.NOISE_COLUMNS)


def verdict(name: str, seed: int) -> str:
    planted, rng = PLANTED[name], np.random.default_rng(seed)
    trajectories = planted.trajectories(rng) if planted.trajectories else pd.DataFrame({"cell": [], "step": []})
    found = sweep.from_tables("planted", grid().assign(**planted.columns(rng)), trajectories)
    test = OneTest.model_validate({name.split()[0]: planted.spec, "expect": planted.expect})
    (finding,) = hypothesis_tests.findings(SweepTests(found, pd.DataFrame(), seeds(rng)), test)
    assert math.isfinite(finding.low), (name, finding)
    return finding.verdict


def test_every_kind_is_planted() -> None:
    assert {name.split()[0] for name in PLANTED} == set(KINDS) - {"added_r2", "intervention"}
    assert {verdict(name, 0) for name in PLANTED} <= {"supported", "contradicted", "undecided"}


@pytest.mark.slow
def test_a_test_whose_truth_is_its_bound_has_a_verdict_in_one_sweep_of_twenty(
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = []
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for name in PLANTED:
            found = list(pool.map(partial(verdict, name), range(SWEEPS), chunksize=20))
            table.append((name, found.count("supported") / SWEEPS, found.count("contradicted") / SWEEPS))
    with capsys.disabled():
        print("\n" + pd.DataFrame(table, columns=["kind", "supported", "contradicted"]).to_string(index=False))
        print(json.dumps({"sweeps": SWEEPS, "cells": 108}))
    # Of 400 at 5%, 8.3% are three standard errors above.
    assert [name for name, supported, contradicted in table if supported + contradicted > 0.083] == []
