"""A task of a user's own: what it is given, and what becomes of whatever it does."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from raysweep.errors import UserError
from raysweep.evaluation.task import Metric, Subject, example_subject
from raysweep.space import plugins
from raysweep.space.evaluations import evaluation
from raysweep.space.read import load, load_to_read
from raysweep.store.store import settings_text

TASKS = """
import sys
import time

from raysweep.evaluation.task import Metric


def good(subject, sequences=4, *, words=("a", "b")):
    yield Metric("width", subject.cell.size.width, "")
    yield Metric("loss", float(sequences), "nats")


def needs(subject, must):
    return []


def raises(subject):
    raise KeyError("no such thing")


def slow(subject):
    time.sleep(30)


ticks = []


def for_ever(subject):
    while True:
        ticks.append(1)


def ends(subject):
    sys.exit(3)


def returns(subject, what="0.5"):
    return {"nan": [Metric("x", float("nan"), "")], "text": [Metric("x", "1", "")], "dict": {"x": 1.0}, "none": None,
            "twice": [Metric("x", 1.0, ""), Metric("x", 2.0, "")], "empty": []}[what]


def batch(subject):
    return [Metric("size", 1.0, "")]


def none():
    return []


def quantized(subject):
    return []
"""


@pytest.fixture
def package(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "own_tasks").mkdir()
    (tmp_path / "own_tasks/__init__.py").write_text("")
    (tmp_path / "own_tasks/tasks.py").write_text(TASKS)
    path = list(sys.path)
    sys.path.append(str(tmp_path))
    yield tmp_path / "own_tasks"
    sys.path[:] = path
    for name in [name for name in sys.modules if name.startswith("own_tasks")]:
        del sys.modules[name]
    plugins.version.cache_clear()


def task(function: str, **more: Any) -> Any:
    return evaluation({"task": f"own_tasks.tasks:{function}", **more})


@pytest.fixture(scope="module")
def subject() -> Subject:
    return example_subject()


@pytest.mark.usefixtures("package")
def test_its_numbers_are_columns_of_its_name(subject: Subject) -> None:
    assert task("good").evaluate(subject) == [Metric("good_width", 8.0, ""), Metric("good_loss", 4.0, "nats")]
    other = task("good", sequences=7, name="mine")
    assert other.label == "mine"
    assert other.evaluate(subject)[1] == Metric("mine_loss", 7.0, "nats")
    assert task("good").identity["arguments"] == {"sequences": 4, "words": ("a", "b")}


def test_its_code_is_part_of_what_results_are_found_by(package: Path) -> None:
    before = task("good")
    assert settings_text(before.identity) == settings_text(task("good", time_limit=5).identity)
    assert settings_text(before.identity) != settings_text(task("good", sequences=5).identity)
    (package / "test_tasks.py").write_text("x = 1\n")
    (package / "tasks.py").write_text(f"# A comment.\n\n{TASKS}")
    plugins.version.cache_clear()
    assert settings_text(before.identity) == settings_text(task("good").identity)
    (package / "helper.py").write_text("x = 1\n")
    plugins.version.cache_clear()
    assert settings_text(before.identity) != settings_text(task("good").identity)
    # A node that has other code says so before anything is trained.
    with pytest.raises(
        UserError, match=r"own_tasks\.tasks:good is version \w{8} on \S+, and \w{8} where the sweep was"
    ):
        before.check_here()


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("name", "more", "said"),
    [
        ("raises", {}, r"own_tasks/tasks\.py:\d+: KeyError: 'no such thing'"),
        ("slow", {"time_limit": 0.2}, r"took longer than its time_limit, 0\.2 s"),
        ("ends", {}, r"tasks\.py:\d+: SystemExit: 3"),
        ("returns", {"what": "nan"}, "returned nan as x: leave out what is not defined"),
        ("returns", {"what": "text"}, "returned '1' as x: a number is asked for"),
        ("returns", {"what": "dict"}, r"returned dict: a list of Metric\(name, value, unit\) is asked for"),
        ("returns", {"what": "none"}, r"returned NoneType: a list of Metric\(name, value, unit\) is asked for"),
        ("returns", {"what": "empty"}, "returned no number"),
        ("returns", {"what": "twice"}, "returned two numbers for the column returns_x"),
        ("batch", {}, "returned a number for batch_size, a column of training: give it another name"),
    ],
)
def test_what_it_does_wrong_is_one_line(subject: Subject, name: str, more: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        task(name, **more).evaluate(subject)
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("item", "said"),
    [
        (
            {"task": "own_tasks.tasks:good", "sequence": 4},
            r"tasks\.py:\d+\) has no setting sequence; allowed: sequences, words",
        ),
        (
            {"task": "own_tasks.tasks:good", "arguments": {"sequences": 4}},
            r"tasks\.py:\d+\) has no setting arguments; ",
        ),
        ({"task": "own_tasks.tasks:good", "version": "2"}, r"tasks\.py:\d+\) has no setting version; "),
        ({"task": "own_tasks.tasks:needs"}, r"needs the setting must"),
        ({"task": "own_tasks.tasks:none"}, r"tasks\.py:\d+: none must take the trained cell first"),
        (
            {"task": "own_tasks.tasks:quantized"},
            "quantized: raysweep has columns of that name: give this task another by name",
        ),
        ({"task": "own_tasks.tasks:nothing"}, r"nothing is not there in .*tasks\.py"),
        ({"task": "own_taskz.tasks:good"}, "No module named 'own_taskz'; where it is a folder beside the search space"),
        ({"task": "own_tasks.tasks:good", "name": "Mine"}, "name"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_line(tmp_path: Path, item: dict[str, Any], said: str) -> None:
    base = {"size": "4M", "corpus": "installed", "tokens": 10**6, "batch_size": 4}
    file = tmp_path / "space.yaml"
    file.write_text(yaml.safe_dump({"name": "x", "base": base, "evaluations": [item]}))
    with pytest.raises(UserError, match=rf"space\.yaml:\d+: evaluations\[0\].*{said}") as error:
        load(file)
    assert "\n" not in str(error.value)
    # Results are read without it.
    assert load_to_read(file).evaluations == ()


@pytest.mark.usefixtures("package")
def test_a_loop_that_never_ends_is_ended(subject: Subject) -> None:
    with pytest.raises(UserError, match="took longer than its time_limit"):
        task("for_ever", time_limit=0.2).evaluate(subject)
    ticks = sys.modules["own_tasks.tasks"].ticks
    time.sleep(0.2)
    before = len(ticks)
    time.sleep(0.2)
    assert before == len(ticks) > 0


def test_a_name_that_is_no_task_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'los' is neither an evaluation task nor .*did you mean 'loss'"):
        evaluation({"task": "los"})
    with pytest.raises(ValidationError):
        evaluation({"task": "loss", "name": "x"})
