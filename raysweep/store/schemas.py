"""Every Arrow schema of the store, with units in the fields' metadata, and the versions of them that can be read."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

# What is written, and what can be read: version 1 had no checksum of the rows, 2 not the settings of SINCE_3.
SCHEMA_VERSION = "3"
READABLE = ("1", "2", SCHEMA_VERSION)


def _schema(**fields: tuple[pa.DataType, str]) -> pa.Schema:
    """Column -> (type, unit)."""
    return pa.schema(
        [pa.field(name, kind, metadata={"unit": unit} if unit else None) for name, (kind, unit) in fields.items()],
        metadata={"raysweep_schema": SCHEMA_VERSION},
    )


_TEXT, _COUNT, REAL = pa.string(), pa.int64(), pa.float64()

_GEOMETRY_W = {
    "effective_rank_W": (REAL, "fraction of the width"),
    "cosine_W": (REAL, ""),
    "isotropy_W": (REAL, ""),
    "isotropy_symmetric_W": (REAL, ""),
    "spectral_norm_W": (REAL, ""),
}

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
    "batch_size": (_COUNT, "sequences"),
    "sequence_length": (_COUNT, "tokens"),
    "learning_rate_factor": (REAL, ""),
    "final_learning_rate_fraction": (REAL, ""),
    "warmup_fraction": (REAL, ""),
    "weight_decay": (REAL, ""),
    "beta1": (REAL, ""),
    "beta2": (REAL, ""),
    "epsilon": (REAL, ""),
    "gradient_clipping": (REAL, "L2 norm"),
    "block": (_TEXT, "sequential or parallel"),
    "effective_rank_target": (REAL, "fraction of the width"),
    "effective_rank_penalty": (REAL, ""),
    "spectral_norm_cap": (REAL, ""),
    "reports": (_COUNT, "rows evenly over training"),
    "validation_sequences": (_COUNT, "sequences"),
    "seed": (_COUNT, ""),
}

# What every cell had before these could be set.
SINCE_3: dict[str, Any] = {
    "block": "sequential",
    "effective_rank_target": None,
    "effective_rank_penalty": 0.0,
    "spectral_norm_cap": None,
    "reports": 20,
}

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
    system=(_TEXT, ""),
    python=(_TEXT, ""),
    versions=(_TEXT, "JSON"),
)

INDEX = _schema(file=(_TEXT, ""), size=(_COUNT, "bytes"), changed=(_COUNT, "ns since 1970"), rows=(_TEXT, "JSON"))
