"""The types of what a search space may set: numbers that are numbers, models without unknown fields."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _number(value: Any) -> Any:
    """Refuses what pydantic would quietly convert: `true` and `"32"` are no numbers."""
    if isinstance(value, bool | str):
        raise ValueError("a number is needed")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a finite number is needed")
    return value


Integer = Annotated[int, BeforeValidator(_number)]
"""Also a float that is whole, such as 8e9."""
Real = Annotated[float, BeforeValidator(_number)]

Count = Annotated[Integer, Field(gt=0)]
Number = Annotated[Real, Field(ge=0)]
Positive = Annotated[Real, Field(gt=0)]
Fraction = Annotated[Real, Field(ge=0, le=1)]


class Strict(BaseModel):
    """A model that refuses fields it does not have and never changes."""

    model_config = ConfigDict(extra="forbid", frozen=True)
