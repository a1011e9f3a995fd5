"""A YAML file with the line of every value in it.

YAML 1.2 as ruamel.yaml reads it, without what could mean something else than it looks like: merge keys, tags, keys that are
not names, numbers that are not written in decimal, and text that YAML 1.1 takes for true or false.
"""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from raysweep.errors import UserError, allowed, one_line

_Path = tuple[str | int, ...]

# A whole number: groups may stand apart, as in 100_000.
_DIGITS = r"(?:0|[1-9][0-9]*(?:_[0-9]+)*)"

# How files of hypotheses are called: a mistyped search space is none of them.
_HYPOTHESES = ".hypotheses.yaml"

_BOOLEANS = {"yes": True, "on": True, "no": False, "off": False}


class YamlFile:
    """The content of a file, and where in it things are. Raises `UserError` where it cannot be read as YAML."""

    def __init__(self, path: Path, what: str = "search space") -> None:
        self.path = path
        text = _text(path, what)
        if directive := re.match(r"(?:[^\S\n]*(?:#.*)?\n)*(%.*)", text):
            line = text.count("\n", 0, directive.start(1)) + 1
            raise UserError(f"{path}:{line}: not valid YAML: {directive[1].strip()} would change what values mean")
        reader = YAML(typ="safe", pure=True)
        reader.Constructor = _Constructor
        try:
            self._root: Node | None = YAML(typ="safe", pure=True).compose(text)
            self.content: Any = reader.load(text)
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            place = f"{path}:{mark.line + 1}" if mark is not None else str(path)
            problem = " ".join(str(error.problem or error.context or "").split())
            if type(error).__name__ == "DuplicateKeyError":
                problem = re.sub(r'^found duplicate key "(.*?)".*', r"key '\1' is there twice", problem)
            raise UserError(f"{place}: not valid YAML: {problem}") from None
        except (YAMLError, RecursionError, ValueError) as error:
            raise UserError(f"{path}: not valid YAML: {one_line(error)}") from None

    def error(self, where: _Path, message: str) -> UserError:
        """An error about what is at `where`: `file.yaml:7: base.size: ...`."""
        line = self.line(where)
        place = f"{self.path}:{line}" if line else str(self.path)
        key = dotted(where)
        return UserError(f"{place}: {key}: {message}" if key else f"{place}: {message}")

    def line(self, where: _Path) -> int | None:
        """The line of a key or an item, or of the nearest thing around it that is in the file; None for the whole file."""
        node, line = self._root, None
        for part in where:
            child = _child(node, part)
            if child is None:
                break
            line, node = child
        return line


def dotted(where: _Path) -> str:
    """`("ablate", 0, "size")` -> `ablate[0].size`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where).removeprefix(".")


def _text(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        there = sorted(file.name for file in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        others = [name for name in there if name.endswith(_HYPOTHESES) == path.name.endswith(_HYPOTHESES)]
        hint = f"; {allowed(path.name, others)}" if others else ""
        raise UserError(f"{path}: no such {what}{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None


def _child(node: Node | None, part: str | int) -> tuple[int, Node] | None:
    """The line of a part of a node, counted from 1, and the part."""
    if isinstance(node, MappingNode):
        for key, value in node.value:
            if key.value == part:
                return key.start_mark.line + 1, value
    elif isinstance(node, SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part].start_mark.line + 1, node.value[part]
    return None


class _Constructor(SafeConstructor):  # type: ignore[misc]
    """Refuses what a reader could take for something else."""

    def flatten_mapping(self, node: MappingNode) -> Any:
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                raise ConstructorError(
                    None, None, "merge keys (<<) are not supported: write the keys out", key.start_mark
                )
        return super().flatten_mapping(node)

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> Any:
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:str" and key.tag != "tag:yaml.org,2002:merge":
                raise ConstructorError(None, None, f"key {key.value!r} is not a name", key.start_mark)
            # Where a name is expected `on` is one.
            key.style = key.style or "'"
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: ScalarNode) -> int:
        if not re.fullmatch(rf"[-+]?{_DIGITS}", node.value):
            raise ConstructorError(None, None, f"{node.value!r} is not a whole number in decimal", node.start_mark)
        return int(node.value.replace("_", ""))

    def construct_yaml_float(self, node: ScalarNode) -> float:
        if node.value.lower().lstrip("+-") in (".inf", ".nan"):
            return float(super().construct_yaml_float(node))
        if not re.fullmatch(rf"[-+]?({_DIGITS}(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?", node.value):
            raise ConstructorError(None, None, f"{node.value!r} is not a number in decimal", node.start_mark)
        written = Decimal(node.value.replace("_", ""))
        value = float(written)
        if written != 0 and value == 0:
            raise ConstructorError(None, None, f"{node.value} is too small for a number", node.start_mark)
        if 2**53 <= abs(value) < 2**63 and Decimal(value) != written:
            raise ConstructorError(
                None,
                None,
                f"{node.value} has more digits than a number with a point or an exponent holds",
                node.start_mark,
            )
        return value

    def construct_yaml_str(self, node: ScalarNode) -> Any:
        # As in YAML 1.1: who writes `on` where a name is needed is told so, rather than have a sweep of that name.
        if node.style is None and node.value.lower() in _BOOLEANS:
            return _BOOLEANS[node.value.lower()]
        # YAML 1.1 reads 1:30 as 90.
        if node.style is None and re.fullmatch(r"[-+]?[0-9]+(:[0-5]?[0-9])+(\.[0-9]*)?", node.value):
            raise ConstructorError(
                None, None, f"{node.value!r} is not a number in decimal; put text in quotes", node.start_mark
            )
        return super().construct_yaml_str(node)


_Constructor.add_constructor("tag:yaml.org,2002:int", _Constructor.construct_yaml_int)
_Constructor.add_constructor("tag:yaml.org,2002:float", _Constructor.construct_yaml_float)
_Constructor.add_constructor("tag:yaml.org,2002:str", _Constructor.construct_yaml_str)
