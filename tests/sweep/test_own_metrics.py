"""A study's own metrics: a package outside of raysweep, through a real sweep, its analysis and its publication."""

import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from tiny import make_cell

import raysweep
from raysweep.errors import UserError
from raysweep.exchange.publish import publish
from raysweep.exchange.published import read_published
from raysweep.space import plugins
from raysweep.space.measure import wanted
from raysweep.space.read import load
from raysweep.store import Store, measures
from raysweep.store.schemas import MEASURES
from raysweep.sweep.cell_tables import final_checkpoint
from raysweep.training import own_metrics

METRICS = '''
"""What this study measures."""

import time


def tail_index(matrix):
    """The share of the largest entry."""
    return float(matrix.abs().max() / matrix.abs().sum())


def raises(matrix):
    raise ValueError("no such thing\\nas a second line")


def text(matrix):
    return "0.5"


def nothing(matrix):
    return float("nan")


def for_ever(matrix):
    time.sleep(30)


def changes(matrix):
    matrix.zero_()
    return matrix.sum()


def exits(matrix):
    raise SystemExit(3)


two = 2


def of_two(matrix, other):
    return 0.0
'''

ROOT = str(Path(raysweep.__file__).parents[1])
NAMES = ("tail_index", "raises", "text", "nothing", "for_ever", "changes", "exits")


@pytest.fixture
def study(tmp_path: Path) -> Iterator[Path]:
    """A folder with a package and a search space that uses it, and nothing of it left in this process afterwards."""
    package = tmp_path / "own_study"
    package.mkdir()
    (package / "__init__.py").write_text("", "utf-8")
    (package / "metrics.py").write_text(METRICS, "utf-8")
    base = make_cell(tokens=1024, reports=2).model_dump()
    measure = [{"of": "unembedding", "metrics": [f"own_study.metrics:{name}" for name in NAMES], "time_limit": 0.5}]
    space = {"name": "own", "base": base, "code": ["own_study"], "measure": measure}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(space), "utf-8")
    path = list(sys.path)
    yield tmp_path
    sys.path[:] = path
    for name in [name for name in sys.modules if name.startswith("own_study")]:
        del sys.modules[name]
    plugins.version.cache_clear()
    own_metrics._too_long.clear()


