"""A search-space file with other cells: everything else in it stays as it is."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from raysweep.errors import UserError, reason
from raysweep.files import put_in_place
from raysweep.space.cell import Cell
from raysweep.space.read import hypotheses_file

_OF_CELLS = ("base", "cross", "sample", "over", "ablate", "where")


MARK = "`raysweep analyze --next`"
"""What a heading has in it, so that the file may be written again."""

# Texts that mean the same without quotes, to any reader of YAML.
_PLAIN = re.compile(r"(?!(?i:y|n|yes|no|on|off|true|false|null|none)$)[A-Za-z][A-Za-z0-9_.-]*")


def check_target(file: Path, output: Path) -> None:
    """Raise `UserError` where writing to `output` would replace what nobody wrote for that."""
    if not output.exists():
        return
    if output.is_dir() or (file.exists() and output.samefile(file)):
        raise UserError(f"{output} is what is analysed: choose another name")
    if MARK not in output.read_text(encoding="utf-8", errors="replace").partition("\n")[0]:
        raise UserError(f"{output} exists: choose another name, or delete it")


def write_with_cells(file: Path, cells: Sequence[Cell], output: Path, heading: str) -> None:
    """Write the search space of a file with these cells, each one spelled out, to another file.

    `heading` is a comment at its top. The file of hypotheses goes with it, and the folders of `code` are named from there.
    Raises `UserError` where something else has that name, or nothing can be written.
    """
    whole = _read(file)
    position = list(whole).index("base")
    for key in _OF_CELLS:
        whole.pop(key, None)
    base = _quoted(_fields(cells[0]))
    whole.insert(position, "base", base)
    ablate = CommentedSeq()
    for cell in cells[1:]:
        changes = {name: [_quoted(value)] for name, value in _changes(cell, cells[0]).items()}
        item = CommentedMap(changes)
        item.fa.set_flow_style()
        ablate.append(item)
    if ablate:
        whole.insert(position + 1, "ablate", ablate)
    _write(whole, file, output, heading)


def write_with_count(file: Path, count: int, output: Path, heading: str) -> None:
    """Write the search space of a file with another number of sampled points to another file; else as above."""
    whole = _read(file)
    whole["sample"]["count"] = count
    _write(whole, file, output, heading)


def _read(file: Path) -> Any:
    reader = YAML(typ="rt")
    reader.preserve_quotes = True
    return reader.load(file.read_text(encoding="utf-8"))


def _quoted(value: Any) -> Any:
    """The value with quotes about every text in it that could mean something else."""
    if isinstance(value, dict):
        return {name: _quoted(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_quoted(inner) for inner in value]
    return DoubleQuotedScalarString(value) if isinstance(value, str) and not _PLAIN.fullmatch(value) else value


def _write(whole: Any, file: Path, output: Path, heading: str) -> None:
    folder, there = output.resolve().parent, file.resolve().parent
    if folder != there and whole.get("code"):
        whole["code"] = [os.path.relpath(there / name, folder) for name in whole["code"]]
    lines = "".join(f"# {line}\n" for line in heading.splitlines())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        own = hypotheses_file(file)
        if own is not None and folder != there:
            copy = folder / own.name
            if copy.exists() and copy.read_bytes() != own.read_bytes():
                raise UserError(f"{copy} exists, and is not {own}: choose another folder")
            copy.write_bytes(own.read_bytes())
        yaml = YAML(typ="rt")
        yaml.width = 10_000
        with put_in_place(output) as unfinished, unfinished.open("w", encoding="utf-8") as written:
            written.write(lines)
            yaml.dump(whole, written)
    except OSError as error:
        raise UserError(f"{output} cannot be written: {reason(error)}") from None


def _fields(cell: Cell) -> dict[str, Any]:
    """The settings of a cell that are not the defaults, as a file has them."""
    fields = cell.model_dump(mode="json", exclude_defaults=True)
    if cell.corpus.name == "installed":
        # Which a file that says nothing of it has otherwise.
        fields["corpus"]["decontaminate"] = cell.corpus.decontaminate
    return fields | {"size": cell.size.model_dump()}


def _changes(cell: Cell, base: Cell) -> dict[str, Any]:
    """What makes a cell of the base."""
    fields = cell.model_dump(mode="json") | {"corpus": _fields(cell)["corpus"], "size": cell.size.model_dump()}
    before = base.model_dump(mode="json") | {"corpus": _fields(base)["corpus"], "size": base.size.model_dump()}
    return {name: value for name, value in fields.items() if value != before[name]}
