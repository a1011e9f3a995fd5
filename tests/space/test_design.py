"""Sampled designs and conditions: against Sobol's published points, a hypercube's parts, and Python's own arithmetic."""

import itertools
import math
import random
from decimal import Decimal, getcontext
from pathlib import Path
from typing import Any

import pytest
import yaml

from raysweep.errors import UserError
from raysweep.space.condition import Condition
from raysweep.space.design import Over, Sample
from raysweep.space.read import load as read
from raysweep.space.space import Space

# The first points of Joe and Kuo's sequence in four dimensions, in eighths (their table new-joe-kuo-6, and by hand from it).
EIGHTHS = [
    (0, 0, 0, 0), (4, 4, 4, 4), (6, 2, 2, 2), (2, 6, 6, 6), (3, 3, 5, 7), (7, 7, 1, 3), (5, 1, 7, 5), (1, 5, 3, 1),
]  # fmt: skip

SPACE: dict[str, Any] = {
    "name": "x",
    "base": {"size": {"width": 16}, "corpus": "installed", "sequence_length": 32, "tokens": 65536},
    "sample": {"count": 32, "seed": 7},
    "over": {
        "learning_rate": {"log_uniform": [1e-4, 3e-2]},
        "weight_decay": {"choice": [0.01, 0.1, 1.0]},
        "batch_size": {"powers_of": 2, "between": [4, 64]},
    },
}


def load(folder: Path, **changes: Any) -> Space:
    file = folder / "space.yaml"
    file.write_text(yaml.safe_dump({k: v for k, v in (SPACE | changes).items() if v is not None}), encoding="utf-8")
    return read(file)


def points(design: str, count: int, dimensions: int = 4, seed: int = 7) -> list[tuple[float, ...]]:
    return Sample(count=count, seed=seed, design=design).points(dimensions)  # type: ignore[arg-type]


def test_sobol_points_are_joe_and_kuos_shifted_digit_by_digit() -> None:
    shifted = [[math.floor(x * 2**30) for x in point] for point in points("sobol", 8)]
    for point, published in zip(shifted, EIGHTHS, strict=True):
        assert [(x ^ first) / 2**27 for x, first in zip(point, shifted[0], strict=True)] == list(published)
    draws = random.Random(7)
    assert points("sobol", 1)[0] == pytest.approx([draws.random() for _ in range(4)], abs=2**-30)


def test_sobol_is_even_in_every_pair_of_powers() -> None:
    """64 points of two coordinates: one in each of the 64 boxes of any such shape, whatever the shift."""
    two = [point[:2] for point in points("sobol", 64, seed=3)]
    for power in range(7):
        boxes = {(math.floor(x * 2**power), math.floor(y * 2 ** (6 - power))) for x, y in two}
        assert len(boxes) == 64


@pytest.mark.parametrize("count", [1, 7, 12, 40])
def test_a_latin_hypercube_has_a_point_in_each_part(count: int) -> None:
    for column in zip(*points("latin_hypercube", count), strict=True):
        assert sorted(math.floor(x * count) for x in column) == list(range(count))
    # No two settings go together.
    assert count < 12 or len({round(a - b, 6) for a, b, *_ in points("latin_hypercube", count)}) > count // 2


@pytest.mark.parametrize(("design", "more"), [("sobol", 41), ("random", 41), ("latin_hypercube", 60)])
def test_a_larger_count_keeps_the_earlier_points(design: str, more: int) -> None:
    assert points(design, more)[:30] == points(design, 30)
    assert points(design, 30, seed=8) != points(design, 30)
    assert all(0 <= x < 1 for point in points(design, more) for x in point)
    assert len(set(points(design, more))) == more


