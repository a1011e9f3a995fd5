"""Downloaded models on one node, within a budget of its disk.

Each model is a folder that a process holds while it uses it. One that needs room deletes what nobody holds, the oldest
first, and else waits until others are done. What a killed process had begun stays, so that its download resumes; it is the
first to go where room is needed.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from raysweep.corpora.exclusive import Hold, exclusive, try_hold
from raysweep.errors import UserError

# Seconds after which a model that waits for room looks again.
_LOOK_AGAIN = 1.0

_SIZE, _HOLD = ".size", ".hold"


class Room:
    """The folders of models under one folder, of at most `budget` bytes together."""

    def __init__(self, folder: Path, budget: int) -> None:
        self._folder, self._budget = folder, budget

    @contextmanager
    def holding(self, name: str, size: int, waiting: Callable[[str], None]) -> Iterator[Path]:
        """A folder for a model of `size` bytes, once there is room for it; it is deleted where the context ends well.

        Another process that has the same model is waited for. Raises `UserError` where there is never room.
        """
        if size > self._budget:
            raise UserError(
                f"{name} takes {size / 1e9:.3g} GB, more than the {self._budget / 1e9:.3g} GB of resources.disk: raise "
                "that, or leave the model out"
            )
        self._folder.mkdir(parents=True, exist_ok=True)
        hold = self._enter(name, size, waiting)
        try:
            yield self._folder / name
            self._delete(name)
        finally:
            hold.release()

    def used(self) -> int:
        """Bytes that are taken: what is on the disk, and what is still to come of those that are held."""
        return sum(self._taken(name) for name in self._names())

    def _enter(self, name: str, size: int, waiting: Callable[[str], None]) -> Hold:
        said = False
        while True:
            with exclusive(self._folder / "room.lock"):
                if (hold := try_hold(self._folder / f"{name}{_HOLD}")) is not None:
                    fits = False
                    try:
                        if fits := self._make_room(name, size):
                            (self._folder / f"{name}{_SIZE}").write_text(str(size), encoding="utf-8")
                            return hold
                    finally:
                        if not fits:
                            hold.release()
            if not said:
                waiting(
                    f"{name} waits until {size / 1e9:.3g} GB of the {self._budget / 1e9:.3g} GB that models may take on "
                    "this node (resources.disk) are free"
                )
                said = True
            time.sleep(_LOOK_AGAIN)

    def _make_room(self, name: str, size: int) -> bool:
        """Delete what nobody holds until `size` bytes fit beside the rest; whether they do."""
        others = [other for other in self._names() if other != name]
        used = sum(self._taken(other) for other in others)
        for other in sorted(others, key=self._changed):
            if used + size <= self._budget:
                break
            if (hold := try_hold(self._folder / f"{other}{_HOLD}")) is None:
                continue
            used -= self._taken(other)
            self._delete(other)
            hold.release()
        if used + size > self._budget:
            return False
        there = _bytes(self._folder / name)
        # Less what is still to come of the others.
        coming = sum(
            max(0, self._taken(other) - _bytes(self._folder / other)) for other in self._names() if other != name
        )
        free = shutil.disk_usage(self._folder).free - coming
        if free < size - there:
            if any(self._is_held(other) for other in self._names() if other != name):
                return False
            raise UserError(
                f"the disk of {self._folder} has {free / 1e9:.3g} GB left, and {name} needs {(size - there) / 1e9:.3g} GB: "
                "make room, or set RAYSWEEP_CACHE to another folder"
            )
        return True

    def _is_held(self, name: str) -> bool:
        if (hold := try_hold(self._folder / f"{name}{_HOLD}")) is None:
            return True
        hold.release()
        return False

    def _names(self) -> list[str]:
        return [path.name for path in self._folder.iterdir() if path.is_dir()] + [
            name
            for path in self._folder.glob(f"*{_SIZE}")
            if not (self._folder / (name := path.name.removesuffix(_SIZE))).is_dir()
        ]

    def _taken(self, name: str) -> int:
        there = _bytes(self._folder / name)
        announced = self._folder / f"{name}{_SIZE}"
        try:
            return max(there, int(announced.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return there

    def _changed(self, name: str) -> float:
        try:
            return (self._folder / f"{name}{_SIZE}").stat().st_mtime
        except OSError:
            return 0.0

    def _delete(self, name: str) -> None:
        shutil.rmtree(self._folder / name, ignore_errors=True)
        (self._folder / f"{name}{_SIZE}").unlink(missing_ok=True)


def _bytes(folder: Path) -> int:
    total = 0
    # Which, unlike pathlib's, passes over folders and files that another process deletes or renames in this moment.
    for where, _, files in os.walk(folder):
        for file in files:
            with suppress(OSError):
                total += os.stat(os.path.join(where, file)).st_size
    return total
