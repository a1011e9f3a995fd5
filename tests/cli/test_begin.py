"""What `new study` and `demo` begin with can be run as it is, from an installed package."""

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from raysweep.cli.parser import build_parser
from raysweep.space.read import load
from raysweep.space.yaml_file import YamlFile

ROOT = Path(__file__).parents[2]


def raysweep(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "raysweep.cli", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )


def test_a_new_study_is_a_sweep_with_hypotheses_and_commands_that_are_there(tmp_path: Path) -> None:
    begun = raysweep(tmp_path, "new", "study", "tail-2")
    assert begun.returncode == 0, begun.stderr
    folder = tmp_path / "tail-2"
    files = {file.name: file.read_text() for file in folder.iterdir()}
    assert set(files) == {
        "tail-2.yaml",
        "tail-2.hypotheses.yaml",
        "README.md",
        "raysweep.schema.json",
        "hypotheses.schema.json",
    }
    assert not any("NAME" in text for text in files.values())
    space = load(folder / "tail-2.yaml")
    assert space.name == "tail-2"
    assert len(space.cells) == 3 * (1 + 2 + 2 + 1)
    assert space.hypotheses is not None
    assert [one.id for one in space.hypotheses.hypotheses] == ["batch", "decay"]
    schema = json.loads(files["raysweep.schema.json"])
    assert list(jsonschema.Draft202012Validator(schema).iter_errors(YamlFile(folder / "tail-2.yaml").content)) == []
    commands = [line.split("  ")[0].split() for line in files["README.md"].splitlines() if line.startswith("raysweep ")]
    assert len(commands) == 9
    for _, *arguments in commands:
        build_parser().parse_args(arguments)
    planned = raysweep(folder, "plan", "tail-2.yaml")
    assert planned.returncode == 0, planned.stderr
    assert "18 cells" in planned.stdout
    assert "of training on the" in planned.stdout
    for name, said in (("tail-2", "tail-2 is there already"), ("a b", "a b: a sweep is called by letters")):
        refused = raysweep(tmp_path, "new", "study", name)
        assert refused.returncode == 1
        assert said in refused.stderr


@pytest.mark.parametrize("name", ["demo.yaml", "paper.yaml", "paper.hypotheses.yaml"])
def test_what_the_package_has_is_what_the_repository_shows(name: str) -> None:
    assert (ROOT / "search_spaces" / name).read_bytes() == (ROOT / "raysweep" / "space" / name).read_bytes()


def test_bash_completes_commands_and_options(tmp_path: Path) -> None:
    (tmp_path / "completion").write_text(raysweep(tmp_path, "completion", "bash").stdout)

    def completed(*words: str) -> set[str]:
        line = " ".join(words)
        asked = (
            f"source {tmp_path / 'completion'}; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; COMP_LINE='{line}'; "
            f"COMP_POINT={len(line)}; _shtab_raysweep; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        )
        return set(subprocess.run(["bash", "-c", asked], capture_output=True, text=True).stdout.split())

    assert completed("raysweep", "res") == {"restore", "results"}
    assert {"--output", "--columns", "--sort"} <= completed("raysweep", "results", "--")
    assert "study" in completed("raysweep", "new", "st")
