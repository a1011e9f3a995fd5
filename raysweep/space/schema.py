"""The JSON schema of a search-space file, by which editors complete and check its fields.

It is made of the same classes that read the file. What depends on several fields at once, or on what lies on the disk, only
`raysweep plan` can tell.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Sequence
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from raysweep.space.cell import Cell
from raysweep.space.design import Over, Sample
from raysweep.space.evaluations import TASKS, settings_class
from raysweep.space.fields import Strict
from raysweep.space.measure import Measurement
from raysweep.space.resources import Resources
from raysweep.space.size import SIZES
from raysweep.space.space import Space, Tracker

_LIMITS = {"gt": "exclusiveMinimum", "ge": "minimum", "lt": "exclusiveMaximum", "le": "maximum"}

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
    tasks = {task: settings_class(task) for task in TASKS}
    models: list[type[BaseModel]] = [Cell, Sample, Over, Measurement, Resources, *dict.fromkeys(tasks.values())]
    names, made = models_json_schema([(model, "validation") for model in models], ref_template="#/$defs/{model}")
    definitions: dict[str, Any] = made["$defs"]
    for model in models:
        definition = definitions[names[(model, "validation")]["$ref"].removeprefix("#/$defs/")]
        _complete(model, definition, definitions)
        if "task" in definition["properties"]:
            definition["required"] = sorted({"task", *definition.get("required", [])})
    fields = definitions["Cell"]["properties"]
    _shorthands(definitions)

    def of(model: type[BaseModel]) -> dict[str, Any]:
        return dict(names[(model, "validation")])

    def axes(values: Any) -> dict[str, Any]:
        return {"type": "object", "properties": {name: values(field) for name, field in fields.items()},
                "additionalProperties": False}  # fmt: skip

    lists = axes(lambda field: {"type": "array", "minItems": 1, "uniqueItems": True, "items": field})
    named = Space.model_json_schema(mode="validation")["properties"]["name"]
    # A task of one's own takes the arguments of its function.
    own = {"type": "object", "required": ["task"], "properties": {"task": _OWN}}
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
        "evaluations": {
            "type": "array",
            "description": "The tasks for each trained cell.",
            "items": {"anyOf": [{"enum": list(TASKS)}, _OWN, *(of(kind) for kind in dict.fromkeys(tasks.values())), own]},
        },
        "resources": {**of(Resources), "description": "What training and evaluating ask of the cluster."},
        "loggers": {"type": "array", "uniqueItems": True, "items": {"enum": list(get_args(Tracker))},
                    "description": "Experiment trackers that are told of it."},
        "code": {"type": "array", "items": _TEXT, "description": "Folders beside this file with your own Python packages."},
        "hypotheses": {"type": "string", "pattern": r"^[^/\\]+\.ya?ml$",
                       "description": "A file beside this one with what you expect."},
    }  # fmt: skip
    optional = {name: _or_nothing(what) if name not in ("name", "base") else what for name, what in properties.items()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A search space of raysweep",
        "type": "object",
        "required": ["name", "base"],
        "properties": optional,
        "additionalProperties": False,
        "$defs": definitions,
    }


def _or_nothing(what: dict[str, Any]) -> dict[str, Any]:
    """A key that may stand there without a value, as in YAML `cross:` does."""
    said = what.pop("description")
    return {"description": said, "anyOf": [what, {"type": "null"}]}


def _shorthands(definitions: dict[str, Any]) -> None:
    """What a file may write in place of a mapping or a list: the name of a size, of a corpus, of a source; one pattern."""
    cell, corpus = definitions["Cell"]["properties"], definitions["Corpus"]["properties"]
    cell["size"] = _either({"enum": list(SIZES)}, cell["size"])
    cell["corpus"] = _either({"enum": ["installed", "pile"]}, cell["corpus"])
    source = {"anyOf": [_TEXT, {"$ref": "#/$defs/Source"}]}
    for of in (corpus, *(made["properties"] for made in definitions.values() if "on" in made.get("properties", {}))):
        for name, field in of.items():
            if field.get("type") == "array" and field["items"] == {"$ref": "#/$defs/Source"}:
                of[name] = _either(source, field | {"items": source})
    measured = definitions["Measurement"]["properties"]
    measured["of"] = _either(_TEXT, measured["of"])
    definitions["Over"]["properties"]["choice"]["anyOf"][0].pop("items", None)


def _either(short: dict[str, Any], field: dict[str, Any]) -> dict[str, Any]:
    """A field that may be written shorter."""
    kept = {name: field[name] for name in ("description", "default") if name in field}
    return kept | {"anyOf": [short, {name: value for name, value in field.items() if name not in kept}]}


def _complete(model: type[BaseModel], definition: dict[str, Any], definitions: dict[str, Any]) -> None:
    """Put the docstrings and limits of a model's fields, and of those inside it, into its definition."""
    for kind in reversed([kind for kind in model.__mro__ if issubclass(kind, Strict)]):
        for name, text in _docs(kind).items():
            if name in definition["properties"]:
                definition["properties"][name].setdefault("description", text)
    for name, field in model.model_fields.items():
        _limit(definition["properties"][name], field.annotation, field.metadata)
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
