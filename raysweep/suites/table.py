"""A table of published models: where each is, and what is known of how it was trained.

A YAML file has groups of models, which may be grids:

    name: tiny
    source: https://...                        who says so
    models:
      - id: "{size}-{seed}"
        repository: "owner/model-{size}"       on the Hugging Face hub, or a folder beside this file
        revision: "step{step}-seed-{seed}"     {step} stands for digits, {*} for anything
        cross: {size: {4M: {width: 64, batch_size: 32}, ...}, seed: [1, 2]}
        settings: {sequence_length: 2048}
    settings: {weight_decay: 0.1}              of all models
    facts: {batch_size: {how: known, source: "Table 2"}, ...}
    unknown: [z_loss]

A CSV or Parquet file has a row for each model: `repository`, and if wanted `id` and `revision`; every other column is a
setting.
"""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow as pa
from pydantic import Field

from raysweep.errors import UserError, allowed, one_line
from raysweep.space.fields import Strict
from raysweep.space.read_cells import Reader
from raysweep.space.yaml_file import YamlFile

SHIPPED = Path(__file__).parent / "tables"

Value = str | int | float | bool | None

_ID = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_FILLED = re.compile(r"\{(\w+)\}")
STEP = "step"

# What a table has beside settings.
_PLACES = ("id", "repository", "revision")

# What results have of each model beside its settings.
_RESULTS = (
    "flops", "status", "commit", "architecture", "tied", "entries", "checkpoints", "product", "unknown", "rows_W",
    "steps_trained", "tokens_trained", "tokenizer_sha256",
)  # fmt: skip

# Settings that must be numbers: others are computed from them.
NUMBERS = (
    "width", "depth", "heads", "vocabulary", "parameters", "tokens", "steps", "batch_size", "sequence_length",
    "learning_rate", "final_learning_rate_fraction", "warmup_fraction", "weight_decay", "beta1", "beta2", "epsilon",
    "gradient_clipping",
)  # fmt: skip


class Fact(Strict):
    """Where a setting comes from."""

    how: Literal["known", "derived", "inferred"]
    source: str


@dataclass(frozen=True)
class PublishedModel:
    """A model that others have trained, at one or more points of its training."""

    id: str
    repository: str
    """On the hub, as `owner/name`; or a folder, absolute."""
    revision: str
    """The name of a checkpoint, in which `{step}` stands for its step; `main` where there is only one."""
    settings: dict[str, Value]
    """What is known of its training, by the names of a cell's settings where they mean the same."""

    @property
    def folder(self) -> Path | None:
        """Where it is, if it is not on the hub."""
        return Path(self.repository) if Path(self.repository).is_absolute() else None

    def step(self, revision: str) -> int | None:
        """The step of a checkpoint of that name, or None where it is none of this model's. Of `main` alone the last."""
        if "{step}" not in self.revision:
            return self._last if revision == self.revision else None
        pattern = re.escape(self.revision).replace(r"\{step\}", r"(\d+)", 1).replace(r"\{step\}", r"\1")
        found = re.fullmatch(pattern.replace(r"\{\*\}", ".*"), revision)
        return int(found[1]) if found else None

    @property
    def _last(self) -> int:
        steps = self.settings.get("steps")
        return int(steps) if isinstance(steps, int | float) else 0

    def tokens(self, step: int) -> int | None:
        """How many tokens it had seen after so many steps; None where that is unknown. Of `main` alone all of them."""
        if "{step}" not in self.revision and self.settings.get("tokens") is not None:
            return round(float(self.settings["tokens"]))  # type: ignore[arg-type]
        if not step and "{step}" not in self.revision:
            return None
        tokens, steps, batch, length = (
            self.settings.get(name) for name in ("tokens", "steps", "batch_size", "sequence_length")
        )
        if isinstance(batch, int | float) and isinstance(length, int | float):
            return round(step * batch * length)
        if isinstance(tokens, int | float) and isinstance(steps, int | float):
            return round(step / steps * tokens)
        return None


@dataclass(frozen=True)
class Table:
    """A suite: its models, and what is known of them."""

    name: str
    source: str
    models: tuple[PublishedModel, ...]
    facts: dict[str, Fact]
    """Setting -> where it comes from; of one's own table none."""
    unknown: tuple[str, ...]
    """Settings that nobody published."""

    @property
    def settings(self) -> list[str]:
        """Every setting that a model has."""
        return list(dict.fromkeys(name for model in self.models for name in model.settings))

    def row(self, model: PublishedModel) -> dict[str, Value]:
        """What a condition is about: the model's id, its repository, and every setting of the suite."""
        places: dict[str, Value] = {"id": model.id, "repository": model.repository}
        return places | dict.fromkeys(self.settings) | model.settings

    def unknown_of(self, model: PublishedModel) -> list[str]:
        """The settings that are not known of this model: nobody published them, or only of others."""
        lacking = [name for name in self.settings if model.settings.get(name) is None]
        return list(dict.fromkeys([*lacking, *(name for name in self.unknown if name not in model.settings)]))


