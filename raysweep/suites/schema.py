"""The JSON schema of a suite file, by which editors complete and check its fields."""

from __future__ import annotations

from typing import Any

from raysweep.space.measure import Measurement
from raysweep.space.read import SUITE
from raysweep.space.schema import (
    CORPORA,
    definitions_of,
    either,
    evaluation_items,
    file_schema,
    or_nothing,
    task_settings,
)
from raysweep.suites.read import Suite

# Of a trained cell alone.
_NOT_OF_PUBLISHED = ("when", "against", "tokens")

_FILE = {"type": "string", "minLength": 1}


def suite_schema() -> dict[str, Any]:
    """The schema, under JSON Schema's draft 2020-12.

    Examples
    --------
    >>> suite_schema()["properties"]["sequence_length"]["anyOf"][0]["minimum"]
    2
    """
    of, definitions = definitions_of([Suite, Measurement, *task_settings()])
    fields: dict[str, Any] = definitions.pop("Suite")["properties"]
    for name in _NOT_OF_PUBLISHED:
        del definitions["Measurement"]["properties"][name]
    said = {
        "name": "What the suite is called; its results are in runs/<name>.",
        SUITE: "A table that comes with raysweep, such as `pythia`, or a file beside this one: models.csv, models.yaml.",
        "select": "Only the models for which this holds, such as \"size in ['14m', '70m']\".",
        "revisions": "Which checkpoints of each model; by default the last.",
        "mirror": "A folder that has the hub's models, in its place.",
        "measure": "What is measured of matrices and hidden states.",
        "evaluations": "The tasks for each checkpoint.",
        "resources": "What one checkpoint asks of the cluster.",
        "hypotheses": "A file beside this one with what you expect.",
        "published": "Tables of results that others have published, to stand beside those measured here.",
        "code": "Folders beside this file with your own Python packages.",
    }
    properties = {
        **fields,
        SUITE: _FILE, "select": _FILE, "mirror": _FILE, "hypotheses": _FILE,
        "corpus": either({"enum": list(CORPORA)}, fields["corpus"]),
        "evaluations": {"type": "array", "items": evaluation_items(of)},
    }  # fmt: skip
    described = {
        name: what | ({"description": said[name]} if name in said else {}) for name, what in properties.items()
    }
    optional = {name: what if name in ("name", SUITE) else or_nothing(what) for name, what in described.items()}
    definitions.pop("Evaluation", None)  # A list of it has the settings of each task.
    return file_schema("A suite of published models", ["name", SUITE], optional, definitions)
