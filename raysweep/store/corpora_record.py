"""`corpora.json`: the fingerprint that each corpus of a store, and text of an evaluation, had when it was first built."""

from __future__ import annotations

import json
from typing import Any

from raysweep.errors import UserError
from raysweep.store.schemas import SCHEMA_VERSION
from raysweep.store.store import Store
from raysweep.store.tables import checksum, sealed

FILE = "corpora.json"


def fingerprints(store: Store) -> dict[str, str]:
    """The fingerprints that are on record, by the corpora's specifications."""
    content = store.read(FILE)
    version = SCHEMA_VERSION
    recorded: dict[str, str] = {}
    try:
        if content is not None:
            recorded, version = _parse(json.loads(content))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        store.quarantine(FILE, "it is not what was written")
    store.check_schema(FILE, version)
    return recorded


def record(store: Store, built: dict[str, str]) -> None:
    """Record the fingerprint of each corpus, by its specification; `UserError` where another is on record."""
    recorded = fingerprints(store)
    for corpus, fingerprint in built.items():
        if recorded.get(corpus, fingerprint) != fingerprint:
            raise UserError(
                f"the corpus {corpus} was {recorded[corpus]} when the store {store.location} was begun and is "
                f"{fingerprint} now: bring its text and the versions of constraints.txt back, or use another --store"
            )
    if not built.items() <= recorded.items():
        store.write(FILE, sealed({"corpora": recorded | built}))


def _parse(body: dict[str, Any]) -> tuple[dict[str, str], str]:
    """What corpora.json holds, and the schema that it was written under."""
    if all(isinstance(fingerprint, str) for fingerprint in body.values()):
        return body, "1"
    sealed, sha256 = {key: value for key, value in body.items() if key != "sha256"}, body["sha256"]
    # The first files of schema 2 did not say so.
    if sha256 not in (checksum(sealed), checksum(body["corpora"]) if len(sealed) == 1 else ""):
        raise ValueError
    return body["corpora"], sealed.get("schema", "2")
