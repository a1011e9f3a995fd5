"""The types of what a search space may set: numbers that are numbers, models without unknown fields."""

from __future__ import annotations

import math
import types
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field


def _number(value: Any) -> Any:
    """Refuses what pydantic would quietly convert: `true` and `"32"` are not numbers."""
    if isinstance(value, bool | str):
        raise ValueError("a number is needed")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a finite number is needed")
    # -0.0 equals 0.0 but is written differently, which would make another id.
    return 0.0 if isinstance(value, float) and value == 0 else value


def _share_of_one(gpus: float) -> float:
    """Ray counts shares of a GPU in ten-thousandths."""
    if gpus and not 1e-4 <= gpus <= 1:
        raise ValueError("0, 1, or a share of at least 0.0001 is needed: each process works on one GPU")
    return gpus


def unique(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """The values; refuses one that is there twice."""
    twice = next((value for i, value in enumerate(values) if value in values[:i]), None)
    if twice is not None:
        raise ValueError(f"{twice} is there twice")
    return values


Integer = Annotated[int, BeforeValidator(_number)]
"""Also a float that is whole, such as 8e9."""
Real = Annotated[float, BeforeValidator(_number)]

Flag = Annotated[bool, Field(strict=True)]
"""`true` or `false`, and nothing that stands for one."""

Count = Annotated[Integer, Field(gt=0, lt=2**63)]
Number = Annotated[Real, Field(ge=0)]
Positive = Annotated[Real, Field(gt=0)]
Fraction = Annotated[Real, Field(ge=0, le=1)]
Gpus = Annotated[Number, AfterValidator(_share_of_one)]


def plain(annotation: Any) -> type:
    """The Python type of a field, without its limits and whether it may be absent; `str` of one of several texts."""
    if get_origin(annotation) is Annotated:
        return plain(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return plain(next(one for one in get_args(annotation) if one is not type(None)))
    return str if get_origin(annotation) is Literal else annotation  # type: ignore[no-any-return]


class Strict(BaseModel):
    """An immutable model that rejects unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class Column:
    """How a field of a cell stands in the store's tables."""

    unit: str = ""
    since: int = 1
    """The version of the tables that has it first; cells in older tables had the field's default."""