def test_values_of_a_share() -> None:
    getcontext().prec = 40
    log = Over(log_uniform=(1e-4, 3e-2))
    for share in (0.0, 0.1, 0.32383276483316237, 0.999):
        exact = Decimal("1e-4") * Decimal(300) ** Decimal(share)
        assert log.at(share, whole=False) == float(f"{exact:.4g}")
    assert Over(log_uniform=(1e6, 1e8)).at(0.5, whole=True) == 10_000_000
    assert isinstance(Over(log_uniform=(1e6, 1e8)).at(0.3, whole=True), int)
    assert [Over(uniform=(0.12344, 0.12346)).at(share, whole=False) for share in (0.1, 0.9)] == [0.12344, 0.12346]
    # Whole numbers are all equally likely, the ends too.
    drawn = [Over(uniform=(1, 4)).at(share, whole=True) for share in (0, 0.24, 0.25, 0.49, 0.5, 0.74, 0.75, 0.999)]
    assert drawn == [1, 1, 2, 2, 3, 3, 4, 4]
    powers = Over(powers_of=2, between=(4, 64))
    assert powers.levels == (4, 8, 16, 32, 64)
    assert [powers.at(share, whole=True) for share in (0, 0.199, 0.2, 0.999)] == [4, 4, 8, 64]
    assert Over(powers_of=10, between=(1, 500)).levels == (1, 10, 100)
    assert Over(powers_of=2, between=(0.25, 4)).levels == (0.25, 0.5, 1, 2, 4)
    assert Over(powers_of=10, between=(1e-3, 0.1)).levels == (0.001, 0.01, 0.1)
    # Each end of every range of powers is one of them, however its logarithm is rounded.
    assert all(len(Over(powers_of=10, between=(10.0**e, 10.0 ** (e + 2))).levels) == 3 for e in range(-12, 13))
    assert [Over(choice=("a", "b")).at(share, whole=False) for share in (0.49, 0.5)] == ["a", "b"]


def test_cells_of_a_sample(tmp_path: Path) -> None:
    cells = load(tmp_path).cells
    assert len(cells) == 32
    for cell in cells:
        assert cell.learning_rate is not None
        assert 1e-4 <= cell.learning_rate <= 3e-2
        assert len(f"{cell.learning_rate:.10g}".lstrip("0.").replace("e-", "")) <= 6
        assert cell.weight_decay in (0.01, 0.1, 1.0)
        assert cell.batch_size in (4, 8, 16, 32, 64)
    fractions = load(
        tmp_path, over={"warmup_fraction": {"uniform": [0, 0.5]}, "batch_size": {"uniform": [4, 64]}}
    ).cells
    assert sum(cell.warmup_fraction < 0.25 for cell in fractions) == 16
    assert len({cell.batch_size for cell in fractions}) > 20
    # Even: of 32 points each half of the rates has 16, and each weight decay ten or eleven.
    assert sum(cell.peak_learning_rate < math.sqrt(1e-4 * 3e-2) for cell in cells) == 16
    assert {sum(cell.weight_decay == decay for cell in cells) for decay in (0.01, 0.1, 1.0)} <= {10, 11}
    more = load(tmp_path, sample={"count": 50, "seed": 7}).cells
    assert more[:32] == cells
    # Whatever the order of the lines.
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(SPACE, sort_keys=False), encoding="utf-8")
    assert read(tmp_path / "space.yaml").cells == cells


def test_cross_ablate_and_sample_combine(tmp_path: Path) -> None:
    """Every point with every seed, and beside each the ablation of that very point."""
    space = load(tmp_path, cross={"seed": [1, 2]}, ablate=[{"schedule": ["linear"]}], sample={"count": 8, "seed": 7})
    assert len(space.cells) == 2 * 8 * 2
    pairs = {(c.learning_rate, c.batch_size, c.seed, c.schedule) for c in space.cells}
    for rate, batch, seed, schedule in itertools.product(
        {c.learning_rate for c in space.cells}, [0], (1, 2), ("cosine", "linear")
    ):
        assert any((r, s, x) == (rate, seed, schedule) for r, _, s, x in pairs), batch


