"""The checkpoints that a suite asks for: found once on the hub or on disk, then pinned to their commits in the store."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysweep.errors import UserError, did_you_mean
from raysweep.store import Store
from raysweep.suites import hub
from raysweep.suites.pins import read_pinned
from raysweep.suites.read import LoadedSuite
from raysweep.suites.table import PublishedModel

# Questions that the hub is asked at the same time.
_AT_ONCE = 8

Step = Callable[[str, float, float, str], None]
"""Called with what is being done, how much of it is done, how much there is, and a detail."""


@dataclass(frozen=True)
class Checkpoint:
    """A model at one point of its training."""

    model: PublishedModel
    revision: str
    step: int
    commit: str
    """Of the hub; empty of a folder."""
    folder: Path | None
    """Where it is, if it need not be downloaded."""
    size: int
    """Bytes of its files; of one on the hub those of a checkpoint of its repository."""

    @property
    def id(self) -> str:
        """What tables and messages call it; safe in a path."""
        return f"{self.model.id}@{safe(self.revision)}"

    @property
    def row(self) -> dict[str, Any]:
        """It under `schemas.MODELS`."""
        return {
            "id": self.id, "model": self.model.id, "repository": self.model.repository, "revision": self.revision,
            "commit": self.commit, "step": self.step, "bytes": self.size,
        }  # fmt: skip


def safe(revision: str) -> str:
    """A revision's name as part of a path."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", revision)


def find(
    loaded: LoadedSuite, store: Store | None, step: Step, waiting: hub.Said
) -> tuple[list[Checkpoint], dict[str, str]]:
    """The checkpoints that a suite asks for, and of each model that has none why.

    What the store has pinned is taken as it is, and the rest is asked for. A checkpoint that has moved to another commit
    since keeps the one that it was pinned to. Raises `UserError` where none is found.
    """
    pinned = read_pinned(store) if store is not None else {}
    by_place: dict[str, list[PublishedModel]] = {}
    for model in loaded.models:
        by_place.setdefault(model.repository, []).append(model)
    found: dict[str, list[Checkpoint]] = {}
    errors: dict[str, str] = {}

    def look(place: str) -> None:
        models = by_place[place]
        folder = _folder(models[0], loaded.mirror)
        names = _in_folder(folder) if folder is not None else hub.refs(place, waiting)
        size: int | None = None
        for model in models:
            of_step: dict[int, list[str]] = {}
            for name in names:
                if (number := model.step(name)) is not None:
                    of_step.setdefault(number, []).append(name)
            steps = list(of_step)
            if not steps:
                hint = did_you_mean(model.revision, names)
                errors[model.id] = (
                    f"{place} has no revision of the form {model.revision} (it has, for example, "
                    f"{', '.join(sorted(names)[:3]) or 'none'}{', ...' if len(names) > 3 else ''}){hint}"
                )
                continue
            try:
                chosen = loaded.suite.revisions.chosen(steps)
            except ValueError as error:
                errors[model.id] = f"{place}: {error}; it has {min(steps):,} to {max(steps):,}"
                continue
            of_model: list[Checkpoint] = []
            for number in chosen:
                name = of_step[number][0]
                if len(of_step[number]) > 1:
                    twice = (
                        f"{place}: {' and '.join(of_step[number][:2])} are both step {number:,}: say more in `revision`"
                    )
                    errors[model.id] = twice
                    break
                before = pinned.get(f"{model.id}@{safe(name)}")
                same = before is not None and before["commit"] and before["repository"] == place
                commit = str(before["commit"]) if before is not None and same else names[name]
                where = _place(folder, place, name, commit)
                if size is None and where is None:
                    known = next((one["bytes"] for one in pinned.values() if one["repository"] == place), None)
                    size = known or sum(one.size for one in hub.files(place, commit, waiting))
                known_size = size if where is None and size else _size(where)
                pinned_to = "" if folder is not None else commit
                of_model.append(Checkpoint(model, name, number, pinned_to, where, known_size))
            else:
                found[model.id] = of_model

    pool = ThreadPoolExecutor(_AT_ONCE)
    asked = {pool.submit(look, place): place for place in by_place}
    try:
        for done, future in enumerate(as_completed(asked), 1):
            try:
                future.result()
            except UserError as error:
                errors |= {model.id: str(error) for model in by_place[asked[future]] if model.id not in found}
            step("looking for checkpoints", done, len(asked), asked[future])
    finally:
        # At Ctrl-C whoever waits for the hub is to stop waiting.
        hub.STOP.set()
        pool.shutdown(cancel_futures=True)
        hub.STOP.clear()
    checkpoints = [one for model in loaded.models for one in found.get(model.id, [])]
    if not checkpoints:
        raise UserError(f"no model of {loaded.name} can be had: {next(iter(errors.values()))}")
    return checkpoints, errors


def digest(folder: Path) -> str:
    """SHA-256 of what a model is loaded from, of a folder on disk."""
    content = hashlib.sha256()
    for name in hub.needed(sorted(path.name for path in folder.iterdir() if path.is_file())):
        content.update(f"{name}\0".encode())
        with (folder / name).open("rb") as file:
            while part := file.read(1 << 22):
                content.update(part)
    return content.hexdigest()


def _folder(model: PublishedModel, mirror: Path | None) -> Path | None:
    """Where a model is on disk, with its checkpoints as folders in it; None where it is on the hub."""
    if model.folder is not None:
        return model.folder
    if mirror is None:
        return None
    folder = mirror / model.repository
    if not folder.is_dir():
        raise UserError(f"the mirror {mirror} has no {model.repository}")
    return folder


def _in_folder(folder: Path) -> dict[str, str]:
    """Checkpoint -> nothing: a folder has no commits. The folder itself is `main` where it is a model."""
    names = {path.name: "" for path in folder.iterdir() if (path / "config.json").is_file()}
    return names | ({"main": ""} if (folder / "config.json").is_file() else {})


def _place(folder: Path | None, repository: str, revision: str, commit: str) -> Path | None:
    """Where a checkpoint is, if it need not be downloaded."""
    if folder is None:
        return hub.cached_folder(repository, commit) if hub.offline() else None
    inside = folder / revision
    return inside if inside.is_dir() else folder


def _size(folder: Path | None) -> int:
    return 0 if folder is None else sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
