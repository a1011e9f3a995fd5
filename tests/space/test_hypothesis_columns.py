"""A mistyped column of a hypothesis is found by the rehearsal."""

from pathlib import Path

import pytest

from raysweep.space.hypotheses import Test as OneTest
from raysweep.space.hypotheses import load_hypotheses
from raysweep.space.hypothesis_columns import columns_named, unknown_columns

KNOWN = ["effective_rank_W", "cosine_W", "in_distribution_loss", "batch_size", "finetune_python_loss"]


@pytest.mark.parametrize(
    ("kind", "columns"),
    [
        ({"correlation": {"of": "a", "with": "loss"}}, ["a"]),
        ({"closer": {"of": "a", "with": "b", "than": "c"}}, ["a", "b", "c"]),
        ({"line": {"from": "a", "to": "b"}}, ["a", "b"]),
        ({"added_r2": {"of": ["a", "b"], "for": ["c"]}}, ["a", "b", "c"]),
        ({"trend": {"of": "a", "over": "batch_size", "from": "lowest", "to": "middle"}}, ["a"]),
        ({"at": {"of": "a", "over": "learning_rate_factor", "value": 1, "than": "lower"}}, ["a"]),
        ({"turn": {"of": "a", "over": "batch_size", "part": "rise"}}, ["a"]),
        ({"percentile": {"of": "a", "in": "b", "end": "highest"}}, ["a", "b"]),
        ({"spread": {"of": "a", "over": "b"}}, ["a", "b"]),
        ({"spread_at_equal": {"of": "a", "at": "b"}}, ["a", "b"]),
        ({"intervention": {"of": "a", "by": "cap 15"}}, ["a"]),
    ],
)
def test_columns_of_a_test(kind: dict[str, object], columns: list[str]) -> None:
    assert sorted(columns_named(OneTest.model_validate(kind | {"expect": "> 0"}))) == columns


def test_only_what_no_column_is_called_is_named(tmp_path: Path) -> None:
    file = tmp_path / "some.hypotheses.yaml"
    file.write_text(
        "paper: true\n"
        "hypotheses:\n"
        "  - {id: fine, says: so, tests: [{correlation: {of: cosine_W, with: loss}, expect: '> 0'}]}\n"
        "  - {id: typo, says: so, tests: [{correlation: {of: cosine_w, with: finetune_python_loss}, expect: '> 0'}]}\n"
        "  - id: pattern\n"
        "    says: so\n"
        "    for_each: finetuned_*\n"
        "    tests: [{correlation: {of: '{each}', with: loss}, expect: '> 0'}]\n"
    )
    assert list(unknown_columns(load_hypotheses(file), KNOWN)) == [
        "hypothesis typo: no column cosine_w; did you mean 'cosine_W'?",
        "hypothesis pattern: no column is called finetuned_*",
    ]
