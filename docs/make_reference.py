"""Writes docs/reference/ from the code: settings, hypotheses, commands, tables, ... `python docs/make_reference.py`."""

from __future__ import annotations

import argparse
import inspect
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
from error_messages import messages

import raysweep
from raysweep.cli.parser import build_parser
from raysweep.space.cell import Cell
from raysweep.space.fields import Column
from raysweep.space.hypotheses import KINDS
from raysweep.space.schema import hypotheses_schema, search_space_schema
from raysweep.store import schemas

FOLDER = Path(__file__).parent / "reference"
_NOTE = "<!-- Written by docs/make_reference.py out of the code: change it there. -->\n\n"


def pages() -> dict[str, str]:
    """File -> its text."""
    made = {
        "settings": settings, "hypotheses": hypotheses, "commands": commands, "tables": tables, "python": python,
        "errors": messages,
    }  # fmt: skip
    return {f"{name}.md": _NOTE + make() for name, make in made.items()}


# Settings.

_TITLES = {
    "Cell": ("A cell: `base`, `cross`, `over` and `ablate`", "One configuration. Every field is in its id."),
    "Size": ("`size`", "Or a name of the paper: 4M, 8M, 16M, 28M, 40M, 75M."),
    "Corpus": ("`corpus`", "Or `installed`, or `pile`. [Corpora](../corpora.md) explains them."),
    "Source": ("A source", "Where documents are from: of a corpus's roles, and of `on` of an evaluation."),
    "Sample": ("`sample`", "[Designs](../design.md) explains it."),
    "Over": ("`over`", "The range of one setting."),
    "Measurement": ("`measure`", "[Measures](../measures.md) has the names of matrices and the metrics."),
    "TrainResources": ("`resources.train`", "Of each cell's training."),
    "EvaluateResources": ("`resources.evaluate`", "Of each evaluation."),
}  # fmt: skip


def settings() -> str:
    schema = search_space_schema()
    units = {name: column.unit for name, field in Cell.model_fields.items()
             for column in field.metadata if isinstance(column, Column)}  # fmt: skip
    parts = [
        "# Every setting of a search space\n",
        "A search space is a YAML file with these keys. `raysweep schema` has the same for editors.\n",
        "| key | meaning |\n|---|---|",
        *(f"| `{name}` | {_cell(what['description'])} |" for name, what in schema["properties"].items()),
    ]
    definitions = schema["$defs"]
    for name, (title, text) in _TITLES.items():
        parts += [f"\n## {title}\n", f"{text}\n", _fields(definitions[name], units if name == "Cell" else {})]
    parts += ["\n## `evaluations`\n", "Each is the name of a task, or a mapping with `task` and these settings. "
              "[Evaluations](../evaluations.md) has the columns that come out.\n"]  # fmt: skip
    for definition in definitions.values():
        if "task" in definition["properties"]:
            tasks = definition["properties"]["task"]
            names = tasks.get("enum") or [tasks["const"]]
            parts += [f"\n### {', '.join(f'`{one}`' for one in names)}\n", _fields(definition, {}, without=("task",))]
    return "\n".join(parts) + "\n"


def _fields(definition: dict[str, Any], units: dict[str, str], without: tuple[str, ...] = ()) -> str:
    required = definition.get("required", ())
    lines = ["| setting | what may stand there | default | meaning |", "|---|---|---|---|"]
    for name, field in definition["properties"].items():
        if name in without:
            continue
        value = _written(field.get("default"))
        default = "*needed*" if name in required else f"`{value}`" if value else "empty"
        kind = _kind(field) + (f" ({units[name]})" if units.get(name) and "enum" not in field else "")
        lines.append(f"| `{name}` | {_cell(kind)} | {_cell(default)} | {_cell(field.get('description', ''))} |")
    return "\n".join(lines)


