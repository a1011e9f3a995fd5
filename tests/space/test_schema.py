"""The JSON schema of search spaces: it takes every one that ships, and refuses what the reader refuses."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import test_space
import yaml

from raysweep.space.schema import search_space_schema
from raysweep.space.yaml_file import YamlFile
from raysweep.suites.read import is_suite

ROOT = Path(__file__).parents[2]
SCHEMA = search_space_schema()
FILES = [
    file
    for file in [*(ROOT / "search_spaces").glob("*.yaml"), *(ROOT / "results").glob("*/space.yaml")]
    if ".hypotheses" not in file.name and not is_suite(file)
]


def errors(content: Any) -> list[str]:
    return [error.message for error in jsonschema.Draft202012Validator(SCHEMA).iter_errors(content)]


def test_it_is_a_schema_and_the_one_that_ships() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert json.loads((ROOT / "search_spaces" / "raysweep.schema.json").read_text()) == SCHEMA


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_every_search_space_that_ships_passes(file: Path) -> None:
    assert errors(YamlFile(file).content) == []
    if file.parent.name == "search_spaces":
        assert file.read_text().startswith("# yaml-language-server: $schema=raysweep.schema.json\n")


def test_shorthands_and_everything_else_that_may_stand_in_a_file_pass() -> None:
    source = {"folder": "texts", "weight": 2}
    content = {
        "name": "all",
        "base": {"size": {"width": 64, "heads": 2}, "corpus": {"name": "mine", "pretraining": "pile"}, "tokens": 8e9,
                 "batch_size": 4, "effective_rank_target": None, "precision": "bfloat16"},
        "cross": {"size": ["4M", {"width": 32}], "corpus": ["installed", {"name": "b", "pretraining": ["pile", source]}]},
        "sample": {"count": 8}, "over": {"weight_decay": {"log_uniform": [0.01, 1]}, "seed": {"choice": [1, 2]}},
        "ablate": [{"tokens": [1e6], "batch_size": [4, 8]}], "where": "steps > 3", "code": ["mine"],
        "measure": [{"of": "hidden.*", "metrics": []}, {"of": ["embedding"], "metrics": ["mine.metrics:own"], "when": [1]}],
        "evaluations": ["in_distribution", "mine.tasks:own", {"task": "mine.tasks:own", "depth": 3},
                        {"task": "loss", "name": "law", "on": "paloma"},
                        {"task": "finetune", "name": "sql", "on": [source, "pile"], "learning_rate": 1e-3}],
        "resources": {"train": {"gpus": 0.5, "keep_checkpoints": "all"}}, "loggers": None,
        "hypotheses": "mine.hypotheses.yaml",
    }  # fmt: skip
    assert errors(content) == []


# What several fields say together, what is written twice under other words, and numbers that YAML has as text.
ONLY_THE_READER = {
    "'name' twice", "base.weight_decay finite", "base.size 30 not divisible by 4 heads", "base.size odd", "50304 bpe",
    "tokens 100 less than one step", "base.tokens: missing",
    "warmup_fraction 1 is all of the end at its peak and not at 0.1",
    "cross.size[1] twice", "less than one step batch_size=1000000000", "ablate[0].seed already an axis of cross",
    "evaluations[1] twice", "evaluations[0].tokens one step", "resources.train share a GPU", "'010' whole number decimal",
    "'1:30' decimal", "merge keys write the keys out", "peak learning rate would be 1e+50", "peak learning rate 1e-50",
    "evaluations[0].bits twice", "resources.train.gpus one GPU 1.5", "resources.evaluate.gpus 0.0001",
    "resources.train.workers batch_size 4 3 workers",
}  # fmt: skip


def structural() -> list[tuple[Any, list[str]]]:
    found = []
    for content, said in test_space.REFUSED:
        try:
            parsed = yaml.safe_load(content) if isinstance(content, str) else content
        except yaml.YAMLError:
            continue
        found.append((parsed, said))
    return found


def test_what_the_reader_refuses_it_refuses_too() -> None:
    checked = structural()
    passed = {" ".join(said) for content, said in checked if errors(content) == []}
    assert passed == ONLY_THE_READER
    assert len(checked) > 2 * len(passed)


@pytest.mark.parametrize("definition", sorted(SCHEMA["$defs"]))
def test_every_field_says_what_it_is(definition: str) -> None:
    fields = SCHEMA["$defs"][definition]["properties"]
    assert [name for name, field in fields.items() if name != "task" and "description" not in field] == []
