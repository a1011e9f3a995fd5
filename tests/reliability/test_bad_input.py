"""Search spaces and command lines broken in thousands of ways: each is refused by one clear line, or it is valid."""

import math
import random
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raysweep.cli import main as cli
from raysweep.errors import UserError
from raysweep.space import read as space

SHIPPED = [Path(__file__).parents[2] / "search_spaces" / name for name in ("demo.yaml", "paper.yaml")]
WEIRD: list[Any] = [
    None, True, False, 0, -1, 1, 1.5, 1e300, -1e300, 2**63, 10**40, math.nan, math.inf, "", " ", "x" * 5000, "\x00",
    "../../etc", "4M", "75M", [], [[]], [None], {}, {"": None}, {None: 1}, {"width": 0}, {"width": -3}, {"width": 2**40},
    {"width": 32, "depth": 0}, {"width": 30, "heads": 4}, "2026-01-01", b"bytes", [1] * 1000,
    {"name": "installed", "vocabulary": 1},
]  # fmt: skip


def check(file: Path) -> bool:
    """Whether the file is a valid space; anything but that or one line of a UserError fails."""
    try:
        found = space.load(file)
    except UserError as error:
        refused = str(error)
    else:
        assert found.cells
        assert all(re.fullmatch(r"[A-Za-z0-9._-]+", cell.id) for cell in found.cells)
        return True
    assert "\n" not in refused
    assert refused.startswith(str(file))
    return False


def mutate(text: str, rng: random.Random) -> str:
    """A few edits of the kind that fingers and merges make."""
    for _ in range(rng.randrange(1, 4)):
        lines = text.split("\n")
        line = rng.randrange(len(lines))
        kind = rng.randrange(8)
        if kind == 0:
            del lines[line]
        elif kind == 1:
            lines.insert(line, rng.choice(lines))
        elif kind == 2:
            lines[line] = "  " * rng.randrange(3) + lines[line].lstrip()
        elif kind == 3:
            lines[line] = lines[line][: rng.randrange(len(lines[line]) + 1)]
        elif kind == 4 and ":" in lines[line]:
            key = lines[line].partition(":")[0]
            lines[line] = f"{key}: {yaml.safe_dump(rng.choice(WEIRD), default_flow_style=True).strip()}"
        elif kind == 5:
            where = rng.randrange(len(lines[line]) + 1)
            lines[line] = lines[line][:where] + rng.choice("[]{}:,&*!|>%@`'\"#\t\x07é- ") + lines[line][where:]
        elif kind == 6 and lines[line]:
            where = rng.randrange(len(lines[line]))
            lines[line] = lines[line][:where] + lines[line][where + 1 :]
        else:
            other = rng.randrange(len(lines))
            lines[line], lines[other] = lines[other], lines[line]
        text = "\n".join(lines)
    return text


SAMPLED = """name: sampled
base: {size: {width: 16}, corpus: installed, tokens: 1e6}
sample: {count: 8, seed: 7, design: latin_hypercube}
over:
  learning_rate: {log_uniform: [1.0e-4, 3.0e-2]}
  weight_decay: {choice: [0.01, 0.1]}
  warmup_fraction: {uniform: [0, 0.5]}
  batch_size: {powers_of: 2, between: [4, 64]}
where: "steps >= 2 and (batch_size in [4, 8] or not weight_decay < 0.05)"
"""


@pytest.mark.parametrize(
    ("shipped", "cases"), [(SHIPPED[0], 1000), (SHIPPED[1], 300), (SAMPLED, 700)], ids=["demo", "paper", "sampled"]
)
def test_two_thousand_mutated_search_spaces(shipped: Path | str, cases: int, tmp_path: Path) -> None:
    rng = random.Random(0)
    original = shipped if isinstance(shipped, str) else shipped.read_text()
    file = tmp_path / "mutated.yaml"
    valid = 0
    for _ in range(cases):
        file.write_text(mutate(original, rng))
        valid += check(file)
    assert 0 < valid < cases


VALUES = st.recursive(
    st.sampled_from(WEIRD) | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    [
        "size",
        "corpus",
        "tokens",
        "batch_size",
        "sequence_length",
        "learning_rate",
        "weight_decay",
        "seed",
        "sequences",
        "task",
        "x",
    ]
)


@given(
    st.dictionaries(FIELDS, VALUES, max_size=3),
    st.dictionaries(FIELDS, VALUES, max_size=2) | VALUES,
    st.lists(st.dictionaries(FIELDS, VALUES, max_size=2), max_size=2) | VALUES,
    st.lists(st.dictionaries(FIELDS, VALUES, max_size=2), max_size=2) | VALUES,
    VALUES,
)
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    derandomize=True,
)  # fmt: skip
def test_any_structure_is_a_space_or_is_refused(
    tmp_path: Path, base: Any, cross: Any, ablate: Any, evaluations: Any, resources: Any
) -> None:
    valid = {"size": "4M", "corpus": "installed", "tokens": 1e6, "batch_size": 4, "sequence_length": 128}
    document = {
        "name": "x", "base": valid | base, "cross": cross, "ablate": ablate, "evaluations": evaluations,
        "resources": resources,
    }  # fmt: skip
    file = tmp_path / "generated.yaml"
    try:
        file.write_text(yaml.safe_dump(document))
    except (yaml.YAMLError, UnicodeError):
        return
    check(file)


def test_a_grid_beyond_reason_is_refused_before_it_is_made(tmp_path: Path) -> None:
    file = tmp_path / "huge.yaml"
    axes = {
        name: list(range(1, 1001)) for name in ("batch_size", "seed", "weight_decay", "validation_sequences", "tokens")
    }
    base = {"size": "4M", "corpus": "installed", "tokens": 1e9, "batch_size": 4, "sequence_length": 128}
    file.write_text(yaml.safe_dump({"name": "huge", "base": base, "cross": axes}))
    with pytest.raises(UserError, match="1,000,000,000,000,000 cells"):
        space.load(file)


def test_an_alias_bomb_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "bomb.yaml"
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" for k in range(1, 12)]
    file.write_text("\n".join([*lines, "name: x", "base: *a11"]))
    with pytest.raises(UserError) as refused:
        space.load(file)
    assert len(str(refused.value)) < 1000


def test_mutated_command_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands that only read, in this process: status 0, 1 or 2, and on failure a last line that says raysweep."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.yaml").write_text(SHIPPED[0].read_text())
    (tmp_path / "noise.yaml").write_bytes(random.Random(3).randbytes(500))
    rng = random.Random(2)
    words = [
        "plan", "status", "results", "export", "analyze", "text.yaml", "noise.yaml", "missing.yaml", ".", "",
        "\x00", "--json", "--store", "--output", "--step", "--form", "--debug=1", "-h", "--version", "out", "-1", "x" * 300,
        "s3://", "file:///nowhere", "nothing://x", "--corpus", "installed", "out",
    ]  # fmt: skip
    for case in range(400):
        arguments = [rng.choice(words[:5]), *rng.choices(words, k=rng.randrange(5))]
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        printed = capsys.readouterr()
        assert ended.value.code in (0, 1, 2), (case, arguments)
        assert "Traceback" not in printed.err, (case, arguments)
        if ended.value.code:
            assert printed.err.strip().splitlines()[-1].startswith("raysweep"), (case, arguments, printed.err)