def _kind(field: dict[str, Any]) -> str:
    """What a field may be, in words."""
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(_kind(one) for one in field["anyOf"] if one.get("type") != "null"))
    if "$ref" in field:
        return {"Size": "a mapping", "Corpus": "a mapping", "Source": "a source"}.get(field["$ref"][8:], "a mapping")
    if "enum" in field or "const" in field:
        return ", ".join(f"`{one}`" for one in field.get("enum", [field.get("const")]))
    kind = field.get("type", "anything")
    if kind == "array":
        return f"a list of: {_kind(field['items'])}" if "items" in field else "a list"
    if kind in ("integer", "number"):
        return " ".join(["a whole number" if kind == "integer" else "a number", *_limits(field)])
    return {"boolean": "`true` or `false`", "string": "text", "object": "a mapping"}.get(kind, kind)


def _limits(field: dict[str, Any]) -> list[str]:
    """The narrowest that are said."""
    lower = [(field[key], words) for key, words in (("minimum", "from"), ("exclusiveMinimum", "above")) if key in field]
    upper = [(field[key], words) for key, words in (("maximum", "to"), ("exclusiveMaximum", "below")) if key in field]
    ends = ([max(lower)] if lower else []) + (
        [min(upper, key=lambda end: (end[0], end[1] != "below"))] if upper else []
    )
    return [f"{words} {number:,.12g}" for number, words in ends if abs(number) < 2**60]


def _written(value: Any) -> str:
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value)


