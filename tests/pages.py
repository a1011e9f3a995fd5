"""The pages of the documentation, their blocks of code and the commands in them."""

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def blocks(page: Path, language: str) -> Iterator[str]:
    """The code blocks of a language, or of none (""), in the order they stand in, also those inside of lists."""
    inside: list[str] | None = None
    for line in page.read_text(encoding="utf-8").splitlines():
        fence = re.match(r" *```(.*)", line)
        if fence is None:
            if inside is not None:
                inside.append(line)
        elif inside is None:
            inside, spoken = [], fence[1]
        else:
            if spoken == language:
                yield textwrap.dedent("\n".join(inside)) + "\n"
            inside = None


def commands(page: Path) -> Iterator[str]:
    """The commands of raysweep in a page's blocks, without what is said of them."""
    for block in blocks(page, ""):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            found = re.match(r"(?:\$ )?(?:\w+=\S+ )*(?:\.venv/bin/)?raysweep (.*)", line)
            if found is None:
                continue
            command = re.split(r"\s{2,}|\s#|  ", found[1])[0].strip()
            # What stands for something else, or is two commands in one line.
            if not re.search(r"\.\.\.|[|&<>$]|\bDIR, |^SPACE", command) and command:
                yield command
