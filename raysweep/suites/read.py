"""A suite file -> what is asked of published models: which of them, which of their checkpoints, and what is measured.

name: pythia
suite: pythia                              # a table that comes with raysweep, or a file
select: "size in ['14m', '70m']"
revisions: {last: 1, evenly: 10}
measure: [...]                             # as in a search space
evaluations: [...]
hypotheses: paper.hypotheses.yaml
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from raysweep.errors import UserError, allowed, one_line
from raysweep.space.cell import Cell
from raysweep.space.condition import Condition
from raysweep.space.corpus import Corpus
from raysweep.space.evaluations import Evaluation, evaluation
from raysweep.space.fields import Count, Gpus, Positive, Strict
from raysweep.space.hypotheses import Hypotheses, load_hypotheses
from raysweep.space.measure import GRADIENTS, HIDDEN, Measurement
from raysweep.space.metrics import OF_ONE
from raysweep.space.read import SUITE, SpaceReader
from raysweep.space.size import Size
from raysweep.space.yaml_file import YamlFile
from raysweep.suites.table import PublishedModel, Table, read_table

if TYPE_CHECKING:
    import pandas as pd

MEASURE = "measure"
"""What the store calls what `measure` asks for."""

_KEYS = (
    "name", SUITE, "select", "revisions", "mirror", "corpus", "text_bytes", "sequence_length", "measure", "evaluations",
    "resources", "hypotheses", "published", "code",
)  # fmt: skip


class Revisions(Strict):
    """Which checkpoints of each model."""

    last: Count | None = None
    """So many at the end."""
    evenly: Annotated[Count, Field(ge=2)] | None = None
    """So many, evenly over the steps from the first to the last, both included."""
    steps: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Those of these steps."""

    @model_validator(mode="before")
    @classmethod
    def _last_by_default(cls, values: Any) -> Any:
        return values or {"last": 1}

    def chosen(self, steps: list[int]) -> list[int]:
        """Those of the steps that there are, in their order. Raises `ValueError` where one that is named is not there."""
        there = sorted(set(steps))
        wanted = set(there[-self.last :] if self.last else ())
        if self.evenly and there:
            first, last = there[0], there[-1]
            ideal = [first + (last - first) * i / (self.evenly - 1) for i in range(self.evenly)]
            wanted |= {min(there, key=lambda step: abs(step - at)) for at in ideal}
        for step in self.steps:
            if step not in there:
                raise ValueError(f"there is no checkpoint of step {step:,}")
        return sorted(wanted | set(self.steps))


class SuiteResources(Strict):
    """What one checkpoint asks of the cluster."""

    cpus: Count = 1
    """Cores of each checkpoint; also its torch threads."""
    gpus: Gpus = 0
    """GPU of each checkpoint, or a fraction of one."""
    disk: Positive = 50
    """GB that downloaded models may take on each node, all together."""


class Joined(Strict):
    """A table of results that others have published, to stand beside those measured here."""

    file: Annotated[str, Field(min_length=1)]
    """A .csv or .parquet file beside the suite file, with a row for each model, or for each model and task."""
    on: Annotated[dict[str, str], Field(min_length=1)]
    """Setting of the suite (or `id`, `step`) -> the column of the file that has it."""
    columns: Annotated[dict[str, str], Field(min_length=1)]
    """Column of the results -> column of the file, such as `hellaswag_accuracy: acc`; with `{task}` in the name, one for
    each task."""
    task: str | None = None
    """The column of the file that has the task's name, where there is a row for each task."""

    def path(self, folder: Path) -> Path:
        """Where the file is, beside the suite file in that folder."""
        return folder / Path(self.file).expanduser()

    def read(self, folder: Path, table: Table) -> pd.DataFrame:
        """The file.

        Raises `ValueError` where it cannot be read or lacks a column, or where the table of models lacks a setting.
        """
        import pandas as pd

        path = self.path(folder)
        try:
            found = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
        except (OSError, ValueError) as error:
            raise ValueError(f"published results {path} cannot be read: {one_line(error)}") from None
        for name in (*self.on.values(), *self.columns.values(), *([self.task] if self.task else [])):
            if name not in found:
                raise ValueError(
                    f"published results {path} have no column {name}; they have {', '.join(map(str, found))}"
                )
        for name in self.on:
            if name not in (*table.settings, "id", "step"):
                raise ValueError(f"published results: the suite has no setting {name}; {allowed(name, table.settings)}")
        if self.task is None and any("{task}" in name for name in self.columns):
            raise ValueError("published results: {task} in the name of a column needs `task`, the column with the task")
        return found


