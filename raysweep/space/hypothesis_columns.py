"""The columns that hypotheses name: a mistyped one is found before a sweep is trained, and not after it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Literal, get_origin

from raysweep.errors import did_you_mean
from raysweep.space.cell import Cell
from raysweep.space.hypotheses import Hypotheses, Test, paper_hypotheses
from raysweep.space.size import Size

_FIELDS = ("of", "with_", "for_", "than", "from_", "to", "minus", "over", "in_", "at")
_NO_COLUMNS = {"loss", *Cell.model_fields, *Size.model_fields}
"""What may stand in those fields and is none: `loss` is one of two columns, the others are settings."""


def columns_named(test: Test) -> list[str]:
    """The columns that a test names, `loss` and settings left out.

    Examples
    --------
    >>> columns_named(Test.model_validate({"correlation": {"of": "cosine_W", "with": "loss"}, "expect": "> 0"}))
    ['cosine_W']
    """
    spec = getattr(test, test.kind)
    fields = type(spec).model_fields
    # Where only some words may stand, such as `lowest`, they are ends of a range.
    free = [name for name in _FIELDS if name in fields and get_origin(fields[name].annotation) is not Literal]
    given = [getattr(spec, name) for name in free]
    names = [name for value in given for name in (value if isinstance(value, tuple) else (value,))]
    return [name for name in names if isinstance(name, str) and name not in _NO_COLUMNS]


def unknown_columns(hypotheses: Hypotheses, columns: Iterable[str]) -> Iterator[str]:
    """One sentence for each name in the hypotheses that is none of these columns."""
    known = list(columns)
    # The paper's are for any sweep, whatever of them it measures.
    for hypothesis in [one for one in hypotheses.hypotheses if one not in paper_hypotheses().hypotheses]:
        if hypothesis.for_each is not None and not any(fnmatchcase(name, hypothesis.for_each) for name in known):
            yield f"hypothesis {hypothesis.id}: no column is called {hypothesis.for_each}"
        named = dict.fromkeys(name for test in hypothesis.tests for name in columns_named(test))
        for name in named:
            if "{each}" not in name and name not in known:
                yield f"hypothesis {hypothesis.id}: no column {name}{did_you_mean(name, known)}"
