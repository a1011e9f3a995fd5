"""What a design cannot decide is what the analysis of its results then does not decide, whatever the results."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from raysweep.analysis import claims, example, sweep_data
from raysweep.analysis.design_check import without_verdict
from raysweep.analysis.noise import seed_noise
from raysweep.cli.design_messages import before_training
from raysweep.cli.main import main
from raysweep.space.read import load

TESTS: list[dict[str, Any]] = [
    {"trend": {"of": "effective_rank_W", "over": "weight_decay"}},
    {"trend": {"of": "effective_rank_W", "over": "weight_decay", "from": "middle", "to": "highest"}},
    {"trend": {"of": "loss", "over": "tokens"}},
    {"at": {"of": "loss", "over": "learning_rate_factor", "value": 1, "than": "lower"}},
    {"turn": {"of": "loss", "over": "batch_size", "part": "fall"}},
    {"trend_by_size": {"of": "loss", "over": "weight_decay"}},
    {"strongest": {"of": "isotropy_W", "over": "weight_decay"}},
    {"under_trained": {"of": "loss"}},
    {"apart": {"of": "effective_rank_W", "at": "loss"}},
    {"correlation": {"of": "effective_rank_W", "with": "loss"}},
    {"correlation": {"of": "effective_rank_W", "with": "finetune_python_loss"}, "needs": {"fine_tuning_steps": 200}},
    {"trend": {"of": "isotropy_W", "over": "weight_decay"}, "needs": {"decay_within": 0.15}},
    {"correlation": {"of": "effective_rank_W", "with": "loss", "size": "smallest"}},
    {"correlation": {"of": "effective_rank_W", "with": "loss", "size": "smallest", "minus_size": "largest"}},
    {"at": {"of": "loss", "over": "batch_size", "value": 256, "than": "lower"}},
    {"added_r2": {"of": "effective_rank_W", "for": "loss"}},
    {"correlation": {"of": "effective_rank_W", "with": "loss", "given": "law"}},
]


def space_of(folder: Path, sizes: list[str], fine_tuning: float, seeds: list[int]) -> Path:
    hypotheses = [{"id": i, "says": "it", "tests": [test | {"expect": "> 0"}]} for i, test in enumerate(TESTS)]
    (folder / "own.hypotheses.yaml").write_text(yaml.safe_dump({"hypotheses": hypotheses}), encoding="utf-8")
    content = {
        "name": "own",
        "base": {"corpus": "pile", "tokens": 32e9, "batch_size": 128},
        "cross": {"size": sizes},
        "ablate": [{"batch_size": [64, 256]}, {"weight_decay": [0.01, 0.5]}, {"seed": seeds}],
        "evaluations": ["in_distribution", {"task": "finetune_python", "tokens": fine_tuning}],
        "hypotheses": "own.hypotheses.yaml",
    }
    (folder / "own.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder / "own.yaml"


@pytest.mark.parametrize(
    ("sizes", "fine_tuning", "seeds"),
    [
        (["4M"], 1e7, [1]),
        (["4M", "8M", "16M", "28M"], 1e7, [1, 2]),
        (["4M", "8M", "16M", "28M", "40M", "75M"], 1e9, [1, 2]),
    ],
)
def test_it_is_what_the_analysis_leaves_without_an_interval(
    tmp_path: Path, sizes: list[str], fine_tuning: float, seeds: list[int]
) -> None:
    """Against the planted results of other draws, through the scorecard's own way."""
    space = load(space_of(tmp_path, sizes, fine_tuning, seeds))
    told = {test.claim: test.reason for test in without_verdict(space)}
    for draw in (1, 2):
        rng = np.random.default_rng(draw)
        rows = [cell.describe() | example.simulate(cell, rng) | {"status": "done"} for cell in space.cells]
        frame = pd.DataFrame(rows).drop(columns="validation_loss")
        sweep = sweep_data.from_tables("own", frame, pd.DataFrame({"cell": []}), **sweep_data.said_of_space(space, []))
        found = claims.tested(sweep.design, pd.DataFrame(), seed_noise(sweep))
        without = {str(one.hypothesis.id): one.finding.reason for one in found if not math.isfinite(one.finding.low)}
        assert told.keys() == without.keys()
        # The regressions count cells before they count configurations.
        assert {claim: why for claim, why in told.items() if claim not in ("15", "16") or len(sizes) > 1} == {
            claim: why for claim, why in without.items() if claim not in ("15", "16") or len(sizes) > 1
        }
    # Six sizes, and what is asked is there: all but tokens and the rate, which were not varied, and eight cells of one size.
    if len(sizes) == 6:
        assert set(told) == {"2", "3", "12", "13", "16"}
    assert told["3"].startswith("no two cells")


