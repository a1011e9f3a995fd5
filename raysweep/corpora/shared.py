"""A built corpus, handed from the driver to the nodes of a cluster through the store.

The driver puts the folder of the corpus under `<store>/corpora/<fingerprint>/`, the manifest last. A node that has not
built the same corpus itself copies it into its cache once, and opening it checks every file against the manifest.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import uuid
from contextlib import suppress
from pathlib import Path

from raysweep.cache import cache, unwritable
from raysweep.corpora.build import folders
from raysweep.corpora.exclusive import exclusive
from raysweep.corpora.progress import CorpusProgress, Report
from raysweep.corpora.tokenized import TokenizedCorpus
from raysweep.errors import UserError
from raysweep.space.corpus import Corpus
from raysweep.store import Store

MANIFEST = "manifest.json"


def upload(corpus: TokenizedCorpus, store: Store, report: Report) -> None:
    """Put a corpus into the store, unless it is there; `report` is told how far that is."""
    there = directory(corpus.fingerprint)
    if store.read(f"{there}/{MANIFEST}") is not None:
        return
    files = [*corpus.files(), MANIFEST]
    for done, file in enumerate(files):
        report(CorpusProgress(corpus.folder.name, "copy into the store", done, len(files)))
        store.put_file(corpus.folder / file, f"{there}/{file}")
    report(CorpusProgress(corpus.folder.name, "copy into the store", len(files), len(files)))


def obtain(corpus: Corpus, fingerprint: str, store: Store) -> TokenizedCorpus:
    """The corpus of that fingerprint on this node: as built here, as copied before, or copied from the store now.

    What it was built of is not looked at: that may have changed or gone since. Raises `UserError` where it cannot be had.
    """
    for built in folders(corpus.name):
        if _fingerprint(built) == fingerprint:
            return TokenizedCorpus(built)
    folder = cache() / "corpora" / f"{corpus.name}-{fingerprint}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(Path(f"{folder}.lock")):
        # Copied before; in a power cut its last files may have come to nothing.
        with suppress(UserError):
            if _fingerprint(folder) == fingerprint:
                return TokenizedCorpus(folder)
        _copy(corpus, fingerprint, store, folder)
    return TokenizedCorpus(folder)


def directory(fingerprint: str) -> str:
    """Where the store has the corpus."""
    return f"corpora/{fingerprint}"


def _fingerprint(folder: Path) -> str | None:
    try:
        return str(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _copy(corpus: Corpus, fingerprint: str, store: Store, folder: Path) -> None:
    there = directory(fingerprint)
    if store.read(f"{there}/{MANIFEST}") is None:
        raise UserError(
            f"{socket.gethostname()} does not have the corpus {corpus.name} that the sweep was started with "
            f"({fingerprint}) in {cache()}, nor does the store: start the sweep again to upload it"
        )
    unfinished = folder.with_name(f"{folder.name}.{uuid.uuid4().hex[:8]}.unfinished")
    try:
        shutil.rmtree(folder, ignore_errors=True)
        files = {file: size for file, size in store.tree(there).items() if not file.endswith(".unfinished")}
        if shutil.disk_usage(folder.parent).free < sum(files.values()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        for file in files:
            to = unfinished / file
            if not to.resolve().is_relative_to(unfinished.resolve()):
                raise UserError(f"{store.location}/{there}/{file} is not a file of a corpus")
            to.parent.mkdir(parents=True, exist_ok=True)
            store.get_file(f"{there}/{file}", to)
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
