"""`hypotheses.json`: which hypotheses were declared of a sweep, and how many of its cells were finished then."""

from __future__ import annotations

import json
from typing import Any

from raysweep.store.sessions import now
from raysweep.store.store import Store
from raysweep.store.tables import checksum, sealed

FILE = "hypotheses.json"


def read(store: Store, space: str | None = None) -> list[dict[str, Any]]:
    """The declarations of a search space, or of all, in their order.

    Each has the `space`, the `digest` of its hypotheses, when they were `seen`, and the cells `finished` then and `planned`.
    """
    content = store.read(FILE)
    if content is None:
        return []
    try:
        body = json.loads(content)
        sealed = {key: value for key, value in body.items() if key != "sha256"}
        if checksum(sealed) != body["sha256"]:
            raise ValueError
        return [one for one in body["declared"] if space in (None, one["space"])]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        store.quarantine(FILE, "it is not what was written")
        return []


def record(store: Store, space: str, digest: str, finished: int, planned: int) -> None:
    """Add a declaration where these hypotheses are not the last ones of the search space."""
    own = read(store, space)
    if not own or own[-1]["digest"] != digest:
        seen = now().isoformat(timespec="seconds")
        added = {"space": space, "digest": digest, "seen": seen, "finished": finished, "planned": planned}
        write(store, [*read(store), added])


def write(store: Store, declared: list[dict[str, Any]]) -> None:
    """Replace the declarations of a store."""
    store.write(FILE, sealed({"declared": declared}))


def said(declared: list[dict[str, Any]], digest: str) -> str:
    """Whether the hypotheses of this digest were declared before the results, in words."""
    if not declared or declared[-1]["digest"] != digest:
        return "not declared before this analysis"
    last = declared[-1]
    when = f"when {last['finished']} of {last['planned']} cells were finished" if last["finished"] else ""
    if len(declared) == 1:
        return f"declared {when or 'before any cell was finished'}"
    times = f", the last of {len(declared) - 1} changes" if len(declared) > 2 else ""
    return f"changed {when or 'before any cell was finished'}{times}"
