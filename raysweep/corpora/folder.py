"""The files under a folder: which of them are documents, and why the others are not."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from raysweep.corpora.files import READABLE, SUFFIXES

# What editors, notebooks and other systems leave behind, beside names that begin with a dot.
_LITTER = re.compile(
    r"(^|/)(\.|~\$|__MACOSX(/|$)|_temporary(/|$)|__pycache__(/|$)|lost\+found(/|$))|(~|\.(swp|tmp|part|partial|crdownload|unfinished))$"
)


@dataclass(frozen=True)
class Listing:
    """The files of a folder, by their names from there."""

    files: dict[str, Path] = field(default_factory=dict)
    """What is read."""
    left_out: dict[str, str] = field(default_factory=dict)
    """What is not, with the reason."""


def listing(root: Path, patterns: tuple[str, ...]) -> Listing:
    """The files under `root` whose names match one of the patterns; all that can be read where there are none.

    Folders that are links are followed, each file counts once, and what editors and the like leave behind is not data.
    Raises `OSError` where a folder cannot be read, `ValueError` where a pattern matches nothing, or a file that has no
    reader.
    """
    found = Listing()
    real: dict[str, str] = {}
    asked = [_checked(pattern) for pattern in patterns]
    hidden = any(part[:1] in (".", "~") for pattern in asked for part in pattern)
    unmatched = dict(zip(map(tuple, asked), patterns, strict=True))
    for name, path in _walk(root, asked, hidden):
        matching = [pattern for pattern in asked if _matches(_parts(name), pattern)]
        for pattern in matching:
            unmatched.pop(tuple(pattern), None)
        litter = _LITTER.search(name) and not hidden
        if asked and not matching and not (litter and name.endswith("/")):
            continue
        # A plain .json may be one document or many: whoever names it says that it is lines.
        readable = READABLE if any(pattern[-1].endswith(".json") for pattern in matching) else SUFFIXES
        if litter:
            found.left_out[name] = "editors and systems leave such files behind"
        elif not path.is_file():
            found.left_out[name] = "a link to nothing, or no plain file"
        elif not name.endswith(readable):
            if any(_names_ending(pattern) for pattern in matching):
                raise ValueError(f"files asks for {name}, which cannot be read: it may end in {', '.join(READABLE)}")
            found.left_out[name] = not_read(name)
        elif (first := real.setdefault(os.path.realpath(path), name)) != name:
            found.left_out[name] = f"the same file as {first}, which is read"
        else:
            found.files[name] = path
    if unmatched:
        raise ValueError(f"files asks for {', '.join(unmatched.values())}, and no file is called so")
    return found


def not_read(name: str) -> str:
    """Why a file of this name is left out."""
    if name.endswith(".txt"):
        return "text files of a data set are its licence and the like: name it in `files` to have it read"
    if name.endswith(".json"):
        return "it may be one document or many lines: name it in `files` to have its lines read"
    return f"its name does not end in {', '.join(SUFFIXES)}"


def _walk(root: Path, asked: list[list[str]], hidden: bool) -> Iterator[tuple[str, Path]]:
    """Every file under a folder with its name from there, in the order of the names; what links lead to comes last.

    Folders in which no pattern can match are not looked into, nor are those that systems leave, which come with a slash.
    Where there are patterns a folder may have several names; otherwise it comes once.
    """
    seen = {os.path.realpath(root)}
    later: list[tuple[str, Path, frozenset[str]]] = []

    def walk(folder: Path, prefix: str, above: frozenset[str]) -> Iterator[tuple[str, Path]]:
        above |= {os.path.realpath(folder)}
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            name = prefix + entry.name
            path = Path(entry.path)
            if not entry.is_dir():
                yield name, path
            elif _LITTER.search(f"{name}/") and not hidden:
                yield f"{name}/", path
            elif asked and not any(_leads(_parts(name), pattern) for pattern in asked):
                continue
            elif entry.is_dir(follow_symlinks=False):
                seen.add(os.path.realpath(path))
                yield from walk(path, f"{name}/", above)
            else:
                later.append((f"{name}/", path, above))

    yield from walk(root, "", frozenset())
    while later:
        prefix, folder, above = later.pop(0)
        target = os.path.realpath(folder)
        if target not in (above if asked else seen):
            seen.add(target)
            yield from walk(folder, prefix, above)


def _leads(folder: list[str], pattern: list[str]) -> bool:
    """Whether something below a folder can match a pattern."""
    if not folder:
        return True
    if not pattern:
        return False
    if pattern[0] == "**":
        return True
    return folder[0] == pattern[0] or (fnmatchcase(folder[0], pattern[0]) and _leads(folder[1:], pattern[1:]))


def _names_ending(pattern: list[str]) -> bool:
    """Whether a pattern asks for files of one ending: `*.csv` does, and `data/*` takes what there is."""
    ending = pattern[-1].rpartition(".")[2]
    return "." in pattern[-1] and not set(ending) & set("*?[")


def _checked(pattern: str) -> list[str]:
    """The parts of a pattern such as `data/**/*.parquet`. Raises `ValueError` where it means something else elsewhere."""
    parts = [part for part in _parts(pattern) if part not in ("", ".")]
    if any("**" in part and part != "**" for part in parts):
        raise ValueError(
            f"the pattern {pattern!r} has ** beside other characters: it stands for folders, as in **/*.txt"
        )
    return parts


def _parts(name: str) -> list[str]:
    """The folders and the file of a name. macOS writes accents apart from their letters; here they are together."""
    return unicodedata.normalize("NFC", name).split("/")


def _matches(name: list[str], pattern: list[str]) -> bool:
    """Whether the parts of a name match those of a pattern: `**` is any number of folders, and what follows it any file.

    A name matches itself too, whatever characters are in it: `a[1].txt`.
    """
    if name == pattern:
        return True
    if not pattern:
        return not name
    if pattern == ["**"]:
        return bool(name)
    if pattern[0] == "**":
        return any(_matches(name[skipped:], pattern[1:]) for skipped in range(len(name)))
    return bool(name) and fnmatchcase(name[0], pattern[0]) and _matches(name[1:], pattern[1:])