class Suite(Strict):
    """What is asked of published models."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
    revisions: Annotated[Revisions, BeforeValidator(lambda value: value or {})] = Revisions()
    corpus: Corpus = Corpus(name="installed")
    """Whose held-out documents the losses are taken on."""
    text_bytes: Count = 2_000_000
    """Bytes of each part of the corpus that are read: the same text for every model, whatever its tokenizer."""
    sequence_length: Annotated[Count, Field(ge=2)] = 2048
    """Tokens that a model is given at once."""
    measure: tuple[Measurement, ...] = ()
    evaluations: tuple[SerializeAsAny[Annotated[Evaluation, BeforeValidator(evaluation)]], ...] = ()
    resources: SuiteResources = SuiteResources()
    published: tuple[Joined, ...] = ()
    code: tuple[str, ...] = ()

    @property
    def measure_identity(self) -> dict[str, Any]:
        """What `measure` asks for, as the store knows whether it is done."""
        return {"measure": [one.model_dump(mode="json") for one in self.measure]}

    @property
    def stages(self) -> dict[str, dict[str, Any]]:
        """What is done with a model -> its settings: `measure`, where it asks for anything, and each evaluation's label."""
        measure = {MEASURE: self.measure_identity} if self.measure else {}
        return measure | {one.label: one.identity for one in self.evaluations}

    @property
    def hidden_sequences(self) -> int:
        """How many sequences hidden states are of; 0 where none are asked for."""
        asked = [one.sequences for one in self.measure if any(name.startswith(HIDDEN) for name in one.of)]
        return max(asked, default=0)

    @property
    def stand_in(self) -> Cell:
        """A cell of the suite's corpus and length, for what prepares and checks texts by cells."""
        length = self.sequence_length
        return Cell(size=Size(width=64), corpus=self.corpus, tokens=length, batch_size=1, sequence_length=length)


@dataclass(frozen=True)
class LoadedSuite:
    """A suite file: what is asked, and of which models."""

    suite: Suite
    table: Table
    """The whole table of models."""
    models: tuple[PublishedModel, ...]
    """Those that were selected."""
    hypotheses: Hypotheses | None
    """What is claimed of the results; None for the claims of the paper."""
    mirror: Path | None
    """A folder that has the hub's models, in its place."""
    folder: Path
    """Where the suite file is."""

    @property
    def name(self) -> str:
        return self.suite.name


def is_suite(path: str | Path) -> bool:
    """Whether a file asks for a suite of published models, and is no search space."""
    file = Path(path)
    if not file.is_file():
        return False
    try:
        # Most files are search spaces, whose YAML is read once.
        content = YamlFile(file).content if SUITE in file.read_text(encoding="utf-8", errors="replace") else None
    except UserError:
        return False  # Whoever reads it as a search space says what is wrong.
    return isinstance(content, dict) and SUITE in content


def load_suite(path: str | Path) -> LoadedSuite:
    """Read and validate a suite file.

    Parameters
    ----------
    path
        A YAML file; docs/published-models.md shows one.

    Returns
    -------
    LoadedSuite
        What is asked, and of which models.

    Raises
    ------
    UserError
        One line with the file, the line, the key, what was found and what is allowed.

    Examples
    --------
    >>> loaded = load_suite("search_spaces/pythia.yaml")
    >>> loaded.name, loaded.models[0].repository
    ('pythia', 'EleutherAI/pythia-14m')
    """
    return _SuiteReader(YamlFile(Path(path), "suite file")).suite()


