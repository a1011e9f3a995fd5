"""Hypotheses about a sweep, as a file that its search space names: what is claimed, and the tests that would decide it.

    hypotheses:
      - id: 8
        says: "Larger batch: higher effective rank."
        tests:
          - {trend: {of: effective_rank_W, over: batch_size}, expect: "> 0"}

Each test has one kind, the name of one of the classes below, and what is expected of its effect. Columns are those of
`raysweep results`; `loss` stands for the loss on held-out text that the sweep has, `in_distribution_loss` if it was
evaluated and else `validation_loss`.
"""

from __future__ import annotations

import hashlib
import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field, ValidationError, WithJsonSchema, model_validator

from raysweep.errors import allowed
from raysweep.space.cell import Cell
from raysweep.space.explain import explain, show
from raysweep.space.fields import Count, Flag, Positive, Real, Strict
from raysweep.space.size import Size
from raysweep.space.yaml_file import YamlFile

Column = Annotated[str, Field(min_length=1)]


_SETTINGS = [*Cell.model_fields, *Size.model_fields]


def _setting(name: str) -> str:
    if name not in _SETTINGS:
        raise ValueError(f"no setting of a cell; {allowed(name, _SETTINGS)}")
    return name


Setting = Annotated[str, AfterValidator(_setting), WithJsonSchema({"type": "string", "enum": _SETTINGS})]


class Correlation(Strict):
    """Spearman's correlation of two columns over all cells."""

    of: Column
    with_: Annotated[Column, Field(alias="with")]
    given: Literal["nothing", "size", "line", "law", "settings"] = "nothing"
    """What is held equal: `size` (ranks about the mean of each size), a straight `line` on log size and tokens, the scaling
    `law`, or all `settings` (a partial correlation). The last three are for a metric and a task's loss."""
    size: Literal["smallest", "largest"] | None = None
    """Over the cells of one size only."""
    minus_size: Literal["smallest", "largest"] | None = None
    """Subtract the correlation over the cells of another size."""

    @model_validator(mode="after")
    def _of_a_size(self) -> Correlation:
        if self.size is not None and self.given != "nothing":
            raise ValueError("size goes with given: nothing")
        if self.minus_size is not None and self.size in (None, self.minus_size):
            raise ValueError("minus_size needs another size to be taken from")
        return self


class Attenuation(Strict):
    """How much of |Spearman's correlation| goes once all settings are held equal: |raw| - |partial|."""

    of: Column
    with_: Annotated[Column, Field(alias="with")]


class Closer(Strict):
    """|Spearman of `of` and `with`| - |Spearman of `of` and `than`|."""

    of: Column
    with_: Annotated[Column, Field(alias="with")]
    than: Column


class Line(Strict):
    """R² of a straight line from one column to another."""

    from_: Annotated[Column, Field(alias="from")]
    to: Column
    given: Literal["nothing", "size"] = "nothing"
    """`size`: one slope for all sizes, each with a level of its own."""


class AddedR2(Strict):
    """What a metric adds to the R² of out-of-fold predictions by size, compute and tokens. Lists are every pair."""

    of: Column | tuple[Column, ...]
    for_: Annotated[Column | tuple[Column, ...], Field(alias="for")]


class Trend(Strict):
    """The change of a column over the values of a hyperparameter, all else equal."""

    of: Column
    over: Setting
    from_: Annotated[Literal["lowest", "middle"], Field(alias="from")] = "lowest"
    to: Literal["middle", "highest"] = "highest"
    equal_steps: bool = False
    """Let the batch size differ so that the number of steps is equal, as the paper compares token budgets."""
    only_ends: bool = False
    """Only the cells at the lowest and the highest value."""

    @model_validator(mode="after")
    def _a_range(self) -> Trend:
        if (self.from_, self.to) == ("middle", "middle"):
            raise ValueError("from and to are both the middle")
        if self.only_ends and (self.from_, self.to) != ("lowest", "highest"):
            raise ValueError("only_ends goes from the lowest to the highest")
        return self


class At(Strict):
    """A column at one value of a hyperparameter, minus at the values on one side of it, all else equal."""

    of: Column
    over: Setting
    value: Real
    than: Literal["lower", "higher"]


class Turn(Strict):
    """A U over a hyperparameter: the fall to its bottom, or the rise from it. The other sizes say where the bottom is."""

    of: Column
    over: Setting
    part: Literal["fall", "rise"]
    inverted: Flag = False
    """Upside down: the rise to its top, or the fall from it."""


