"""Sampled designs: points spread over ranges of settings, the same on every machine and for ever.

`sample` says how many points, `over` which settings and between which values. A point's coordinates are shares between 0 and
1, which `Over` turns into values of 4 significant digits, so that no rounding of one processor makes another cell.

- `sobol`: a Sobol sequence (Joe and Kuo 2008, of `scipy.stats.qmc`) with a digital shift by the seed. Even in all settings
  together, best where `count` is a power of two. A larger count keeps the earlier points.
- `latin_hypercube`: of each setting one point in each of `count` equal parts (McKay et al. 1979). Twice the count keeps the
  earlier points, as any other does not.
- `random`: independent points. A larger count keeps the earlier ones.

Shifts and random points are of `random.Random`, whose numbers are the same in every version of Python.
"""

from __future__ import annotations

import math
import random
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from raysweep.space.fields import Count, Integer, Real, Strict

# Digits of scipy's Sobol sequence.
_BITS = 30

# Beyond this a count is a mistake.
_MOST_POINTS = 100_000

DIGITS = 4
"""Significant digits of a sampled value."""


class Sample(Strict):
    """How many points, and how they are spread."""

    count: Annotated[Count, Field(le=_MOST_POINTS)]
    """Points; `where` may leave some out."""
    design: Literal["sobol", "latin_hypercube", "random"] = "sobol"
    """How they are spread."""
    seed: Annotated[Integer, Field(ge=0, lt=2**63)] = 0
    """Of the design: another one gives other points."""

    def points(self, dimensions: int) -> list[tuple[float, ...]]:
        """`count` points of so many coordinates in [0, 1)."""
        if self.design == "sobol":
            return _sobol(self.count, dimensions, self.seed)
        if self.design == "latin_hypercube":
            columns = [_latin(self.count, f"{self.seed} {dimension}") for dimension in range(dimensions)]
            return list(zip(*columns, strict=True))
        draws = random.Random(self.seed)  # noqa: S311
        return [tuple(draws.random() for _ in range(dimensions)) for _ in range(self.count)]


class Design(Strict):
    """The sampled part of a search space, and what its `where` left out."""

    sample: Sample | None = None
    over: dict[str, Over] = Field(default_factory=dict)
    """By the setting."""
    where: str = ""
    left_out: int = 0
    """Cells for which `where` does not hold."""
    equal: int = 0
    """Points that are the same cell as an earlier one."""

    @property
    def said(self) -> str:
        """What it is, in words; empty for a grid of which nothing was left out."""
        parts = []
        if self.sample is not None:
            name = self.sample.design.replace("_", " ")
            parts.append(f"{self.sample.count:,} points ({name}, seed {self.sample.seed}) over {', '.join(self.over)}")
        if self.equal:
            parts.append(f"{self.equal:,} are the same cell as another")
        if self.where:
            parts.append(f"{self.left_out:,} cells are left out by where: {self.where}")
        return "; ".join(parts)


_Range = Annotated[tuple[Real, ...], Field(min_length=2, max_length=2)]


class Over(Strict):
    """The values of one setting that points are spread over: exactly one of these is given."""

    uniform: _Range | None = None
    """[lowest, highest], all equally likely; whole numbers where the setting is one."""
    log_uniform: _Range | None = None
    """[lowest, highest], equally likely on a logarithmic scale."""
    choice: Annotated[tuple[Any, ...], Field(min_length=1)] | None = None
    """Values, equally likely."""
    powers_of: Annotated[Integer, Field(ge=2)] | None = None
    """Its powers `between` two values, equally likely."""
    between: _Range | None = None
    """[lowest, highest] of `powers_of`."""

    @model_validator(mode="after")
    def _one_kind(self) -> Over:
        given = [name for name in ("uniform", "log_uniform", "choice", "powers_of") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"one of uniform, log_uniform, choice and powers_of is needed, not {' and '.join(given) or 'none'}"
            )
        if (self.powers_of is None) != (self.between is None):
            raise ValueError("powers_of and between need each other: {powers_of: 2, between: [4, 64]}")
        for name in ("uniform", "log_uniform", "between"):
            ends = getattr(self, name)
            if ends is not None and not ends[0] < ends[1]:
                raise ValueError(f"{name}: the lowest value comes first, not {ends[0]:g} before {ends[1]:g}")
            if ends is not None and name != "uniform" and ends[0] <= 0:
                raise ValueError(f"{name}: values above 0 are needed, not {ends[0]:g}")
        if self.powers_of is not None and not self.levels:
            raise ValueError(f"no power of {self.powers_of} is between {self.between[0]:g} and {self.between[1]:g}")  # type: ignore[index]
        return self

    @property
    def levels(self) -> tuple[Any, ...]:
        """Every value, where they can be counted."""
        if self.choice is not None:
            return self.choice
        if self.powers_of is None or self.between is None:
            return ()
        low, high = self.between
        first, last = (math.floor(math.log(end, self.powers_of)) for end in self.between)
        # One further at either end: logarithms are rounded.
        exponents = range(first - 1, last + 2)
        powers = (self.powers_of**e if e >= 0 else 1 / self.powers_of**-e for e in exponents)
        return tuple(power for power in powers if low <= power <= high)

    @property
    def is_logarithmic(self) -> bool:
        """Whether equal factors are equal steps of it."""
        return self.log_uniform is not None or self.powers_of is not None

    def at(self, share: float, whole: bool) -> Any:
        """The value at a share in [0, 1) of the way; a `whole` number where the setting is one."""
        if levels := self.levels:
            return levels[math.floor(share * len(levels))]
        low, high = (self.uniform or self.log_uniform) or (0.0, 1.0)
        if self.uniform is None:
            value = low * (high / low) ** share
        elif whole:
            value = math.floor(low + share * (high - low + 1))
        else:
            value = low + share * (high - low)
        # No further than the ends, which may have more digits.
        value = min(max(float(f"{value:.{DIGITS}g}"), low), high)
        return round(value) if whole else value


def _sobol(count: int, dimensions: int, seed: int) -> list[tuple[float, ...]]:
    from scipy.stats import qmc  # It takes a second to import.

    draws = random.Random(seed)  # noqa: S311
    shift = [math.floor(draws.random() * 2**_BITS) for _ in range(dimensions)]
    # A whole power of two, as a Sobol sequence is drawn; its first points are those of any smaller count.
    points = qmc.Sobol(dimensions, scramble=False, bits=_BITS).random_base2(max(count - 1, 0).bit_length())
    return [
        tuple((round(x * 2**_BITS) ^ by) / 2**_BITS for x, by in zip(point, shift, strict=True))
        for point in points[:count].tolist()
    ]


def _latin(count: int, key: str) -> list[float]:
    """One coordinate of a Latin hypercube: of twice the points the first half are those of half as many."""
    earlier = _latin(count // 2, key) if count % 2 == 0 else []
    taken = {math.floor(share * count) for share in earlier}
    draws = random.Random(f"{key} {count}")  # noqa: S311
    free = sorted((part for part in range(count) if part not in taken), key=lambda part: draws.random())
    return earlier + [(part + draws.random()) / count for part in free]
