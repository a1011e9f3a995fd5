"""The JSON schemas of search spaces and of hypotheses, by which editors complete and check their fields.

They are made of the same classes that read the files. What depends on several fields at once, or on what lies on the disk,
only `raysweep plan` can tell.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Sequence
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from raysweep.space.cell import Cell
from raysweep.space.design import Over, Sample
from raysweep.space.evaluations import TASKS, Evaluation, settings_class
from raysweep.space.fields import Strict
from raysweep.space.hypotheses import KINDS, PAPER, Hypothesis
from raysweep.space.measure import Measurement
from raysweep.space.resources import Resources
from raysweep.space.size import SIZES
from raysweep.space.space import Space, Tracker

_LIMITS = {"gt": "exclusiveMinimum", "ge": "minimum", "lt": "exclusiveMaximum", "le": "maximum"}

CORPORA = ("installed", "pile")
"""What may stand for a whole corpus."""

_TEXT = {"type": "string", "minLength": 1}

# `package.module:function`, or the name of an entry point.
_OWN = {"type": "string", "pattern": r"^[\w.]+:[\w.]+$"}


def search_space_schema() -> dict[str, Any]:
    """The schema, under JSON Schema's draft 2020-12.

    Examples
    --------
    >>> search_space_schema()["$defs"]["Cell"]["properties"]["weight_decay"]["default"]
    0.1
    """
    of, definitions = definitions_of([Cell, Sample, Over, Measurement, Resources, *task_settings()])
    fields = definitions["Cell"]["properties"]
    fields["size"] = either({"enum": list(SIZES)}, fields["size"])
    fields["corpus"] = either({"enum": list(CORPORA)}, fields["corpus"])
    definitions["Over"]["properties"]["choice"]["anyOf"][0].pop("items", None)

    def axes(values: Any) -> dict[str, Any]:
        return {"type": "object", "properties": {name: values(field) for name, field in fields.items()},
                "additionalProperties": False}  # fmt: skip

    lists = axes(lambda field: {"type": "array", "minItems": 1, "uniqueItems": True, "items": field})
    named = Space.model_json_schema(mode="validation")["properties"]["name"]
    properties = {
        "name": {**named, "description": "What the sweep is called; its results are in runs/<name>."},
        "base": {**axes(lambda field: field), "description": "One value for each field of a cell."},
        "cross": {**lists, "description": "Axes: every combination of their values is a cell."},
        "sample": {**of(Sample), "description": "How many points, spread over the ranges of `over`."},
        "over": {**axes(lambda field: of(Over)), "description": "Ranges of settings that points are spread over."},
        "ablate": {"type": "array", "items": lists,
                   "description": "Changes of the base, each a small grid of its own; others are left as they are."},
        "where": {**_TEXT, "description": "Only the cells for which this holds, such as steps >= 256."},
        "measure": {"type": "array", "items": of(Measurement),
                    "description": "What is measured of matrices and hidden states while a cell trains."},
        "evaluations": {"type": "array", "items": evaluation_items(of), "description": "The tasks for each trained cell."},
        "resources": {**of(Resources), "description": "What training and evaluating ask of the cluster."},
        "loggers": {"type": "array", "uniqueItems": True, "items": {"enum": list(get_args(Tracker))},
                    "description": "Experiment trackers that are told of it."},
        "code": {"type": "array", "items": _TEXT, "description": "Folders beside this file with your own Python packages."},
        "hypotheses": {"type": "string", "pattern": r"^[^/\\]+\.ya?ml$",
                       "description": "A file beside this one with what you expect."},
    }  # fmt: skip
    optional = {name: or_nothing(what) if name not in ("name", "base") else what for name, what in properties.items()}
    return file_schema("A search space of raysweep", ["name", "base"], optional, definitions)


def hypotheses_schema() -> dict[str, Any]:
    """The schema of a file of hypotheses.

    Examples
    --------
    >>> hypotheses_schema()["$defs"]["Correlation"]["required"]
    ['of', 'with']
    """
    of, definitions = definitions_of([Hypothesis])
    for kind, definition in definitions.items():
        for name, field in definition["properties"].items():
            is_kind = kind == "Test" and name in KINDS  # It has its own definition.
            if not is_kind and "description" not in field:
                field["description"] = _MEANINGS[name]
    definitions["Spread"]["properties"]["over"]["description"] = "The column that it is divided by."
    definitions["Test"]["oneOf"] = [{"required": [kind]} for kind in KINDS]
    properties = {
        "hypotheses": {
            "type": "array",
            "items": of(Hypothesis),
            "description": "What is claimed, each with its tests.",
        },
        PAPER: {"type": "boolean", "default": False, "description": "Test the paper's claims before these, too."},
    }
    return file_schema("Hypotheses of a sweep", ["hypotheses"], properties, definitions)


_MEANINGS = {
    "of": "The column; `loss` stands for the loss on held-out text.",
    "with": "The other column.",
    "than": "The column that takes the place of `with`; of `at`: the values that it is compared with.",
    "for": "The loss that is predicted, or a list of several.",
    "at": "The column in which the pairs are equal.",
    "in": "The column by which the cells are ordered.",
    "over": "The setting that is varied.",
    "from": "Where the range begins; of `line`: the column that predicts.",
    "to": "Where the range ends; of `line`: the column that is predicted.",
    "minus": "The column that is taken from it.",
    "end": "Which end of `in`.",
    "part": "Which side of the U.",
    "value": "The value of the setting.",
    "block": "The kind of block.",
    "sizes": "Of which sizes; of an odd number the middle one is in both halves.",
    "id": "What it is called.",
    "says": "The claim in words.",
    "tests": "What decides it: it is supported where all of them are.",
    "among": "Which cells the test is about.",
    "needs": "What a sweep must have for the test to say anything.",
}
"""What the fields of tests mean that have the same name in many kinds."""


def file_schema(
    title: str, required: list[str], properties: dict[str, Any], definitions: dict[str, Any]
) -> dict[str, Any]:
    """The schema of a file that is a mapping with these keys and no others."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        "type": "object",
        "required": required,
        "properties": properties,
        "additionalProperties": False,
        "$defs": definitions,
    }