def done(*arguments: str) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        main([*arguments])


def plan(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    done("plan", *arguments)
    return capsys.readouterr().out


def test_plan_shows_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = space_of(tmp_path, ["4M", "8M", "16M", "28M"], 1e7, [1, 2])
    told = without_verdict(load(file))
    shown = plan(capsys, str(file))
    assert f"{len(told)} declared tests can have no verdict from these cells, whatever they show:" in shown
    assert re.search(r"^1 .*4 comparisons at equal settings allow too few permutations", shown, re.MULTILINE)
    answer = json.loads(plan(capsys, str(file), "--json"))
    assert answer["without_verdict"] == [vars(test) for test in told]
    assert before_training(told, "own.yaml").startswith(
        f"{len(told)} declared tests (of claims 1, 2, 3, 4, 5, 6, 10, 12, 13, 15, 16) can"
    )


def test_a_pattern_is_about_what_the_evaluations_give(tmp_path: Path) -> None:
    """Math is not fine-tuned on: that another hypothesis names it makes no test of it."""
    file = space_of(tmp_path, ["4M", "8M", "16M", "28M", "40M", "75M"], 1e9, [1, 2])
    tests = [{"trend": {"of": "{each}", "over": "weight_decay"}, "expect": "> 0"}]
    named = [{"correlation": {"of": "effective_rank_W", "with": "forgetting_math_loss"}, "expect": "< 0"}]
    hypotheses = [
        {"id": "each", "says": "it", "for_each": "forgetting_*_loss", "tests": tests},
        {"id": "named", "says": "it", "tests": named},
        {"id": "later", "says": "it", "for_each": "stable_rank_[eu]*", "tests": tests},
    ]
    (tmp_path / "own.hypotheses.yaml").write_text(yaml.safe_dump({"hypotheses": hypotheses}), encoding="utf-8")
    assert without_verdict(load(file)) == []


def test_a_penalty_against_another_is_decided_where_both_are_planned(tmp_path: Path) -> None:
    """Which of them is a control only the results say."""
    rank, control = (
        {"intervention": {"of": "loss", "by": "rank 0.5 x 100", "against": against}, "expect": "> 0"}
        for against in ("rank 0.865 x 100", "rank 0.9 x 100")
    )
    hypotheses = [{"id": i, "says": "it", "tests": [test]} for i, test in enumerate((rank, control))]
    (tmp_path / "own.hypotheses.yaml").write_text(yaml.safe_dump({"hypotheses": hypotheses}), encoding="utf-8")
    own = yaml.safe_load((Path(__file__).parents[2] / "search_spaces/interventions.yaml").read_text(encoding="utf-8"))
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump(own | {"hypotheses": "own.hypotheses.yaml"}), encoding="utf-8")
    (lacking,) = without_verdict(load(file))
    assert lacking.claim == "1"
    assert "no two cells with in_distribution_loss differ in that; there are" in lacking.reason


def test_without_declared_hypotheses_nothing_is_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = space_of(tmp_path, ["4M"], 1e7, [1])
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    del content["hypotheses"]
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    assert without_verdict(load(file)) == []
    assert "without_verdict" not in json.loads(plan(capsys, str(file), "--json"))


def test_the_study_that_is_begun_for_a_newcomer_can_decide_all_of_its_tests(tmp_path: Path) -> None:
    done("new", "study", str(tmp_path / "first"))
    (file,) = (path for path in (tmp_path / "first").glob("*.yaml") if "hypotheses" not in path.name)
    space = load(file)
    assert space.hypotheses is not None
    assert without_verdict(space) == []
