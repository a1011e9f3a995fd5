"""Which matrices a search space names, and what is said of names that are none."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import make_cell

from raysweep.errors import UserError
from raysweep.space.measure import Measurement, matrix_names, wanted
from raysweep.space.read import load
from raysweep.space.size import Size

SIZE = Size(width=8, depth=2, heads=2)


def names(*of: str, **settings: Any) -> list[str]:
    return Measurement(of=of, **settings).names(SIZE)


def test_what_there_is() -> None:
    there = matrix_names(SIZE)
    assert len(there) == len(set(there))
    in_blocks = 2 * (7 + 2 * 6)
    hidden = 3 + 1
    gradients = 2 + 2 * (7 + 2 * 4)
    assert len(there) == 2 + in_blocks + hidden + gradients


def test_a_star_means_what_one_would_list() -> None:
    assert names("blocks.*.attention.query") == ["blocks.0.attention.query", "blocks.1.attention.query"]
    assert names("hidden.*") == ["hidden.0", "hidden.1", "hidden.2", "hidden.final"]
    # Heads and gradients only where they are named.
    assert names("*embedding") == ["embedding", "unembedding"]
    assert len(names("blocks.*")) == 2 * 7
    assert names("*.query") == ["blocks.0.attention.query", "blocks.1.attention.query"]
    assert len(names("blocks.*.heads.*.ov")) == 4
    assert names("gradients.*embedding") == ["gradients.embedding", "gradients.unembedding"]
    assert names("unembedding", "*embedding") == ["unembedding", "embedding"]


def test_it_changes_no_id_and_each_matrix_comes_once() -> None:
    cell = make_cell(reports=2)
    found = wanted(
        [
            Measurement(of=("unembedding",)),
            Measurement(of=("unembedding", "hidden.1"), metrics=("stable_rank",), when=(0.4, 1.0)),
            Measurement(of=("unembedding",), metrics=("cosine",), tokens="rare"),
        ],
        cell,
    )
    assert [one.label for one in found] == ["unembedding", "hidden.1", "unembedding[rare]"]
    every, (half, last) = set(cell.report_steps), (16, 32)
    assert found[0].spectrum == every
    assert found[0].metrics["effective_rank", ""] == every
    assert found[0].metrics["stable_rank", ""] == found[1].spectrum == {half, last}


def test_when_is_as_it_is_written() -> None:
    """0.55 x 100 is a little more than 55 in floats."""
    cell = make_cell(tokens=100 * 128)
    assert cell.steps == 100
    assert Measurement(of=("embedding",), when=(0.55,)).steps(cell) == [55]


def test_states_that_fit_in_no_memory_are_refused() -> None:
    cell = make_cell(sequence_length=2048, batch_size=4, tokens=10**6, size={"width": 768})
    with pytest.raises(ValueError, match=r"sequences: the states of all positions of 512 sequences take 25\.8 GB"):
        wanted([Measurement(of=("hidden.1",), positions="all")], cell)


SPACE = {
    "name": "x",
    "base": {"size": {"width": 8}, "corpus": "installed", "tokens": 4096, "batch_size": 4, "sequence_length": 32},
}


@pytest.mark.parametrize(
    ("measure", "said"),
    [
        ({"of": "x"}, r"^.*:\d+: measure: a list of \{of"),
        ([{"of": "unembeding"}], r":\d+: measure\[0\]\.of: unembeding is no matrix .*did you mean 'unembedding'"),
        ([{"of": "blocks.6.mlp.up"}], r"measure\[0\]\.of: blocks\.6\.mlp\.up is no matrix of a model of 6 blocks"),
        ([{"of": "unembedding", "metrics": ["stabel_rank"]}], "no metric stabel_rank; .*did you mean 'stable_rank'"),
        ([{"of": "unembedding", "metrics": ["gini", "gini"]}], "gini is there twice"),
        ([{"of": "unembedding", "metric": ["gini"]}], "unknown field; did you mean 'metrics'"),
        ([{"of": "hidden.*", "metrics": ["cka"]}], r"cka is of two matrices: add against: hidden\.final"),
        ([{"of": "hidden.*", "against": "hidden.0"}], r"against is for cka and pwcca"),
        ([{"of": "hidden.*", "metrics": ["cka"], "against": "hidden.9"}], r"no matrix hidden\.9; did you mean 'hidden"),
        ([{"of": "blocks.*.mlp.up", "metrics": ["cka"], "against": "embedding"}], "embedding has not as many rows"),
        ([{"of": "blocks.*.mlp.up", "tokens": "rare"}], "rare is of the embedding and the unembedding, not of blocks"),
        ([{"of": "embedding", "positions": "all"}], r"positions: all is of hidden states, not of embedding"),
        ([{"of": "hidden.1"}, {"of": "hidden.*", "sequences": 8}],
         r"measure\[1\]\.sequences: hidden\.1 is .* over 512 and over 8: choose one"),
        ([{"of": "embedding", "sequences": 8}], r"sequences: 8 is of hidden states, not of embedding"),
        ([{"of": "embedding", "time_limit": 8}], r"time_limit: it is for functions of your own"),
        ([{"of": "embedding", "metrics": ["no_study:x"]}], r"beside the search space, add code: \[no_study\]$"),
        ([{"of": []}], r"measure\[0\]\.of"),
        ([{"of": "hidden.1", "when": [2]}], r"less than or equal to 1"),
        ([{}], r"measure\[0\]\.of: missing"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_line(measure: Any, said: str, tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(yaml.safe_dump(SPACE | {"measure": measure}), encoding="utf-8")
    with pytest.raises(UserError, match=said) as caught:
        load(file)
    assert "\n" not in str(caught.value)


def test_a_space_with_measures_has_the_cells_that_it_had(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(yaml.safe_dump(SPACE), encoding="utf-8")
    plain = load(file)
    file.write_text(yaml.safe_dump(SPACE | {"measure": [{"of": "hidden.*"}]}), encoding="utf-8")
    assert load(file).cells == plain.cells
    assert [cell.id for cell in load(file).cells] == [cell.id for cell in plain.cells]