def _cell(text: str) -> str:
    """Text in a cell of a table."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()).replace("|", "\\|"))
    return "".join(part if part.startswith("`") else part.replace("<", "&lt;") for part in parts)


# Hypotheses.


def hypotheses() -> str:
    definitions = hypotheses_schema()["$defs"]
    for definition in definitions.values():
        for field in definition["properties"].values():
            if field.get("type") is None and "$ref" in field:
                field["default"] = None  # A mapping, all of whose fields may be left out.
    test = definitions["Test"]["properties"]
    kinds = {name: test.pop(name)["anyOf"][0]["$ref"][8:] for name in KINDS}
    parts = [
        "# Every field of a file of hypotheses\n",
        "[Hypotheses](../hypotheses.md) shows such a file and says how a verdict comes about. `raysweep schema hypotheses` "
        "has the same for editors.\n",
        "\n## A hypothesis\n", _fields(definitions["Hypothesis"], {}),
        "\n## A test\n", "One of the kinds below, and these fields.\n", _fields(definitions["Test"], {}),
        "\n### `among`\n", _fields(definitions["Among"], {}), "\n### `needs`\n", _fields(definitions["Needs"], {}),
        "\n## Kinds of test\n",
    ]  # fmt: skip
    for name, kind in kinds.items():
        parts += [f"\n### `{name}`\n", f"{definitions[kind]['description']}\n", _fields(definitions[kind], {})]
    return "\n".join(parts) + "\n"


# Commands.


def commands() -> str:
    parts = ["# Every command\n", "An error is one line, on standard error, with what to do; `--debug` shows where it came "
             "from. The exit status is 0 where all is done, 1 where something failed or is left, 2 for wrong options, 130 "
             "where Ctrl-C stopped it.\n"]  # fmt: skip
    for name, parser in _commands(build_parser()):
        parts += [f"\n## `{name}`\n", _sentence(parser.description) + "\n", "```", _usage(parser), "```\n"]
        rows = [f"| {_cell(_option(one))} | {_cell((one.help or '').replace('%(default)s', str(one.default)))} |"
                for one in _shown(parser)]  # fmt: skip
        if rows:
            parts += ["| | |\n|---|---|", *rows]
    return "\n".join(parts) + "\n"


def _commands(parser: argparse.ArgumentParser) -> list[tuple[str, argparse.ArgumentParser]]:
    inside = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not inside:
        return [(parser.prog, parser)]
    return [found for action in inside for one in action.choices.values() for found in _commands(one)]


def _usage(parser: argparse.ArgumentParser) -> str:
    """The usage without what every command takes, in lines of a width that does not follow the terminal."""
    words = []
    for one in _shown(parser):
        text = _option(one, marked=False)
        words.append(text if one.required or not (one.option_strings or one.nargs == "?") else f"[{text}]")
    lines = [parser.prog]
    for word in words:
        if len(lines[-1]) + len(word) > 110:
            lines.append("   ")
        lines[-1] += f" {word}"
    return "\n".join(lines)


def _option(action: argparse.Action, marked: bool = True) -> str:
    name = action.metavar or ("|".join(map(str, action.choices)) if action.choices else action.dest.upper())
    value = "" if action.nargs == 0 else f" {name}"
    text = action.option_strings[-1] + value if action.option_strings else str(name)
    return f"`{text}`" if marked else text


def _shown(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """What a command takes, arguments before options, without what every command takes."""
    shown = [one for one in parser._actions if one.dest not in ("help", "debug") and one.help != argparse.SUPPRESS]
    return sorted(shown, key=lambda one: bool(one.option_strings))


def _sentence(text: str | None) -> str:
    text = text or ""
    return text[:1].upper() + text[1:].rstrip(".") + "."


# Tables.

_FILES = {
    "PLAN": ("plan.parquet", "The cells as last planned."),
    "CELLS": ("cells/<cell>.parquet", "A finished cell: one row."),
    "TRAJECTORIES": ("trajectories/<cell>.parquet", "A cell's rows over training; of cells that train: `live.parquet`."),
    "MEASURES": ("measures/<cell>.parquet", "What `measure` asked for."),
    "SPECTRA": ("spectra/<cell>.parquet", "Singular values of what was measured, W's always."),
    "EVALUATIONS": ("evaluations/<task>-<hash>/<cell>.parquet", "What an evaluation found; the hash is of its settings."),
    "TIMINGS": ("timings/<stage>/<cell>.parquet", "Wall-clock, apart from what must not depend on it."),
    "FAILURES": ("failures/<stage>/<cell>.parquet", "The last error of what is not done."),
    "SESSIONS": ("sessions/", "When the sweep was worked on, where, under which versions."),
    "MODELS": ("models.parquet", "Of a suite of published models: the checkpoints, and their commits."),
    "REVISIONS": ("revisions/<checkpoint>.parquet", "A measured checkpoint of a published model."),
}  # fmt: skip


def tables() -> str:
    parts = ["# Every table of a store\n", "Parquet, with units in the metadata of the fields. `raysweep results` joins "
             "them to one row for each cell: its settings, its last row over training, and a column for each metric of each "
             "evaluation.\n"]  # fmt: skip
    for name, (file, text) in _FILES.items():
        schema: pa.Schema = getattr(schemas, name)
        parts += [f"\n## `{file}`\n", f"{text}\n", "| column | type | unit, or what it is |\n|---|---|---|"]
        for field in schema:
            unit = (field.metadata or {}).get(b"unit", b"").decode()
            parts.append(f"| `{field.name}` | {field.type} | {_cell(unit)} |")
    return "\n".join(parts) + "\n"


# Python.

_FUNCTIONS = ("load", "plan", "run", "evaluate", "status", "results", "measure", "analyze", "geometry", "export")


def python() -> str:
    parts = ["# From Python\n", "`import raysweep` costs a tenth of a second; each function imports what it needs when "
             "it is called. They print nothing and leave signals and the environment alone.\n"]  # fmt: skip
    for name in _FUNCTIONS:
        function = getattr(raysweep, name)
        signature = re.sub(r"'([^']*)'", r"\1", str(inspect.signature(function)))
        signature = re.sub(r"<function [^>]*>? at \w+>", "...", signature)
        parts += [f"\n## `raysweep.{name}`\n", "```python", f"{name}{signature}", "```\n"]
        text = inspect.getdoc(function) or ""
        summary, *sections = re.split(r"\n(?=\w+\n-{3,}\n)", text)
        parts.append(summary.strip() + "\n")
        for section in sections:
            title, _, body = section.partition("\n")
            body = body.partition("\n")[2].strip("\n")
            parts += [f"**{title}**\n", f"```python\n{body}\n```\n" if title == "Examples" else _definitions(body)]
    return "\n".join(parts) + "\n"


def _definitions(body: str) -> str:
    """numpydoc's names and their texts as a list."""
    items: list[list[str]] = []
    for line in body.splitlines():
        if line and not line.startswith(" "):
            items.append([line])
        elif line.strip():
            items[-1].append(line.strip())
    return "\n".join(f"- `{name}`: {' '.join(text)}" if text else f"- {name}" for name, *text in items) + "\n"


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