class Intervention(Strict):
    """What an intervention on W changes in a column, with everything else equal, the seed included."""

    of: Column
    by: Annotated[str, Field(min_length=1)]
    """As interventions.csv calls it: `rank 0.5 x 100`, a target and the penalty's strength, or `cap 15`."""
    against: str = ""
    """The intervention that it is compared with, one that leaves the rank where it was; empty: the cells left alone."""


class TrendBySize(Strict):
    """How the effect of a hyperparameter on a column changes with each e-fold of size."""

    of: Column
    over: Setting


class Spread(Strict):
    """The spread of one column over all cells, minus that of another or over it."""

    of: Column
    minus: Column | None = None
    over: Column | None = None
    measure: Literal["deviation", "interquartile_range", "relative_range"] = "deviation"
    """The standard deviation, the interquartile range, or that over the median."""
    given: Literal["nothing", "size"] = "nothing"
    """`size`: about the mean of each size."""

    @model_validator(mode="after")
    def _compared(self) -> Spread:
        if (self.minus is None) == (self.over is None):
            raise ValueError("minus or over is needed, a column to compare with, and not both")
        if self.given == "size" and self.measure == "relative_range":
            raise ValueError("relative_range is over the median, which is zero about the mean of each size")
        return self


class Mean(Strict):
    """The mean of one column over all cells minus that of another."""

    of: Column
    minus: Column


class SpreadAtEqual(Strict):
    """The spread of a column among the tenth of same-size pairs that are closest in another, over that of all such pairs."""

    of: Column
    at: Column


class Apart(Strict):
    """How far apart same-size pairs are in one column that are equal in another but for the noise of seeds.

    The mean |difference|, in standard deviations of one run between seeds, of pairs that differ in `at` by less than two
    seeds do in 95% of cases. Of two seeds it is 2 / sqrt(pi) = 1.13.
    """

    of: Column
    at: Column


class Percentile(Strict):
    """The mean percentile in one column, within their size, of the tenth of each size that is at one end of another."""

    of: Column
    in_: Annotated[Column, Field(alias="in")]
    end: Literal["lowest", "highest"]


class UnderTrained(Strict):
    """The mean percentile, within their size, of cells with at most half the median steps and a batch above the median."""

    of: Column


class LateRise(Strict):
    """How far the validation loss ends above its lowest, as a fraction of it, at the lowest value of a hyperparameter."""

    over: Setting = "batch_size"


class Curvature(Strict):
    """The R² that the square of one column adds to a line from it to another."""

    of: Column
    in_: Annotated[Column, Field(alias="in")]


class Strongest(Strict):
    """The mean |change| of a column over the range of one hyperparameter minus the largest over that of any other."""

    of: Column
    over: Setting
    per: Literal["range", "decade"] = "range"
    """`decade`: the change for each factor of ten, since ranges are chosen; zero as a value is left out."""


class Among(Strict):
    """Which cells a test is about."""

    tokens_per_parameter: Positive | None = None
    """Those trained on at least so many."""
    block: Literal["sequential", "parallel"] | None = None
    sizes: Literal["smallest", "largest", "smaller half", "larger half"] | None = None


class Needs(Strict):
    """What a sweep must have been like for the test to say anything; otherwise it is undecided, with that reason."""

    fine_tuning_steps: Count | None = None
    """Steps of the fine-tuning whose losses are tested."""
    decay_within: Positive | None = None
    """The fraction of the median run over which weight decay acts: 1 / (peak rate x decay x steps) is at most this."""


_EXPECTED = r"[<>] -?[0-9]+(\.[0-9]+)?|within [0-9]+(\.[0-9]+)?( spreads)?"


def _expectation(text: str) -> str:
    if not re.fullmatch(_EXPECTED, text):
        raise ValueError("one of '> 0.1', '< 0.1', 'within 0.3' and 'within 0.5 spreads' is needed")
    return text


