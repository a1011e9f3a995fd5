"""A suite's tables: a row for each model, as `raysweep results` has one for each cell, and its checkpoints as its training.

The columns are the settings of the suite's table, under the names of a cell's settings where they mean the same, and what
was measured of the last checkpoint. Nothing here needs Ray or PyTorch.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from raysweep.errors import UserError
from raysweep.space.measure import column
from raysweep.space.metrics import METRICS
from raysweep.store import Store
from raysweep.store.index import read_all
from raysweep.store.results import evaluated
from raysweep.store.schemas import MEASURES, REAL, REVISIONS
from raysweep.suites.pins import check_asked, read_pinned, wanted
from raysweep.suites.read import MEASURE, Joined, LoadedSuite
from raysweep.suites.table import NUMBERS, PublishedModel

log = logging.getLogger("raysweep")

# Of the last checkpoint, beside the settings.
_ABOUT = {
    "repository": pa.string(), "revision": pa.string(), "commit": pa.string(), "steps_trained": pa.int64(),
    "tokens_trained": pa.int64(), "architecture": pa.string(), "rows_W": pa.int64(), "entries": pa.int64(),
    "tokenizer_sha256": pa.string(), "tied": pa.bool_(),
    "product": pa.bool_(), "status": pa.string(), "checkpoints": pa.int64(), "unknown": pa.string(),
}  # fmt: skip

FROM_FILES = ("width", "depth", "heads", "vocabulary", "parameters")
"""Settings that a model's files say where its table does not."""

# Of every checkpoint.
IN_BITS = "in_distribution_bits_per_byte"
_TRAJECTORY = ("train_loss", "validation_loss", "learning_rate", "gradient_norm")


def revisions(loaded: LoadedSuite, store: Store) -> dict[str, list[dict[str, Any]]]:
    """Model -> its measured checkpoints in the order of their steps.

    Without the models whose last checkpoint is not measured yet: an earlier one is not to stand for it.
    """
    last: dict[str, int] = {}
    asked = wanted(store, loaded.suite)
    for one in read_pinned(store).values():
        if one["id"] in asked:
            last[one["model"]] = max(one["step"], last.get(one["model"], 0))
    models = {model.id for model in loaded.models}
    found: dict[str, list[dict[str, Any]]] = {}
    for rows in read_all(store, "revisions", REVISIONS).values():
        for row in rows:
            if row["model"] in models and row["id"] in asked:
                found.setdefault(row["model"], []).append(row)
    ordered = {model: sorted(rows, key=lambda row: row["step"]) for model, rows in found.items()}
    return {model: rows for model, rows in ordered.items() if rows[-1]["step"] == last.get(model)}


