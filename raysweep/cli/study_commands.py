"""demo, `new study`, schema and completion: what one begins with."""

from __future__ import annotations

import argparse
import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from raysweep.cli.new_commands import write_files
from raysweep.errors import UserError
from raysweep.files import local_path
from raysweep.space.schema import hypotheses_schema, search_space_schema

SCHEMA = "raysweep.schema.json"
HYPOTHESES_SCHEMA = "hypotheses.schema.json"


def demo(options: argparse.Namespace) -> int:
    """`raysweep demo`: the demo, from a copy here that can be changed."""
    from raysweep.cli import sweep_commands

    file = Path("demo.yaml")
    if not file.exists():
        text = files("raysweep.space").joinpath("demo.yaml").read_text(encoding="utf-8")
        write_files(Path.cwd(), {file: text, Path(SCHEMA): _written(search_space_schema())})
        print(f"{file} is the search space: change it, and run `raysweep run {file}`")
    options.space, options.store, options.cluster, options.rehearse = str(file), None, None, False
    return sweep_commands.run(options)


def schema(options: argparse.Namespace) -> int:
    """`raysweep schema`."""
    if options.of == "suite":
        from raysweep.suites.schema import suite_schema

        print(_written(suite_schema()), end="")
    else:
        print(_written(hypotheses_schema() if options.of == "hypotheses" else search_space_schema()), end="")
    return 0


def completion(options: argparse.Namespace) -> int:
    """`raysweep completion`."""
    import shtab

    from raysweep.cli.parser import build_parser

    print(shtab.complete(build_parser(), shell=options.shell))
    return 0


def new_study(options: argparse.Namespace) -> int:
    """`raysweep new study`."""
    folder = local_path(options.folder, "DIR")
    name = folder.name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise UserError(f"{name}: a sweep is called by letters, digits, dots, hyphens and underscores")
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is there already: give another folder")
    beginning = files("raysweep.cli").joinpath("study")
    written = {
        "study.yaml": f"{name}.yaml",
        "study.hypotheses.yaml": f"{name}.hypotheses.yaml",
        "README.md": "README.md",
    }
    contents = {
        folder / target: beginning.joinpath(source).read_text(encoding="utf-8").replace("NAME", name)
        for source, target in written.items()
    }
    schemas = {SCHEMA: search_space_schema(), HYPOTHESES_SCHEMA: hypotheses_schema()}
    write_files(folder, contents | {folder / file: _written(made) for file, made in schemas.items()})
    print("\n".join(str(file) for file in contents))
    print(f"\nNext: cd {folder}, and what README.md says")
    return 0


def _written(schema: dict[str, Any]) -> str:
    return json.dumps(schema, indent=1) + "\n"
