"""Where in a file a mistake is, to the line, counted by hand."""

from pathlib import Path

import pytest

from raysweep.errors import UserError
from raysweep.space.read import load
from raysweep.space.yaml_file import YamlFile, dotted

HEAD = """\
name: mine
base:
  size: 4M
  corpus: installed
  tokens: 1e6
  batch_size: 4
"""


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        (HEAD + "  wieght_decay: 0.1\n", "7: base.wieght_decay", "unknown field; did you mean 'weight_decay'?"),
        (HEAD + "  weight_decay: 010.5\n", "7", "'010.5' is not a number in decimal"),
        (HEAD + "  weight_decay: 1e-400\n", "7", "1e-400 is too small for a number"),
        (HEAD + "  seed: 9007199254740993.0\n", "7", "has more digits than a number with a point"),
        (HEAD + "  seed: 1__0_\n", "7", "'1__0_' is not a whole number in decimal"),
        ("%YAML 1.1\n---\n" + HEAD + "  weight_decay: 1:30.5\n", "1", "%YAML 1.1 would change what values mean"),
        (HEAD + "  weight_decay: high\n", "7: base.weight_decay", 'a number is needed, not "high"'),
        (HEAD + "cross:\n  seed:\n    - 1\n    - x\n", "10: cross.seed[1]", 'a number is needed, not "x"'),
        (HEAD + "cross:\n  seed: [1,\n    2, 1]\n", "9: cross.seed[2]", "1 is in the list twice"),
        (
            HEAD + "ablate:\n  - {seed: [1]}\n  - {sede: [1]}\n",
            "9: ablate[1].sede",
            "unknown field; did you mean 'seed'?",
        ),
        (
            HEAD + "ablate:\n  - {seed: [1]}\n  - {batch_size: [999999]}\n",
            "9: ablate[1]",
            "tokens 1000000 is less than",
        ),
        (HEAD + "evaluations:\n  - representation\n  - quantised\n", "9: evaluations[1]", "did you mean 'quantized'?"),
        (HEAD + "evaluations:\n  - task: quantized\n    bits: [4, 9]\n", "9: evaluations[0].bits[1]", "not 9"),
        (HEAD + "resources:\n  train:\n    gpu: 1\n", "9: resources.train.gpu", "did you mean 'gpus'?"),
        (HEAD + "loggers: [wandbb]\n", "7: loggers[0]", "wandbb"),
        (HEAD + "nmae: x\n", "7: nmae", "unknown key"),
        (HEAD + "  size: 8M\n", "7", "not valid YAML: key 'size' is there twice"),
        (HEAD + "  seed: 010\n", "7", "not valid YAML: '010' is not a whole number in decimal"),
        (HEAD + "  <<: {seed: 1}\n", "7", "not valid YAML: merge keys"),
        (HEAD + "cross: [\n", "8", "not valid YAML: "),
    ],
    ids=lambda value: value[:12] if isinstance(value, str) and value[0].isdigit() else "",
)
def test_a_mistake_names_file_and_line(tmp_path: Path, text: str, place: str, message: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as refused:
        load(file)
    assert str(refused.value).startswith(f"{file}:{place}: ")
    assert message in str(refused.value)


def test_what_is_missing_is_missing_where_it_should_be(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\nbase:\n  size: {depth: 2}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"mine.yaml:3: base.size.width: missing"):
        load(file)
    file.write_text("base: {}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"mine.yaml: name: missing"):
        load(file)


def test_a_file_of_comments_and_blank_lines_is_read_at_once(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("\n\n  # not this\n\n" * 500 + "a: 1\n", encoding="utf-8")
    assert YamlFile(file).content == {"a": 1}
    file.write_text("\n # a comment\n\n%YAML 1.1\n---\na: 1\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"mine.yaml:4: not valid YAML: %YAML 1.1 would change what values mean"):
        YamlFile(file)


def test_yaml_1_2_is_read_as_it_looks(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("a: 32e9\nb: 1_000\nc: yes\nd: 'no'\ne: -0.5\nf: ~\ng: 'x: 1'\nh: true\n", encoding="utf-8")
    content = YamlFile(file).content
    assert content == {
        "a": 32e9, "b": 1000, "c": True, "d": "no", "e": -0.5, "f": None, "g": "x: 1", "h": True,
    }  # fmt: skip
    assert isinstance(content["b"], int)


def test_a_place_as_text() -> None:
    assert dotted(("ablate", 0, "corpus", "pretraining", 1)) == "ablate[0].corpus.pretraining[1]"
    assert dotted(()) == ""


def test_a_key_is_a_name_whatever_yaml_1_1_takes_it_for(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("on: on\n'no': {yes: 1}\n", encoding="utf-8")
    assert YamlFile(file).content == {"on": True, "no": {"yes": 1}}
