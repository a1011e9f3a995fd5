"""The JSON schemas of files: they take every one that ships, and refuse what the reader refuses."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import test_space
import yaml

from raysweep.space.hypotheses import KINDS
from raysweep.space.schema import hypotheses_schema, search_space_schema
from raysweep.space.yaml_file import YamlFile
from raysweep.suites.read import is_suite
from raysweep.suites.schema import suite_schema

ROOT = Path(__file__).parents[2]
SCHEMA, HYPOTHESES, SUITE = search_space_schema(), hypotheses_schema(), suite_schema()
SHIPPED = {"raysweep.schema.json": SCHEMA, "hypotheses.schema.json": HYPOTHESES, "suite.schema.json": SUITE}
FILES = [*(ROOT / "search_spaces").glob("*.yaml"), *(ROOT / "results").glob("*/space.yaml")]


def errors(content: Any, schema: dict[str, Any] = SCHEMA) -> list[str]:
    return [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(content)]


@pytest.mark.parametrize("name", SHIPPED)
def test_it_is_a_schema_and_the_one_that_ships(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(SHIPPED[name])
    assert json.loads((ROOT / "search_spaces" / name).read_text()) == SHIPPED[name]


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_every_file_that_ships_passes_and_names_its_schema(file: Path) -> None:
    kind = "hypotheses" if ".hypotheses" in file.name else "suite" if is_suite(file) else "raysweep"
    assert errors(YamlFile(file).content, SHIPPED[f"{kind}.schema.json"]) == []
    if file.parent.name == "search_spaces":
        assert file.read_text().startswith(f"# yaml-language-server: $schema={kind}.schema.json\n")


GOOD_TEST = {"trend": {"of": "cosine_W", "over": "weight_decay", "from": "middle"}, "expect": "within 0.5 spreads"}


@pytest.mark.parametrize(
    ("test", "more"),
    [
        (GOOD_TEST | {"expect": "<= 0"}, {}),
        (GOOD_TEST | {"mean": {"of": "a", "minus": "b"}}, {}),
        ({"expect": "> 0"}, {}),
        ({"trnd": {"of": "a", "over": "seed"}, "expect": "> 0"}, {}),
        ({"trend": {"of": "a", "over": "weight_decays"}, "expect": "> 0"}, {}),
        ({"correlation": {"of": "a", "whit": "b"}, "expect": "> 0"}, {}),
        ({"correlation": {"of": "a", "with": "b", "given": "siez"}, "expect": "> 0"}, {}),
        (GOOD_TEST, {"paper": "all"}),
        (GOOD_TEST, {"hypothesis": []}),
    ],
)
def test_hypotheses_that_the_reader_refuses(test: dict[str, Any], more: dict[str, Any]) -> None:
    def file(one: dict[str, Any]) -> dict[str, Any]:
        return {"hypotheses": [{"id": "a", "says": "so", "tests": [one]}]}

    assert errors(file(GOOD_TEST) | {"paper": True}, HYPOTHESES) == []
    assert errors(file(test) | more, HYPOTHESES)


@pytest.mark.parametrize(
    "change",
    [
        {"suite": None},
        {"revision": {"last": 1}},
        {"revisions": {"last": 0}},
        {"evaluations": ["in_distribtion"]},
        {"measure": [{"of": "unembedding", "when": [1.0]}]},
        {"resources": {"disk": 0}},
        {"sequence_length": 1},
        {"published": [{"file": "a.csv", "on": {}, "columns": {"a": "b"}}]},
    ],
)
def test_suites_that_the_reader_refuses(change: dict[str, Any]) -> None:
    suite = {"name": "s", "suite": "pythia", "select": "size == '14m'", "revisions": {"evenly": 3}, "corpus": "installed",
             "measure": [{"of": "unembedding"}], "evaluations": ["in_distribution", {"task": "quantized", "bits": [4]}],
             "published": [{"file": "a.csv", "on": {"size": "model"}, "columns": {"x_accuracy": "acc"}}]}  # fmt: skip
    assert errors(suite, SUITE) == []
    assert errors(suite | change, SUITE)


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


@pytest.mark.parametrize(
    ("schema", "definition"),
    [
        (name, definition)
        for name in ("raysweep", "suite", "hypotheses")
        for definition in sorted(SHIPPED[f"{name}.schema.json"]["$defs"])
    ],
)
def test_every_field_says_what_it_is(schema: str, definition: str) -> None:
    fields = SHIPPED[f"{schema}.schema.json"]["$defs"][definition]["properties"]
    named = ["task", *(KINDS if definition == "Test" else ())]  # A kind of test has its own definition.
    assert [name for name, field in fields.items() if name not in named and not field.get("description")] == []
