"""The documentation: links lead somewhere, commands and search spaces are accepted, the reference is what the code says."""

import argparse
import importlib.util
import re
import shlex
from pathlib import Path

import jsonschema
import pytest
from pages import NAMES, PAGES, ROOT, blocks, commands

from raysweep.cli.parser import build_parser
from raysweep.space.schema import search_space_schema
from raysweep.space.yaml_file import YamlFile


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ +(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("https://", "http://")):
            continue
        file, _, anchor = target.partition("#")
        to = page.parent / file if file else page
        assert to.exists(), target
        if anchor:
            assert anchor in anchors(to), target


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_command_is_one(page: Path) -> None:
    if page.parent.name == "reference":
        return
    for command in commands(page):
        try:
            build_parser().parse_args(shlex.split(command))
        except SystemExit:
            pytest.fail(f"raysweep {command}")


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_within_sentences_have_such_options(page: Path) -> None:
    """They are often a part of a command, so that only the names are checked."""
    for found in re.findall(r"(?<!\\)`raysweep ([^`]+)`", page.read_text(encoding="utf-8")):
        name, *rest = found.split()
        parsers = [_choices(build_parser())[name]]
        parsers += _choices(parsers[0]).values()
        known = {option for parser in parsers for option in parser._option_string_actions}
        assert {word.partition("=")[0] for word in rest if word.startswith("--")} <= known, found


def _choices(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """A parser's commands."""
    return {
        name: choice
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
        for name, choice in action.choices.items()
    }


def test_commands_are_found() -> None:
    assert len([command for page in PAGES for command in commands(page)]) > 60


def test_every_search_space_passes_the_schema(tmp_path: Path) -> None:
    checker = jsonschema.Draft202012Validator(search_space_schema())
    whole = []
    for page, name in zip(PAGES, NAMES, strict=True):
        for block in blocks(page, "yaml"):
            (tmp_path / "block.yaml").write_text(block)
            content = YamlFile(tmp_path / "block.yaml").content
            if isinstance(content, dict) and {"name", "base"} <= content.keys():
                whole.append((name, content))
    assert len(whole) >= 3
    for name, content in whole:
        assert [error.message for error in checker.iter_errors(content)] == [], name


def test_the_readme_is_one_screen_and_names_every_page() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 900
    named = set(re.findall(r"\]\((docs/[\w/-]+\.md)\)", text))
    assert {name for name in NAMES if name.startswith("docs/")} == named | {"docs/index.md"}


def test_the_reference_is_what_the_code_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    spec = importlib.util.spec_from_file_location("make_reference", ROOT / "docs" / "make_reference.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    for file, text in made.pages().items():
        assert (ROOT / "docs" / "reference" / file).read_text(encoding="utf-8") == text, "run docs/make_reference.py"
