"""Every Arrow schema of the store, with units in the fields' metadata, and the versions of them that can be read.

The settings of a cell are columns by themselves: a new field of `Cell` with a default is a new column, and its
`Column.since` the new version.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from pydantic.fields import FieldInfo

from raysweep.space.cell import Cell
from raysweep.space.fields import Column, plain
from raysweep.space.metrics import METRICS

# The settings that tables call by another name, or by several.
_FIELDS = {
    name: field
    for name, field in Cell.model_fields.items()
    if name not in ("size", "corpus", "learning_rate", "tokens")
}


def _column(field: FieldInfo) -> Column:
    return next((item for item in field.metadata if isinstance(item, Column)), Column())


# What computed a number, in the tables of timings.
_COMPUTED = {
    "device": "cpu or cuda",
    "device_name": "",
    "precision": "of matrix products",
    "kernels": "of the blocks: raysweep or ai2-olmo",
    "compiled": "yes or no",
}

# Columns beside the settings that came later, and the version they came with: of older tables nobody knows.
_LATER = dict.fromkeys(_COMPUTED, 4) | {"gpus": 7, "job": 7}

# What is written, and what can be read: version 1 had no checksum of the rows, and every version the settings there were.
SCHEMA_VERSION = str(max(*_LATER.values(), *(_column(field).since for field in _FIELDS.values())))
READABLE = tuple(str(version) for version in range(1, int(SCHEMA_VERSION) + 1))


def defaults(version: str) -> dict[str, Any]:
    """The columns that tables of a version do not have yet, and what every cell had then; None where nobody knows."""
    unknown = {name: None for name, since in _LATER.items() if since > int(version)}
    return unknown | {name: field.default for name, field in _FIELDS.items() if _column(field).since > int(version)}


def _schema(**fields: tuple[pa.DataType, str]) -> pa.Schema:
    """Column -> (type, unit)."""
    return pa.schema(
        [pa.field(name, kind, metadata={"unit": unit} if unit else None) for name, (kind, unit) in fields.items()],
        metadata={"raysweep_schema": SCHEMA_VERSION},
    )


_TEXT, _COUNT, REAL = pa.string(), pa.int64(), pa.float64()


def _arrow_type(field: FieldInfo) -> pa.DataType:
    """The type of a column for a field of a cell, which may be absent."""
    return {str: _TEXT, int: _COUNT, float: REAL, bool: pa.bool_()}[plain(field.annotation)]


# Column -> (type, unit): what a cell is and what follows from its settings, then the settings themselves.
_SETTINGS = {
    "id": (_TEXT, ""),
    "size": (_TEXT, ""),
    "width": (_COUNT, ""),
    "depth": (_COUNT, "blocks"),
    "heads": (_COUNT, ""),
    "corpus": (_TEXT, ""),
    "tokenizer": (_TEXT, ""),
    "vocabulary": (_COUNT, "rows of W"),
    "parameters": (_COUNT, "without the input embedding"),
    "tokens": (_COUNT, "tokens"),
    "steps": (_COUNT, "optimizer steps"),
    "learning_rate": (REAL, "peak"),
    "flops": (REAL, "FLOP"),
} | {name: (_arrow_type(field), _column(field).unit) for name, field in _FIELDS.items()}

_GEOMETRY_W = {f"{metric}_W": (REAL, unit) for metric, unit in METRICS.items()}

_ROW = {
    "train_loss": (REAL, "nats per token, mean since the row before"),
    "validation_loss": (REAL, "nats per token"),
}

PLAN = _schema(**_SETTINGS)

CELLS = _schema(
    **_SETTINGS,
    status=(_TEXT, "done or diverged"),
    steps_trained=(_COUNT, "optimizer steps"),
    tokens_trained=(_COUNT, "tokens"),
    **_ROW,
    **_GEOMETRY_W,
    corpus_fingerprint=(_TEXT, ""),
    raysweep_version=(_TEXT, ""),
    torch_version=(_TEXT, ""),
)

TRAJECTORIES = _schema(
    cell=(_TEXT, ""),
    step=(_COUNT, "optimizer steps"),
    tokens=(_COUNT, "tokens"),
    **_ROW,
    learning_rate=(REAL, ""),
    gradient_norm=(REAL, "L2 norm before clipping"),
    **_GEOMETRY_W,
)

MEASURES = _schema(
    cell=(_TEXT, ""),
    step=(_COUNT, "optimizer steps"),
    matrix=(_TEXT, ""),
    metric=(_TEXT, ""),
    value=(REAL, "the metric's own"),
    unit=(_TEXT, ""),
    settings=(_TEXT, "what else changes the value"),
    reason=(_TEXT, "why there is no value"),
)

SPECTRA = _schema(
    cell=(_TEXT, ""),
    step=(_COUNT, "optimizer steps"),
    matrix=(_TEXT, ""),
    settings=(_TEXT, "what else changes the values"),
    singular_values=(pa.list_(REAL), "the largest first"),
)

EVALUATIONS = _schema(
    cell=(_TEXT, ""),
    task=(_TEXT, ""),
    settings=(_TEXT, "JSON"),
    metric=(_TEXT, ""),
    value=(REAL, "the metric's own"),
    unit=(_TEXT, ""),
)

TIMINGS = _schema(
    cell=(_TEXT, ""),
    stage=(_TEXT, "train or a task"),
    seconds=(REAL, "s"),
    tokens_per_second=(REAL, "tokens/s"),
    starts=(_COUNT, "times it was begun or resumed"),
    host=(_TEXT, ""),
    **{name: (_TEXT, unit) for name, unit in _COMPUTED.items()},
    gpus=(REAL, "GPUs that it held all the while"),
    finished=(pa.timestamp("s", "UTC"), ""),
)

FAILURES = _schema(
    cell=(_TEXT, ""), stage=(_TEXT, "train or a task"), error=(_TEXT, ""), failed=(pa.timestamp("s", "UTC"), "")
)

SESSIONS = _schema(
    space=(_TEXT, "its name"),
    started=(pa.timestamp("s", "UTC"), ""),
    seen=(pa.timestamp("s", "UTC"), "when it last said that it was there"),
    ended=(pa.bool_(), "by itself, not killed"),
    host=(_TEXT, ""),
    processor=(_TEXT, "of the driver's machine"),
    cores=(_COUNT, "of the driver's machine"),
    job=(_TEXT, "of Slurm, as slurm:1234"),
    system=(_TEXT, ""),
    python=(_TEXT, ""),
    versions=(_TEXT, "JSON"),
)

# Of models that others have trained (`raysweep.suites`).
MODELS = _schema(
    id=(_TEXT, "model@revision"),
    model=(_TEXT, ""),
    repository=(_TEXT, "on the hub, or a folder"),
    revision=(_TEXT, ""),
    commit=(_TEXT, "of the hub; empty of a folder"),
    step=(_COUNT, "optimizer steps"),
    bytes=(_COUNT, "of its files; of one on the hub those of a checkpoint of its repository"),
)

REVISIONS = _schema(
    id=(_TEXT, "model@revision"),
    model=(_TEXT, ""),
    repository=(_TEXT, "on the hub, or a folder"),
    revision=(_TEXT, ""),
    commit=(_TEXT, "of the hub; empty of a folder"),
    files_sha256=(_TEXT, "of what it is loaded from"),
    step=(_COUNT, "optimizer steps"),
    tokens=(_COUNT, "tokens"),
    architecture=(_TEXT, "class that loads it"),
    width=(_COUNT, "columns of W"),
    depth=(_COUNT, "blocks"),
    heads=(_COUNT, ""),
    parameters=(_COUNT, "counted; without the input embedding, where it is not W too"),
    rows_W=(_COUNT, "rows of W"),
    entries=(_COUNT, "of the tokenizer"),
    tokenizer_sha256=(_TEXT, "of the tokenizer: where it differs, losses for each token do not compare"),
    tied=(pa.bool_(), "whether W is the embedding too"),
    product=(pa.bool_(), "whether logits are last states times W, neither scaled nor capped"),
    **_GEOMETRY_W,
    **{
        f"{metric}_entries": (REAL, f"{unit}; without rows behind the tokenizer's entries")
        for metric, unit in METRICS.items()
    },
    raysweep_version=(_TEXT, ""),
    torch_version=(_TEXT, ""),
    transformers_version=(_TEXT, ""),
)

INDEX = _schema(file=(_TEXT, ""), size=(_COUNT, "bytes"), changed=(_COUNT, "ns since 1970"), rows=(_TEXT, "JSON"))
