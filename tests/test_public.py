"""The public functions: what importing costs, that examples run, that the structure is what it says."""

import ast
import doctest
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import raysweep
import raysweep.text

ROOT = Path(__file__).parents[1]

LIGHT = "import sys; {}; assert not {{'ray', 'torch', 'transformers', 'matplotlib', 'pandas'}} & set(sys.modules)"


@pytest.mark.parametrize(
    "code",
    [
        "import raysweep",
        "import raysweep; raysweep.load('search_spaces/demo.yaml')",
        "import raysweep; raysweep.status(raysweep.load('search_spaces/demo.yaml'), '/tmp/none')",
        "import raysweep; raysweep.plan(raysweep.load('search_spaces/paper.yaml'))",
        "from raysweep.cli import parser; parser.build_parser()",
    ],
)
def test_what_only_reads_imports_nothing_heavy(code: str) -> None:
    subprocess.run([sys.executable, "-c", LIGHT.format(code)], cwd=ROOT, check=True)


FUNCTIONS = ("load", "plan", "run", "evaluate", "status", "results", "analyze", "geometry", "export")


def test_every_public_name_is_there_and_documented() -> None:
    for name in raysweep.__all__:
        assert getattr(raysweep, name) is not None, name
    for name in FUNCTIONS:
        text = inspect.getdoc(getattr(raysweep, name)) or ""
        for section in ("Parameters", "Returns", "Raises", "Examples"):
            if (name, section) != ("plan", "Raises"):  # It has nothing to raise.
                assert f"{section}\n---" in text, (name, section)
    with pytest.raises(AttributeError, match="no attribute 'rum'"):
        _ = raysweep.rum


@pytest.mark.parametrize("name", [*FUNCTIONS, "Space"])
def test_the_examples_in_docstrings_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    thing = getattr(raysweep, name)
    names = vars(inspect.getmodule(thing)) | {"raysweep": raysweep}
    for example in doctest.DocTestFinder(recurse=False).find(thing, name, globs=names):
        result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example)
        assert result.failed == 0, name


def test_the_examples_of_text_run() -> None:
    assert doctest.testmod(raysweep.text).failed == 0
    assert doctest.testmod(raysweep.text).attempted == 3


def test_no_file_is_long_and_every_file_says_what_it_is_for() -> None:
    files = [*(ROOT / "raysweep").rglob("*.py"), *(ROOT / "analysis").glob("*.py")]
    assert len(files) > 100
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert text.count("\n") <= 400, file
        assert ast.get_docstring(ast.parse(text)), file


def test_types_are_shipped() -> None:
    assert (ROOT / "raysweep" / "py.typed").exists()
    assert os.path.samefile(ROOT / "raysweep" / "analysis", ROOT / "analysis")