@pytest.mark.slow
@pytest.mark.usefixtures("corpus")
def test_a_metric_costs_no_more_than_its_own_row(study: Path) -> None:
    space = load(study / "own.yaml")
    command = [sys.executable, "-m", "raysweep.cli", "run", str(study / "own.yaml"), "--store", str(study / "store")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=study.parent)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    store = Store(str(study / "store"))
    (cell,) = space.cells
    rows = store.read_rows(store.measures_file(cell.id), MEASURES) or []
    last = {row["metric"].partition(":")[2]: row for row in rows if row["step"] == 8}
    assert last.keys() == set(NAMES)
    final = final_checkpoint(cell, store)
    assert final is not None
    w = final.model["transformer.ff_out.weight"]
    assert last["tail_index"]["value"] == pytest.approx(float(w.abs().max() / w.abs().sum()), rel=1e-6)
    assert last["changes"]["value"] == 0
    assert {name: row["reason"] for name, row in last.items()} == {
        "tail_index": "", "changes": "",
        "raises": "failed: ValueError: no such thing",
        "text": "failed: it returned str, not a number",
        "nothing": "it is not defined for this matrix",
        "for_ever": "failed: it took too long for another matrix",
        "exits": "failed: SystemExit: 3",
    }  # fmt: skip
    first = next(r["reason"] for r in rows if r["metric"].endswith("for_ever"))
    assert first == "failed: it took longer than time_limit, 0.5 s"
    # What failed may be there the next time; what is not defined is not asked for again.
    lacking = measures.lacking(cell, wanted(space.measure, cell), store)
    assert {metric.partition(":")[2] for one in lacking for metric, _ in one.metrics} == {
        "raises", "text", "for_ever", "exits",
    }  # fmt: skip
    version = plugins.version("own_study.metrics:tail_index", plugins.METRICS)
    assert {row["settings"] for row in rows} == {f"version {version}"}
    # What one did to its matrix is not the model's.
    table = raysweep.results(space, store)
    assert table["effective_rank_W"].to_pylist()[0] > 0
    assert table["own_study_metrics_tail_index_unembedding"].to_pylist() == [last["tail_index"]["value"]]

    # Another version makes other rows.
    file = study / "own_study/metrics.py"
    file.write_text(METRICS.replace("matrix.abs().max()", "2 * matrix.abs().max()"), "utf-8")
    plugins.version.cache_clear()
    assert plugins.version("own_study.metrics:tail_index", plugins.METRICS) != version
    assert "own_study_metrics_tail_index_unembedding" not in raysweep.results(space, store).column_names

    # Where the package is not, its numbers are still read.
    publish(study / "own.yaml", store, study / "elsewhere/results")
    sys.path.remove(str(study))
    for name in [name for name in sys.modules if name.startswith("own_study")]:
        del sys.modules[name]
    published = read_published(study / "elsewhere/results")
    assert published.space.measure == ()
    assert len(published.measures) == len(rows)


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        (
            "own_study.metrics:tail",
            r"own_study\.metrics:tail: tail is not there in .*metrics\.py: a function is asked for, which must take one arg",
        ),
        ("own_study.metrics:two", r"two is not a function in .*metrics\.py"),
        (
            "own_study.metrics:of_two",
            r"metrics\.py:\d+: of_two must take one argument, the matrix \(docs/measures\.md\)",
        ),
        ("own_study.metricks:x", r"ModuleNotFoundError: No module named 'own_study\.metricks'"),
        ("own_study.broken:x", r"broken\.py:2: ZeroDivisionError: division by zero"),
        ("own_study.unreadable:x", r"unreadable\.py:1: SyntaxError"),
        ("tail_index", r"no metric tail_index; allowed: .*; one of your own is package\.module:name"),
    ],
)
def test_what_cannot_be_used_is_said_with_its_place(study: Path, metric: str, said: str) -> None:
    (study / "own_study/broken.py").write_text("x = 1\n1 / 0\n", "utf-8")
    (study / "own_study/unreadable.py").write_text("def x(:\n", "utf-8")
    file = study / "own.yaml"
    space = yaml.safe_load(file.read_text("utf-8")) | {"measure": [{"of": "unembedding", "metrics": [metric]}]}
    file.write_text(yaml.safe_dump(space), "utf-8")
    with pytest.raises(UserError, match=rf"own\.yaml:\d+: measure\[0\]\.metrics: .*{said}") as caught:
        load(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("code", "said"), [(["nowhere"], r"code\[0\]: .*nowhere is not a folder"), ("own_study", "a list of folders")]
)
def test_code_that_is_not_there(study: Path, code: object, said: str) -> None:
    file = study / "own.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text("utf-8")) | {"code": code}), "utf-8")
    with pytest.raises(UserError, match=said):
        load(file)


def test_it_is_given_a_copy() -> None:
    matrix = torch.ones(3, 2)
    value, reason = own_metrics.own_metric("torch:sum", matrix, 5.0)
    assert (value, reason) == (6.0, "")
    assert math.isnan(own_metrics.own_metric("torch:transpose", matrix, 5.0)[0])


def test_what_has_no_file_and_what_is_too_large(study: Path) -> None:
    with pytest.raises(
        ValueError, match="builtins has no file by which its version could be known: write a function around it"
    ):
        plugins.version("builtins:abs", plugins.METRICS)
    (study / "own_study/large.py").write_text("def large(matrix):\n    return 10**400\n", "utf-8")
    load(study / "own.yaml")
    value, reason = own_metrics.own_metric("own_study.large:large", torch.ones(2, 2), 5.0)
    assert math.isnan(value)
    assert reason == "failed: it returned a number that is too large"