def results(loaded: LoadedSuite, store: str | Path | Store) -> pa.Table:
    """One row for each model whose last checkpoint is measured: its settings, and what was measured of the last one.

    Parameters
    ----------
    loaded
        Which models, and which evaluations.
    store
        The folder or URI of the results.

    Returns
    -------
    pyarrow.Table
        Units are in the fields' metadata. `status` is `done` where every number of the last checkpoint is there; `unknown`
        names the settings that nobody published. An evaluation that is not done is empty.

    Raises
    ------
    UserError
        Where the store's numbers are of another text or length, or a table of published results cannot be joined.

    Examples
    --------
    >>> loaded = load_suite("search_spaces/pythia.yaml")               # doctest: +SKIP
    >>> results(loaded, "runs/pythia").num_rows                        # doctest: +SKIP
    16
    """
    store = Store.at(store)
    check_asked(store, loaded.suite)
    of_models = revisions(loaded, store)
    values = Measured(loaded, store)
    units = values.units  # Which grow as values are looked up.
    rows = []
    for model in loaded.models:
        if model.id not in of_models:
            continue
        last = of_models[model.id][-1]
        row = settings(model, loaded)
        for name, there in zip(
            FROM_FILES, (last["width"], last["depth"], last["heads"], last["rows_W"], last["parameters"]), strict=True
        ):
            row[name] = there if row.get(name) is None else row[name]
        if "{step}" in model.revision and last["step"] != row.get("steps"):
            # Of an earlier checkpoint, where that is the last that is asked for.
            row["steps"], row["tokens"] = last["step"], model.tokens(last["step"])
        if row.get("tokens") is None and isinstance(steps := row.get("steps"), int | float):
            row["tokens"] = model.tokens(int(steps))
        if row.get("tokens") is not None:
            row["flops"] = 6.0 * row["parameters"] * row["tokens"]
        row |= {
            "repository": last["repository"], "revision": last["revision"], "commit": last["commit"],
            "steps_trained": last["step"], "tokens_trained": last["tokens"], "architecture": last["architecture"],
            **{name: last[name] for name in ("rows_W", "entries", "tokenizer_sha256", "tied", "product")},
            "checkpoints": len(of_models[model.id]), "unknown": ", ".join(loaded.table.unknown_of(model)),
            **{f"{name}_W": last[f"{name}_W"] for name in METRICS},
            **{f"{name}_entries": last[f"{name}_entries"] for name in METRICS},
        }  # fmt: skip
        row |= values.of(last["id"], last["step"])
        row["status"] = "done" if values.complete(last["id"]) else "partly"
        rows.append(row)
    for joined in loaded.suite.published:
        units |= _join(joined, rows, loaded)
    return pa.Table.from_pylist(rows, schema=_schema(rows, loaded, units))


def settings(model: PublishedModel, loaded: LoadedSuite) -> dict[str, Any]:
    """A model's id and settings; nothing for those that are not known."""
    row = {"id": model.id} | dict.fromkeys(loaded.table.settings) | model.settings
    # As of cells: a label.
    row["size"] = str(row["size"]) if row.get("size") is not None else model.id
    return row


class Measured:
    """What evaluations and `measure` found of checkpoints."""

    def __init__(self, loaded: LoadedSuite, store: Store) -> None:
        self.units: dict[str, str] = {}
        suite = loaded.suite
        self._evaluated = [evaluated(store, stage, asked) for stage, asked in suite.stages.items()]
        # What was measured before `measure` was changed is of other settings, until it is measured again.
        current = evaluated(store, MEASURE, suite.measure_identity) if suite.measure else {}
        self.measures = {
            checkpoint: rows
            for checkpoint, rows in read_all(store, "measures", MEASURES).items()
            if checkpoint in current
        }
        self._asked = {metric for one in suite.measure for metric in one.metrics}

    def of(self, checkpoint: str, step: int) -> dict[str, float]:
        """Column -> value."""
        row = {}
        for of_checkpoints in self._evaluated:
            for metric in of_checkpoints.get(checkpoint, []):
                row[metric["metric"]], self.units[metric["metric"]] = metric["value"], metric["unit"]
        for measured in self.measures.get(checkpoint, []):
            if measured["step"] == step and measured["metric"] in self._asked:
                name = column(measured["metric"], measured["matrix"])
                row[name], self.units[name] = measured["value"], measured["unit"]
        return row

    def complete(self, checkpoint: str) -> bool:
        """Whether every evaluation, and what `measure` asks for, is there."""
        return all(checkpoint in of_checkpoints for of_checkpoints in self._evaluated)