def shipped() -> list[str]:
    """The tables that come with raysweep."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def read_table(name: str, beside: Path) -> Table:
    """The table of that name that comes with raysweep, or the file, which is looked for in the folder `beside`.

    Raises `ValueError` where there is none, and `UserError` naming the file, the line and what is wrong in it.
    """
    if "/" not in name and Path(name).suffix == "":
        if name not in shipped():
            raise ValueError(f"no suite {name}; {allowed(name, shipped())}, or a file: models.csv, models.yaml")
        return _from_yaml(SHIPPED / f"{name}.yaml")
    path = beside / Path(name).expanduser()
    if path.suffix in (".yaml", ".yml"):
        return _from_yaml(path)
    if path.suffix in (".csv", ".parquet"):
        return _from_rows(path)
    raise ValueError(f"{name}: a table of models is a .yaml, .csv or .parquet file")


class _Group(Strict):
    """Models of one kind."""

    id: str
    repository: str
    revision: str = "main"
    cross: dict[str, list[Any] | dict[str, dict[str, Any] | None]] = Field(default_factory=dict)
    settings: dict[str, Any] = Field(default_factory=dict)


class _File(Strict):
    name: Annotated[str, Field(pattern=rf"^{_ID}$", max_length=100)]
    source: str = ""
    models: Annotated[list[_Group], Field(min_length=1)]
    settings: dict[str, Any] = Field(default_factory=dict)
    facts: dict[str, Fact] = Field(default_factory=dict)
    unknown: list[str] = Field(default_factory=list)


def _from_yaml(path: Path) -> Table:
    file = YamlFile(path, "table of models")
    reader = Reader(file)
    content: _File = reader.validated(_File, reader.mapping(file.content, ()), ())
    models: dict[str, PublishedModel] = {}
    for i, group in enumerate(content.models):
        for filled in _grid(group):
            where = ("models", i)
            settings = content.settings | group.settings | filled
            try:
                model = _model(group.id, group.repository, group.revision, settings, path.parent)
            except ValueError as error:
                raise file.error(where, str(error)) from None
            if model.id in models:
                raise file.error((*where, "id"), f"two models would have the id {model.id}: name more settings in it")
            models[model.id] = model
    known = {name for model in models.values() for name in model.settings}
    for name in content.facts:
        if name not in known:
            raise file.error(("facts", name), f"no model has this setting; {allowed(name, sorted(known))}")
    return Table(content.name, content.source, tuple(models.values()), content.facts, tuple(content.unknown))


def _grid(group: _Group) -> list[dict[str, Any]]:
    """The settings of each combination of a group's axes."""
    axes = [
        [{axis: value} | ((values[value] or {}) if isinstance(values, dict) else {}) for value in values]
        for axis, values in group.cross.items()
    ]
    grid = []
    for parts in itertools.product(*axes):
        filled: dict[str, Any] = {}
        for part in parts:
            filled |= part
        grid.append(filled)
    return grid


def _model(id_: str, repository: str, revision: str, settings: dict[str, Any], beside: Path) -> PublishedModel:
    """A model, with its places filled in from its settings. Raises `ValueError`."""
    for name, value in settings.items():
        if name in _RESULTS or name.endswith(("_W", "_entries")):
            raise ValueError(f"{name} is the name of a result: call the setting otherwise")
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise ValueError(f"{name} is no name of a setting: small letters, digits and _ are")
        if isinstance(value, list | dict):
            raise ValueError(f"{name} is {value!r}, and a setting is one value")
        if name in NUMBERS and value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"{name} is {value!r}, and must be a number")

    def fill(text: str, what: str) -> str:
        def value(found: re.Match[str]) -> str:
            name = found[1]
            if name == STEP and what == "revision":
                return "{step}"
            if settings.get(name) is None:
                raise ValueError(f"{what} {text} needs the setting {name}, which the model does not have")
            return str(settings[name])

        return _FILLED.sub(value, text)

    filled = fill(id_, "id")
    if not re.fullmatch(_ID, filled):
        raise ValueError(f"id {filled}: letters, digits, '.', '_' and '-' are allowed")
    place = fill(repository, "repository")
    folder = beside / Path(place).expanduser()
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", place) or folder.is_dir():
        if not folder.is_dir():
            raise ValueError(f"{place} is neither a folder beside {beside} nor owner/name of a model on the hub")
        place = str(folder.resolve())
    return PublishedModel(filled, place, fill(revision, "revision"), settings)


def _from_rows(path: Path) -> Table:
    """One's own table: a row for each model."""
    import pandas as pd

    try:
        frame = (
            pd.read_csv(path, dtype={"id": str, "revision": str}) if path.suffix == ".csv" else pd.read_parquet(path)
        )
    except FileNotFoundError:
        raise UserError(f"{path}: no such table of models") from None
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read as a table: {one_line(error)}") from None
    if "repository" not in frame:
        raise UserError(
            f"{path} has no column repository (owner/name on the hub, or a folder); it has {', '.join(map(str, frame))}"
        )
    models: dict[str, PublishedModel] = {}
    for i, row in enumerate(frame.to_dict("records")):
        # The first line of a file has the names.
        where = f"{path}:{i + 2}" if path.suffix == ".csv" else f"{path}, row {i + 1}"
        values = {str(name): _plain(value) for name, value in row.items()}
        repository = values["repository"]
        if not isinstance(repository, str) or not repository:
            raise UserError(f"{where}: repository is empty")
        name = str(values.get("id") or Path(repository).name)
        settings = {name: value for name, value in values.items() if name not in _PLACES and value is not None}
        try:
            model = _model(name, repository, str(values.get("revision") or "main"), settings, path.parent)
        except ValueError as error:
            raise UserError(f"{where}: {error}") from None
        if model.id in models:
            raise UserError(f"{where}: a model of the id {model.id} is there already: give them a column id")
        models[model.id] = model
    if not models:
        raise UserError(f"{path} has no model")
    return Table(path.stem, str(path), tuple(models.values()), {}, ())


def _plain(value: Any) -> Value:
    """A value of a data frame; nothing where it is missing."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and math.isnan(value) else value