class _SuiteReader(SpaceReader):
    def suite(self) -> LoadedSuite:
        content = self.mapping(self.file.content, ())
        for key in content:
            if key not in _KEYS:
                raise self.file.error((key,), f"unknown key of a suite; {allowed(key, _KEYS)}")
        for key in ("name", SUITE):
            if not isinstance(content.get(key), str) or not content[key]:
                raise self.file.error((key,), "missing, or no text")
        code = self.code(content.get("code"))
        folder = self.file.path.parent
        try:
            table = read_table(content[SUITE], folder)
        except ValueError as error:
            if isinstance(error, UserError):
                raise  # It has its place in that file.
            raise self.file.error((SUITE,), str(error)) from None
        corpus = content.get("corpus") or "installed"
        values = {
            name: content[name]
            for name in ("name", "revisions", "text_bytes", "sequence_length", "published")
            if content.get(name) is not None
        }
        values["corpus"] = self.validated(Corpus, {"name": corpus} if isinstance(corpus, str) else corpus, ("corpus",))
        values["evaluations"] = self.evaluations(content.get("evaluations"))
        values["measure"] = self._measurements(content.get("measure"))
        values["resources"] = self.validated(SuiteResources, content.get("resources") or {}, ("resources",))
        suite: Suite = self.validated(Suite, {**values, "code": code}, ())
        self._check(suite)
        for i, joined in enumerate(suite.published):
            try:
                joined.read(folder, table)
            except ValueError as error:
                raise self.file.error(("published", i), str(error)) from None
        return LoadedSuite(
            suite, table, self._selected(content.get("select"), table), self._claims(content.get("hypotheses")),
            self._mirror(content.get("mirror")), folder,
        )  # fmt: skip

    def _selected(self, condition: Any, table: Table) -> tuple[PublishedModel, ...]:
        if condition is None:
            return table.models
        if not isinstance(condition, str):
            raise self.file.error(("select",), "a condition in quotes is needed, such as \"size in ['14m', '70m']\"")
        try:
            holds = Condition(condition)
            models = tuple(model for model in table.models if holds.holds(table.row(model)))
        except ValueError as error:
            raise self.file.error(
                ("select",), str(error).replace("column of a cell", "setting of this suite")
            ) from None
        if not models:
            raise self.file.error(("select",), f"{condition!r} holds for none of the {len(table.models):,} models")
        return models

    def _measurements(self, content: Any) -> tuple[Measurement, ...]:
        if content is None:
            return ()
        if not isinstance(content, list):
            raise self.file.error(("measure",), "a list of {of: ..., metrics: [...]} is needed")
        found = []
        for i, item in enumerate(content):
            one: Measurement = self.validated(Measurement, item, ("measure", i))
            for name in ("when", "against", "tokens"):
                if getattr(one, name) is not None:
                    raise self.file.error(("measure", i, name), "of published models it cannot be chosen: leave it out")
            if one.positions != "last":
                raise self.file.error(("measure", i, "positions"), "of published models only the last token's are kept")
            if own := [metric for metric in one.metrics if metric not in OF_ONE]:
                raise self.file.error(("measure", i, "metrics"), f"{own[0]}: only metrics of one matrix, by name")
            if any(pattern.startswith(GRADIENTS) for pattern in one.of):
                raise self.file.error(("measure", i, "of"), "published models have no gradients here")
            found.append(one)
        if len({one.sequences for one in found if any(name.startswith(HIDDEN) for name in one.of)}) > 1:
            raise self.file.error(
                ("measure",), "entries with hidden states give different `sequences`: give all the same"
            )
        return tuple(found)

    def _check(self, suite: Suite) -> None:
        self.check_evaluations(suite.evaluations, (suite.stand_in,))
        for i, one in enumerate(suite.evaluations):
            if getattr(one, "relative_to", "size") == "cell":
                raise self.file.error(
                    ("evaluations", i, "relative_to"),
                    "of published models it is the rule's rate for the size: leave relative_to out, or give a learning_rate",
                )

    def _claims(self, name: Any) -> Hypotheses | None:
        if name is None:
            return None
        if not isinstance(name, str) or not name.endswith((".yaml", ".yml")):
            raise self.file.error(("hypotheses",), "the name of a .yaml file is needed")
        return load_hypotheses(self.file.path.parent / name)

    def _mirror(self, folder: Any) -> Path | None:
        if folder is None:
            return None
        path = self.file.path.parent / Path(str(folder)).expanduser()
        if not path.is_dir():
            raise self.file.error(("mirror",), f"{path} is no folder")
        return path.resolve()