def trajectories(loaded: LoadedSuite, store: Store) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of every checkpoint, in the form of a cell's rows over training; and what `measure` found.

    `validation_loss` is the in-distribution loss of the checkpoint, where that was evaluated; beside it bits per byte.
    """
    values = Measured(loaded, store)
    rows, measures = [], []
    for model, of_model in revisions(loaded, store).items():
        for one in of_model:
            found = values.of(one["id"], one["step"])
            rows.append(
                {
                    "cell": model, "step": one["step"], "tokens": one["tokens"], **dict.fromkeys(_TRAJECTORY),
                    "validation_loss": found.get("in_distribution_loss"),
                    IN_BITS: found.get(IN_BITS),
                    **{f"{name}_W": one[f"{name}_W"] for name in METRICS},
                }
            )  # fmt: skip
            measures += [row | {"cell": model} for row in values.measures.get(one["id"], [])]
    columns = ["cell", "step", "tokens", *_TRAJECTORY, IN_BITS, *(f"{name}_W" for name in METRICS)]
    table = pd.DataFrame(rows, columns=columns)
    numbers = [name for name in table if name != "cell"]
    return table.astype(dict.fromkeys(numbers, float)), pd.DataFrame(measures, columns=MEASURES.names)


def _schema(rows: list[dict[str, Any]], loaded: LoadedSuite, units: dict[str, str]) -> pa.Schema:
    fields = [pa.field("id", pa.string())]
    names = list(dict.fromkeys([*loaded.table.settings, "size", *FROM_FILES, "steps", "tokens"]))
    for name in names:
        values = [row[name] for row in rows if row.get(name) is not None]
        fields.append(pa.field(name, _type(name, values)))
    fields += [pa.field(name, kind) for name, kind in _ABOUT.items() if name not in names]
    for name in dict.fromkeys(name for row in rows for name in row):
        if name not in {field.name for field in fields}:
            unit = units.get(name) or METRICS.get(name.rpartition("_")[0], "")
            fields.append(pa.field(name, REAL, metadata={"unit": unit} if unit else None))
    for row in rows:
        for field in fields:
            if pa.types.is_string(field.type) and row.get(field.name) is not None:
                row[field.name] = str(row[field.name])
    return pa.schema(fields)


def _type(name: str, values: list[Any]) -> pa.DataType:
    """The type of a setting's column: text where one model has text."""
    if name != "size" and values and all(isinstance(value, bool) for value in values):
        return pa.bool_()
    if name != "size" and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return (
            pa.int64() if values and all(isinstance(value, int) for value in values) and name not in NUMBERS else REAL
        )
    return pa.string()


def _join(joined: Joined, rows: list[dict[str, Any]], loaded: LoadedSuite) -> dict[str, str]:
    """Add published results to the rows of the models that they are of; the unit of each column.

    Raises `UserError` where the file has not what it should have, or several rows are of one model.
    """
    path = joined.path(loaded.folder)
    try:
        table = joined.read(loaded.folder, loaded.table)
    except ValueError as error:
        raise UserError(str(error)) from None
    by_model: dict[tuple[str, ...], dict[str, Any]] = {}
    for values in table.to_dict("records"):
        key = tuple(_key(values[name]) for name in joined.on.values())
        for name, source in joined.columns.items():
            target = name.replace("{task}", str(values[joined.task])) if joined.task else name
            value = values[source]
            if value != value:
                continue
            if not isinstance(value, int | float):
                raise UserError(f"published results {path}: {source} is {value!r}, and must be a number")
            if target in by_model.setdefault(key, {}):
                raise UserError(
                    f"published results {path} have several rows of {target} for "
                    f"{dict(zip(joined.on, key, strict=True))}: name more columns in `on`, such as seed and step"
                )
            by_model[key][target] = float(value)
    without = []
    for row in rows:
        mine = row | {"step": row["steps_trained"]}
        found = by_model.get(tuple(_key(mine[name]) for name in joined.on), {})
        if not found:
            without.append(row["id"])
        for name in found:
            if name in row:
                raise UserError(f"published results {path}: there is a column {name} already: give it another name")
        row |= found
    if without:
        log.warning(
            "published results %s have nothing of %d of %d models, such as %s",
            path,
            len(without),
            len(rows),
            without[0],
        )
    names: Iterable[str] = {name for found in by_model.values() for name in found}
    return dict.fromkeys(names, "as published")


def _key(value: Any) -> str:
    """A value to compare, whether a table has it as a number or as text."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value)