class Test(Strict):
    """One effect and what is expected of it. Exactly one kind is given."""

    expect: Annotated[str, AfterValidator(_expectation), Field(json_schema_extra={"pattern": f"^({_EXPECTED})$"})]
    """`> x`, `< x`, `within x` of zero, or `within x spreads` (standard deviations of the column within a size)."""
    called: str = ""
    """What tables call the effect; `{loss}` and `{of}` stand for the words of those columns. By default words are found."""
    among: Among = Among()
    needs: Needs = Needs()
    correlation: Correlation | None = None
    attenuation: Attenuation | None = None
    closer: Closer | None = None
    line: Line | None = None
    added_r2: AddedR2 | None = None
    trend: Trend | None = None
    at: At | None = None
    turn: Turn | None = None
    trend_by_size: TrendBySize | None = None
    intervention: Intervention | None = None
    spread: Spread | None = None
    mean: Mean | None = None
    spread_at_equal: SpreadAtEqual | None = None
    apart: Apart | None = None
    percentile: Percentile | None = None
    under_trained: UnderTrained | None = None
    late_rise: LateRise | None = None
    curvature: Curvature | None = None
    strongest: Strongest | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Test:
        given = [name for name in KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"one kind of test is needed, not {', '.join(given) or 'none'}; allowed: {', '.join(KINDS)}"
            )
        if self.expect.endswith("spreads") and given[0] not in ("trend", "at", "turn"):
            raise ValueError(f"{given[0]} is no change of a column, and has no spreads: trend, at and turn are")
        # Those are of one table, over all cells.
        by_table = self.correlation is not None and self.correlation.given in ("line", "law")
        if self.among != Among() and (by_table or self.added_r2 is not None):
            raise ValueError("added_r2, and a correlation given a line or the law, are over all cells: leave among out")
        return self

    @property
    def kind(self) -> str:
        return next(name for name in KINDS if getattr(self, name) is not None)


KINDS = tuple(name for name, field in Test.model_fields.items() if type(None) in get_args(field.annotation))
"""The kinds of test, as a file names them."""


class Hypothesis(Strict):
    """One claim, and the tests that decide it: supported if all are, contradicted if one is (`analysis.claims`)."""

    id: int | Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    says: Annotated[str, Field(min_length=1)]
    where: str = ""
    """Where that is shown, such as a figure of a paper."""
    for_each: str | None = None
    """A pattern of columns such as `finetune_*_loss`: the tests are made for each, with its name for `{each}`."""
    tests: Annotated[tuple[Test, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _each(self) -> Hypothesis:
        with_each = ["{each}" in test.model_dump_json() for test in self.tests]
        if self.for_each is None and any(with_each):
            raise ValueError("{each} needs for_each, a pattern of columns")
        if self.for_each is not None and not all(with_each):
            raise ValueError("with for_each every test needs {each}; put the others into another hypothesis")
        return self


class Hypotheses(Strict):
    """The content of a file of hypotheses."""

    hypotheses: tuple[Hypothesis, ...]

    @property
    def digest(self) -> str:
        """12 hex digits that change when a test does, and not when its words do."""

        def said(test: Test) -> dict[str, Any]:
            # Without defaults: a field to come changes no file that was declared before it.
            return test.model_dump(exclude={"called"}, exclude_defaults=True)

        content = [
            [hypothesis.id, hypothesis.for_each, [said(test) for test in hypothesis.tests]]
            for hypothesis in self.hypotheses
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]


PAPER = "paper"
"""The key of a file of hypotheses that has the paper's claims tested before its own."""


def load_hypotheses(path: Path) -> Hypotheses:
    """Read a file of hypotheses. Raises `UserError` naming file and line.

    Examples
    --------
    >>> load_hypotheses(Path("search_spaces/paper.hypotheses.yaml")).hypotheses[7].id
    8
    """
    file = YamlFile(path, "file of hypotheses")
    if not isinstance(file.content, dict):
        raise file.error((), f"a mapping with hypotheses is needed, not {show(file.content)}")
    keys = (*Hypotheses.model_fields, PAPER)
    for key in file.content:
        if key not in keys:
            raise file.error((key,), f"unknown key; {allowed(key, keys)}")
    with_paper = file.content.get(PAPER, False)
    if not isinstance(with_paper, bool):
        raise file.error(
            (PAPER,), f"{show(with_paper)} must be true or false: whether the paper's claims are tested too"
        )
    papers = paper_hypotheses().hypotheses if with_paper else ()
    try:
        found = Hypotheses.model_validate({name: value for name, value in file.content.items() if name != PAPER})
    except ValidationError as error:
        where, message = explain(error, Hypotheses)
        raise file.error(where, message) from None
    taken = [hypothesis.id for hypothesis in papers]
    for i, hypothesis in enumerate(found.hypotheses):
        if hypothesis.id in taken:
            raise file.error(("hypotheses", i, "id"), f"the id {hypothesis.id!r} is there twice")
        taken.append(hypothesis.id)
    return Hypotheses(hypotheses=(*papers, *found.hypotheses))


@lru_cache(1)
def paper_hypotheses() -> Hypotheses:
    """The fifteen claims of arXiv 2602.20433, which a search space has that names no file of its own."""
    return load_hypotheses(Path(__file__).with_name("paper.hypotheses.yaml"))
