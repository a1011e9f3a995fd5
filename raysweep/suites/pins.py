"""What a store keeps to: the commit of each checkpoint, and what the losses are of.

models.parquet     checkpoint -> the repository and commit that it was found at first
suite.json         corpus, bytes of text and sequence length, which every number depends on
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from raysweep.errors import UserError
from raysweep.store import Store
from raysweep.store.schemas import MODELS
from raysweep.store.tables import checksum, sealed
from raysweep.suites.read import Suite

FILE, ASKED = "models.parquet", "suite.json"


def read_pinned(store: Store) -> dict[str, dict[str, Any]]:
    """Checkpoint -> its row of `schemas.MODELS`."""
    return {str(row["id"]): row for row in store.read_rows(FILE, MODELS) or []}


def pin(store: Store, rows: Iterable[dict[str, Any]]) -> None:
    """Keep rows of checkpoints beside those that the store has.

    Raises `UserError` where the store has a checkpoint of that name from another repository.
    """
    whole = read_pinned(store)
    for row in rows:
        before = whole.get(row["id"])
        if before is not None and _place(before) != _place(row):
            raise UserError(
                f"{row['id']} is from {row['repository']}, and {store.location} has one of that name from "
                f"{before['repository']}: give the model another id, or use another --store"
            )
        whole[row["id"]] = row
    store.write_table(FILE, list(whole.values()), MODELS)


def _place(row: dict[str, Any]) -> str:
    """Where a checkpoint is from; a folder may be moved, and keeps its name."""
    repository = str(row["repository"])
    return Path(repository).name if Path(repository).is_absolute() else repository


def wanted(store: Store, suite: Suite) -> set[str]:
    """The checkpoints that the last run of the suite of that name asked for; empty where there was none."""
    content = store.read(ASKED)
    return set(json.loads(content)["checkpoints"].get(suite.name, ())) if content is not None else set()


def check_asked(store: Store, suite: Suite, record: Iterable[str] | None = None) -> None:
    """Raise `UserError` where the store's numbers are of another corpus, length or amount of text.

    `record` keeps these, and that the suite asks for those checkpoints now.
    """
    checkpoints: dict[str, list[str]] = {}
    asked: dict[str, Any] = {
        "corpus": suite.corpus.key,
        "sequence_length": suite.sequence_length,
        "text_bytes": suite.text_bytes,
    }
    content = store.read(ASKED)
    if content is not None:
        try:
            kept = json.loads(content)
            if checksum({name: value for name, value in kept.items() if name != "sha256"}) != kept["sha256"]:
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError):
            store.quarantine(ASKED, "it is not what was written")
            raise UserError(
                f"{store.location}/{ASKED} was damaged, and says no more what the numbers there are of: use another --store"
            ) from None
        for name, value in asked.items():
            if kept[name] != value:
                raise UserError(
                    f"{store.location} has numbers of {name} {kept[name]}, and {suite.name} asks for {value}: change that "
                    "back, or use another --store"
                )
        checkpoints = kept["checkpoints"]
    if record is not None:
        store.write(ASKED, sealed(asked | {"checkpoints": checkpoints | {suite.name: sorted(record)}}))
