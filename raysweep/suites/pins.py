"""`models.parquet`: which checkpoints a suite has, each pinned to the commit that it was found at first."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from raysweep.store import Store
from raysweep.store.schemas import MODELS

FILE = "models.parquet"


def read_pinned(store: Store) -> dict[str, dict[str, Any]]:
    """Checkpoint -> its row of `schemas.MODELS`."""
    return {str(row["id"]): row for row in store.read_rows(FILE, MODELS) or []}


def pin(store: Store, rows: Iterable[dict[str, Any]]) -> None:
    """Keep rows of checkpoints beside those that the store has."""
    whole = read_pinned(store) | {row["id"]: row for row in rows}
    store.write_table(FILE, list(whole.values()), MODELS)