Reference = Callable[[type[BaseModel]], dict[str, Any]]


def definitions_of(models: Sequence[type[BaseModel]]) -> tuple[Reference, dict[str, Any]]:
    """What refers to the schema of each model, and the definitions of all that is in them, with limits and docstrings."""
    names, made = models_json_schema([(model, "validation") for model in models], ref_template="#/$defs/{model}")
    definitions: dict[str, Any] = made["$defs"]
    for model in models:
        definition = definitions[names[(model, "validation")]["$ref"].removeprefix("#/$defs/")]
        _complete(model, definition, definitions)
        if "task" in definition["properties"] and issubclass(model, Evaluation):
            definition["required"] = sorted({"task", *definition.get("required", [])})
    _shorthands(definitions)
    return lambda model: dict(names[(model, "validation")]), definitions


def task_settings() -> list[type[BaseModel]]:
    """The settings of every task, each class once."""
    return list(dict.fromkeys(settings_class(task) for task in TASKS))


def evaluation_items(of: Reference) -> dict[str, Any]:
    """What may stand in a list of evaluations: a task's name, or its settings."""
    # A task of one's own takes the arguments of its function.
    own = {"type": "object", "required": ["task"], "properties": {"task": _OWN}}
    return {"anyOf": [{"enum": list(TASKS)}, _OWN, *map(of, task_settings()), own]}


def or_nothing(what: dict[str, Any]) -> dict[str, Any]:
    """A key that may stand there without a value, as in YAML `cross:` does."""
    said = what.pop("description")
    return {"description": said, "anyOf": [what, {"type": "null"}]}


def _shorthands(definitions: dict[str, Any]) -> None:
    """What a file may write in place of a mapping or a list: the name of a source, one pattern."""
    source = {"anyOf": [_TEXT, {"$ref": "#/$defs/Source"}]}
    for made in definitions.values():
        for name, field in (of := made.get("properties", {})).items():
            if field.get("type") == "array" and field["items"] == {"$ref": "#/$defs/Source"}:
                of[name] = either(source, field | {"items": source})
    if "Measurement" in definitions:
        measured = definitions["Measurement"]["properties"]
        measured["of"] = either(_TEXT, measured["of"])


def either(short: dict[str, Any], field: dict[str, Any]) -> dict[str, Any]:
    """A field that may be written shorter."""
    kept = {name: field[name] for name in ("description", "default") if name in field}
    return kept | {"anyOf": [short, {name: value for name, value in field.items() if name not in kept}]}


def _complete(model: type[BaseModel], definition: dict[str, Any], definitions: dict[str, Any]) -> None:
    """Put the docstrings and limits of a model's fields, and of those inside it, into its definition."""
    written = {name: field.alias or name for name, field in model.model_fields.items()}
    for kind in reversed([kind for kind in model.__mro__ if issubclass(kind, Strict)]):
        for name, text in _docs(kind).items():
            if written.get(name) in definition["properties"]:
                definition["properties"][written[name]].setdefault("description", text)
    for name, field in model.model_fields.items():
        _limit(definition["properties"][written[name]], field.annotation, field.metadata)
        for inner in _models(field.annotation):
            _complete(inner, definitions[inner.__name__], definitions)


def _limit(made: dict[str, Any], annotation: Any, metadata: Sequence[Any]) -> None:
    """Put the limits of a number into its schema: pydantic leaves them out behind a validator of ours."""
    if get_origin(annotation) is Annotated:
        annotation, *more = get_args(annotation)
        _limit(made, annotation, [*more, *metadata])
    elif get_origin(annotation) in (Union, UnionType):
        for branch, one in zip(made["anyOf"], get_args(annotation), strict=True):
            _limit(branch, one, metadata)
    elif get_origin(annotation) is tuple and "items" in made:
        _limit(made["items"], get_args(annotation)[0], ())
    elif annotation in (int, float):
        for one in metadata:
            for limit in getattr(one, "metadata", None) or [one]:  # Of a Field, inside it.
                for name, keyword in _LIMITS.items():
                    if (value := getattr(limit, name, None)) is not None:
                        made[keyword] = value


def _models(annotation: Any) -> list[type[BaseModel]]:
    inside = getattr(annotation, "__args__", ())
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in inside for model in _models(part)]


def _docs(model: type) -> dict[str, str]:
    """Field -> the text below it in the source."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for field, below in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            text = below.value.value if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) else None
            if isinstance(text, str):
                found[field.target.id] = " ".join(text.split())
    return found
