"""A built corpus, handed from the driver to the nodes of a cluster through the store.

The driver puts the folder of the corpus under `<store>/corpora/<fingerprint>/`, the manifest last. A node that has not
built the same corpus itself copies it into its cache once, and each file is checked against the manifest. Many files are
copied at the same time, since a bucket limits what a single reader gets.
"""

from __future__ import annotations

import json
import shutil
import socket
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from raysweep.cache import cache, unwritable
from raysweep.corpora.build import folders
from raysweep.corpora.exclusive import exclusive
from raysweep.corpora.progress import CorpusProgress, Report
from raysweep.corpora.tokenized import TokenizedCorpus
from raysweep.errors import UserError
from raysweep.store import Store

MANIFEST = "manifest.json"

AT_ONCE = 32
"""Files that are copied at the same time."""


def upload(corpus: TokenizedCorpus, store: Store, report: Report) -> None:
    """Put a corpus into the store, unless it is there; `report` is told how far that is."""
    there = directory(corpus.fingerprint)
    if store.read(f"{there}/{MANIFEST}") is not None:
        return
    files = list(corpus.files())

    def put(file: str) -> None:
        store.put_file(corpus.folder / file, f"{there}/{file}")

    for done in _at_once(put, files):
        report(CorpusProgress(corpus.folder.name, "copy into the store", done, len(files) + 1))
    put(MANIFEST)
    report(CorpusProgress(corpus.folder.name, "copy into the store", len(files) + 1, len(files) + 1))


def _at_once(copy: Callable[[str], None], files: list[str]) -> Iterator[int]:
    """Copy every file, many at a time: how many are done. An error, or Ctrl-C, begins no further one."""
    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        yield 0
        yield from (done for done, _ in enumerate(pool.map(copy, files), 1))
    finally:
        pool.shutdown(cancel_futures=True)


def obtain(name: str, fingerprint: str, store: Store) -> TokenizedCorpus:
    """The corpus, or text, of that name and fingerprint on this node: as built, as copied before, or copied from the store.

    What it was built of is not looked at: that may have changed or gone since. Raises `UserError` where it cannot be had.
    """
    for built in folders(name):
        if _fingerprint(built) == fingerprint:
            return TokenizedCorpus(built)
    folder = _copied(name, fingerprint)
    try:
        with exclusive(Path(f"{folder}.lock")):
            # Copied before; in a power cut its last files may have come to nothing.
            with suppress(UserError):
                if _fingerprint(folder) == fingerprint:
                    return TokenizedCorpus(folder)
            _copy(name, fingerprint, store, folder)
    except OSError as error:
        raise unwritable(error) from None
    return TokenizedCorpus(folder)


def lack_of_room(corpora: Iterable[tuple[str, str, int]]) -> str:
    """Why this node cannot hold corpora, each with its fingerprint and bytes, which it would copy; empty where it can."""
    missing = {
        _copied(name, fingerprint): size
        for name, fingerprint, size in corpora
        if all(_fingerprint(built) != fingerprint for built in (*folders(name), _copied(name, fingerprint)))
    }
    there = cache()
    while not there.exists() and there != there.parent:
        there = there.parent
    # What killed copies have left is deleted before the next one.
    left = 0
    for file in (file for folder in missing for copy in _left(folder) for file in copy.rglob("*")):
        with suppress(OSError):  # Another process deletes it now.
            left += file.stat().st_size
    free, needed = shutil.disk_usage(there).free + left, sum(missing.values())
    if free >= needed:
        return ""
    return (
        f"{socket.gethostname()} has {_gigabytes(free)} free in {cache()}, and the text that its cells read takes "
        f"{_gigabytes(needed)}: make room there, or set RAYSWEEP_CACHE to a larger disk"
    )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.3g} GB"


def _copied(name: str, fingerprint: str) -> Path:
    """Where a node keeps its copy."""
    return cache() / "corpora" / f"{name}-{fingerprint}"


def _left(folder: Path) -> list[Path]:
    """What copies of it that were killed have left."""
    return list(folder.parent.glob(f"{folder.name}.*.unfinished"))


def directory(fingerprint: str) -> str:
    """Where the store has the corpus."""
    return f"corpora/{fingerprint}"


def _fingerprint(folder: Path) -> str | None:
    try:
        return str(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _copy(name: str, fingerprint: str, store: Store, folder: Path) -> None:
    there = directory(fingerprint)
    if store.read(f"{there}/{MANIFEST}") is None:
        raise UserError(
            f"{socket.gethostname()} does not have the corpus {name} that the sweep was started with "
            f"({fingerprint}) in {cache()}, nor does the store: start the sweep again to upload it"
        )
    unfinished = folder.with_name(f"{folder.name}.{uuid.uuid4().hex[:8]}.unfinished")
    try:
        for other in (folder, *_left(folder)):
            shutil.rmtree(other, ignore_errors=True)
        files = {file: size for file, size in store.tree(there).items() if not file.endswith(".unfinished")}
        if lack := lack_of_room([(name, fingerprint, sum(files.values()))]):
            raise UserError(lack)
        for file in files:
            if not (unfinished / file).resolve().is_relative_to(unfinished.resolve()):
                raise UserError(f"{store.location}/{there}/{file} is not a file of a corpus")

        def get(file: str) -> None:
            to = unfinished / file
            to.parent.mkdir(parents=True, exist_ok=True)
            store.get_file(f"{there}/{file}", to)

        for _ in _at_once(get, list(files)):
            pass
        try:
            TokenizedCorpus(unfinished)
        except UserError as error:
            file = str(error).partition(" is ")[0].removeprefix(f"{unfinished}/")
            raise UserError(
                f"{store.location}/{there}/{file} is damaged or missing: delete {store.location}/{there} and run again "
                "to upload the corpus again"
            ) from None
        unfinished.rename(folder)
    except OSError as error:
        if _fingerprint(folder) == fingerprint:
            return  # Another node was faster, in a cache that several share.
        raise unwritable(error) from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
