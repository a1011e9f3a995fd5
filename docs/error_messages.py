"""The error messages of the code, for docs/make_reference.py: found in its syntax, so that none is forgotten."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import raysweep

_PACKAGE = Path(raysweep.__file__).parent

_SECTIONS = {
    "Search spaces and hypotheses": (
        ("space",),
        "They begin with the file, the line and the key. Nothing has started yet: mend the line and give the command again.",
    ),
    "Suites of published models": (("suites",), "Those of the file begin with its name and the line."),
    "Text": (("corpora",), "Before a sweep starts, its text is built or found. What was built before stays."),
    "The store": (("store", "files.py", "cache.py"), "What is finished is kept, whatever a message says."),
    "Running": (
        ("sweep", "training", "cluster", "model"),
        "What is trained is kept up to the last checkpoint. The same command resumes.",
    ),
    "Evaluations": (
        ("evaluation",),
        "A failed evaluation leaves the others and the training as they are. The same command tries it again.",
    ),
    "Checkpoints and published models": (("exchange", "text.py"), ""),
    "Analysis": (("analysis",), "The store is only read."),
    "The page": (("watch",), ""),
    "Commands": (("cli", "version.py", "errors.py"), ""),
}

# Functions of `raysweep.errors` that end a message, and what they say.
_ENDINGS = {"allowed": "allowed: …", "did_you_mean": "", "reason": "…", "one_line": "…", "first_line": "…"}


def messages() -> str:
    """The page: a section for each part of raysweep, its messages in the order of the alphabet."""
    parts = [
        "# Every error message\n",
        "An error is one line with what is wrong, where, and what to do. `--debug` shows where in the code it came from. "
        "Here *italics* and … stand for what differs. Search for a few words of yours that are no names or numbers.\n",
    ]
    left = {file: said for file in _files(_PACKAGE) if (said := _of(file))}
    for title, (places, text) in _SECTIONS.items():
        files = [file for place in places for file in _files(_PACKAGE / place)]
        found = sorted(
            {one for file in files for one in left.pop(file, ())}, key=lambda one: re.sub(r"\W", "", one).lower()
        )
        if found:
            parts += [f"\n## {title}\n", *([f"{text}\n"] if text else []), *(f"- {one}" for one in found)]
    if left:
        raise ValueError(f"no section has the messages of {sorted(left)}")
    return "\n".join(parts) + "\n"


def _files(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    # The analysis is a link to a folder, which a pattern with ** does not follow.
    return sorted({file for folder in [place, *place.glob("*/")] for file in folder.rglob("*.py")})


def _of(file: Path) -> list[str]:
    """The messages that a file raises."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        # A `ValueError` about a setting reaches people with its line; elsewhere it is of the code.
        kinds = {"UserError", "StoreError", *(["ValueError"] if "space" in file.parts else [])}
        if isinstance(node.func, ast.Name) and node.func.id in kinds and node.args:
            found.append(_written(node.args[0]))
        elif isinstance(node.func, ast.Attribute) and node.func.attr == "error" and len(node.args) == 2:
            found.append(_written(node.args[1]))
    return [text for text in found if re.search(r"[a-z]{3,}", re.sub(r"\*[^*]*\*", "", text))]


def _written(node: ast.AST) -> str:
    """A message as Markdown."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"([*_<>\[\]|`])", r"\\\1", " ".join(node.value.split("\n")))
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_written, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _written(node.left) + _written(node.right)
    if isinstance(node, ast.FormattedValue):
        return _written(node.value)
    if isinstance(node, ast.Name | ast.Attribute):
        name = node.id if isinstance(node, ast.Name) else node.attr
        return f"*{name.strip('_').replace('_', ' ').lower()}*"
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _ENDINGS:
        return _ENDINGS[node.func.id]
    return "…"
