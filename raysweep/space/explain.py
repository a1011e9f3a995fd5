"""What pydantic found wrong, as one line in a reader's words."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from raysweep.errors import allowed, did_you_mean

_LONGEST_VALUE = 60


def explain(error: ValidationError, kind: Any) -> tuple[tuple[str | int, ...], str]:
    """Where the first problem is, from the value of type `kind` that was validated, and what it is."""
    # A misspelt field is also a missing one; the misspelling is what helps.
    first = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    # Names of validators appear in pydantic's location; only real keys help the reader.
    where = tuple(part for part in first["loc"] if isinstance(part, int) or re.fullmatch(r"[A-Za-z_0-9]+", part))
    value, context = first["input"], first.get("ctx", {})
    if first["type"] == "missing":
        return where, "missing"
    if first["type"] == "extra_forbidden":
        name, fields = str(first["loc"][-1]), list(_fields(kind, first["loc"][:-1]))
        return (*where[:-1], name), f"unknown field{did_you_mean(name, fields) or f'; {allowed(name, fields)}'}"
    if "error" in context:
        message = str(context["error"])
    elif first["type"] == "tuple_type":
        message = "a list is needed"
    else:
        message = first["msg"][:1].lower() + first["msg"][1:]
    if first["type"] == "value_error" and isinstance(value, BaseModel | dict | list | tuple):
        return where, message
    if message.endswith("?"):
        return where, f"{show(value)}: {message}"
    return where, f"{message}, not {show(value)}"


def show(value: Any) -> str:
    """A value as the file may have it, cut where it is long."""
    if isinstance(value, BaseModel):
        value = value.model_dump()
    text = ""
    try:
        # Piece by piece: YAML's aliases make values of a few lines that would fill the memory when written out.
        for piece in json.JSONEncoder(default=str).iterencode(value):
            text += piece
            if len(text) > _LONGEST_VALUE:
                return text[: _LONGEST_VALUE - 3] + "..."
    except (ValueError, TypeError, RecursionError):
        return f"{text}... ({type(value).__name__})"
    return text


def _fields(kind: Any, location: tuple[str | int, ...]) -> Iterator[str]:
    """The fields of the model that stands at a location inside a type."""
    models = list(_models(kind))
    for part in location:
        inner = [
            m
            for model in models
            if part in model.model_fields
            for m in _models(model.model_fields[str(part)].annotation)
        ]
        models = inner or models
    for model in models:
        yield from (field.alias or name for name, field in model.model_fields.items())


def _models(kind: Any) -> Iterator[type[BaseModel]]:
    """The models in a type such as `tuple[Annotated[Source, ...], ...] | None`."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
    for part in get_args(kind):
        yield from _models(part)