def test_where_leaves_cells_out_of_any_design_and_says_how_many(tmp_path: Path) -> None:
    space = load(tmp_path, where="steps >= 256 and batch_size != 4")
    assert 0 < len(space.cells) < 32
    assert all(cell.steps >= 256 and cell.batch_size != 4 for cell in space.cells)
    assert (space.design.left_out, space.design.equal) == (32 - len(space.cells), 0)
    assert space.design.said == (
        "32 points (sobol, seed 7) over batch_size, learning_rate, weight_decay; "
        f"{space.design.left_out} cells are left out by where: steps >= 256 and batch_size != 4"
    )
    grid = {"sample": None, "over": None, "cross": {"batch_size": [4, 8], "weight_decay": [0.1, 0.2]}}
    (one,) = load(tmp_path, **grid, where="batch_size > 4 and not weight_decay < 0.15").cells
    assert (one.batch_size, one.weight_decay) == (8, 0.2)
    few = load(
        tmp_path, sample={"count": 16}, over={"weight_decay": {"choice": [0.1, 0.2]}, "batch_size": {"choice": [4]}}
    )
    assert (len(few.cells), few.design.equal) == (2, 14)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"over": None}, "sample: sample and over need each other"),
        ({"sample": None}, "over: sample and over need each other"),
        ({"sample": {"count": 0}}, "sample.count"),
        ({"sample": {"count": 200_000}}, "sample.count"),
        ({"sample": {"count": 5, "design": "grid"}}, "sample.design"),
        ({"over": {"learning_rat": {"uniform": [1, 2]}}}, "over.learning_rat: unknown field; did you mean 'learning_rate'"),
        ({"over": {"batch_size": [4, 8]}}, "over.batch_size"),
        ({"over": {"batch_size": {"uniform": [8, 4]}}}, "the lowest value comes first, not 8 before 4"),
        ({"over": {"weight_decay": {"log_uniform": [0, 4]}}}, "values above 0 are needed, not 0"),
        ({"over": {"weight_decay": {"uniform": [-1, 4]}}}, "over.weight_decay"),
        ({"over": {"batch_size": {"powers_of": 2}}}, "powers_of and between need each other"),
        ({"over": {"batch_size": {"powers_of": 10, "between": [2, 9]}}}, "no power of 10 is between 2 and 9"),
        ({"over": {"batch_size": {"choice": [4, "8"]}}}, "over.batch_size.choice[1]"),
        ({"over": {"batch_size": {"choice": [4], "uniform": [1, 2]}}}, "not uniform and choice"),
        ({"cross": {"batch_size": [4]}}, "over.batch_size: already an axis of cross or ablate"),
        ({"where": "steps > 1e9"}, "where: it holds for none of the 32 cells"),
        ({"where": "step > 1"}, "where: step is no column of a cell; did you mean 'steps'"),
        ({"where": "steps"}, "not true or false: compare it with something"),
        ({"where": 3}, "a condition in quotes is needed"),
        ({"cross": {"seed": list(range(5000))}}, "160,000 cells by cross, sample and ablate"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as raised:
        load(tmp_path, **changes)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


ROW = {"steps": 512, "weight_decay": 0.1, "size": "4M", "weight_tying": False, "head_bottleneck": None, "tokens": 10**9}


@pytest.mark.parametrize(
    "text",
    [
        "steps >= 512", "steps > 512", "256 < steps <= 512", "steps / 2 == 256 and weight_decay < 1", "not weight_tying",
        "size in ['4M', '8M']", "size not in ('4M',)", "size == '4M' or steps < 0", "steps % 3 - 2 == 0",
        "-steps // 100 * 2 + 1 < -10", "weight_tying == False", "not (steps > 1 and tokens > 1e9)",
        "head_bottleneck == None",
        "tokens / steps >= 1e6 and (size != '8M' or steps < 3)",
    ],
)  # fmt: skip
def test_a_condition_is_what_python_makes_of_it(text: str) -> None:
    assert Condition(text).holds(ROW) is eval(text, {}, dict(ROW))
    assert Condition(f"not ({text})").holds(ROW) is not Condition(text).holds(ROW)


def test_a_setting_that_a_cell_does_without_is_neither_above_nor_below() -> None:
    assert not Condition("head_bottleneck > 3").holds(ROW)
    assert not Condition("head_bottleneck <= 3").holds(ROW)
    assert Condition("head_bottleneck == none or head_bottleneck > 3").holds(ROW)
    assert Condition("weight_tying == false").holds(ROW)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')", "open('/etc/passwd') == 1", "size.upper() == '4M'", "[s for s in 'ab'] == 1",
        "(lambda: True)()", "steps ** 9 > 1", "size[0] == '4'", "(x := 3) == 3", "f'{steps}' == '512'",
        "steps if 1 else 2",
        "size * 3 == 1", "steps > '3'", "steps is 512", "size in '4M8M'", "steps and weight_tying", "steps >", "", "a b",
        "steps / 0 > 1", "steps << 99999 > 1", "steps @ 2 == 1", "~steps == 1", "...", "b'a' == 1", "{1: 2} == 1",
        "steps; 1",
        "(" * 300 + "steps" + ")" * 300, "-" * 5000 + "steps > 1",
    ],
)  # fmt: skip
def test_no_more_than_a_condition_is_read(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        Condition(text).holds(ROW)
