"""The files that a source consists of, and how they are opened.

A data set is resolved by `datasets`, at a commit. Where the folder RAYSWEEP_MIRROR has a copy as `<owner>/<name>`, that is
read instead of the hub, in the same way. A gated one needs HF_TOKEN, or `hf auth login`, and its terms accepted on its page.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from raysweep.corpora import own_source
from raysweep.corpora.files import READABLE, SUFFIXES
from raysweep.corpora.folder import listing, not_read
from raysweep.corpora.progress import Report, ignore
from raysweep.errors import UserError
from raysweep.space.corpus import Source
from raysweep.space.data_sets import DATA_SETS, as_it_is

MIRROR = "RAYSWEEP_MIRROR"

# Every file is a task and at least one token file.
MOST_FILES = 100_000


@dataclass(frozen=True)
class File:
    """One file of a source, by its name there. Its path is local, or `hf://datasets/...` on the hub."""

    name: str
    path: str
    size: int


@dataclass(frozen=True)
class Resolved:
    """A source with everything that it left open filled in."""

    name: str
    text: str
    domain: str | None
    domain_of: Callable[[str, str], str]
    files: list[File] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    """Files that lie in its folder and are not read, with the reason."""


def signature(source: Source) -> dict[str, Any]:
    """What decides a source's documents, without asking the hub: a commit, or the files of a folder.

    Raises `UserError` where the folder is not on this machine.
    """
    if source.function is not None:
        return {"function": source.function, "version": own_source.version(source.function)}
    repository, revision = _repository(source)
    root = _root(source)
    if root is None:
        return {"hub": repository, "revision": revision, "files": list(_patterns(source))}
    with reading(source.name, str(root)):
        files, _ = _listed(source, root)
        listed = [[file.name, file.size, os.stat(file.path).st_mtime_ns] for file in files]
    return {"name": source.name, "revision": revision, "files": sorted(listed)}


def resolve(source: Source, report: Report = ignore) -> Resolved:
    """The files of a source, in order; what a function yields is written first.

    Raises `UserError` where there are none, or the hub refuses them.
    """
    data_set = DATA_SETS[source.preset] if source.preset else None
    text = source.text or (data_set.text if data_set else "text")
    domain = source.domain or (data_set.domain if data_set else None)
    patterns = _patterns(source)
    repository, revision = _repository(source)
    root = own_source.written(source.function, report) if source.function is not None else _root(source)
    left_out: dict[str, str] = {}
    if repository is None:
        assert root is not None
        with reading(source.name, str(root)):
            files, left_out = _listed(source, root)
    else:
        files = _data_files(source.name, repository, revision, root, patterns)
        readable = READABLE if any(pattern.endswith(".json") for pattern in source.files) else SUFFIXES
        files = [file for file in files if file.name.endswith(readable)]
        if source.preset is None and not source.files:
            read = {file.name for file in files}
            names = _every_name(source.name, repository, revision, root)
            left_out = {name: not_read(name) for name in sorted(names) if name not in read}
    if not files:
        raise UserError(
            f"{source.name} has no file to read: none of {', '.join(patterns)} in {root or repository}; "
            f"files may end in {', '.join(SUFFIXES)}"
        )
    if len(files) > MOST_FILES:
        raise UserError(
            f"{source.name} has {len(files):,} files; a source may have at most {MOST_FILES:,}: merge documents into "
            "the lines of .jsonl files"
        )
    domain_of = data_set.domain_of if data_set else as_it_is
    return Resolved(source.name, text, domain, domain_of, sorted(files, key=lambda f: f.name), left_out)


def _patterns(source: Source) -> tuple[str, ...]:
    """Which files of a source are its documents."""
    if source.files:
        return source.files
    if source.preset is None:
        # Text files of a repository are its licence and the like.
        return tuple(f"**/*{suffix}" for suffix in SUFFIXES if source.hub is None or suffix != ".txt")
    splits = DATA_SETS[source.preset].splits
    if source.split not in splits:
        raise UserError(f"{source.name} has no split {source.split!r}; it has {', '.join(splits)}")
    return splits[source.split]


@contextmanager
def reading(source: str, place: str) -> Iterator[None]:
    """Turns what goes wrong with a file or the hub into one line."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, NotImplementedError) as error:  # The hub's are of the first two kinds.
        said = " ".join(str(getattr(error, "strerror", None) or error).split())[:300]
        raise UserError(f"{source}: {place} cannot be read: {said}") from None


def _repository(source: Source) -> tuple[str | None, str | None]:
    if source.preset:
        data_set = DATA_SETS[source.preset]
        return data_set.repository, source.revision or data_set.revision
    return source.hub, source.revision


def _root(source: Source) -> Path | None:
    """The folder where the source is on this machine; None where it is on the hub."""
    with reading(source.name, str(source.folder or os.environ.get(MIRROR))):
        if source.folder is not None:
            root = Path(source.folder).expanduser().absolute()
            if not root.is_dir():
                raise UserError(f"{root}: no such folder, for the documents of {source.name}")
            return root
        repository, _ = _repository(source)
        copy = Path(os.environ.get(MIRROR) or "").expanduser().absolute() / str(repository)
        return copy if os.environ.get(MIRROR) and copy.is_dir() else None


def _listed(source: Source, root: Path) -> tuple[list[File], dict[str, str]]:
    """The files of a source that is a folder, and those that are left out with the reason."""
    # A folder of one's own is read whole, unless its source says which files.
    found = listing(root, () if source.preset is None and not source.files else _patterns(source))
    files = [File(name, str(path), path.stat().st_size) for name, path in found.files.items()]
    return files, {} if source.preset else found.left_out


def _data_files(
    name: str, repository: str, revision: str | None, root: Path | None, patterns: tuple[str, ...]
) -> list[File]:
    """The files as `datasets` resolves them, from the hub or from a copy of it."""
    from datasets import load_dataset_builder
    from huggingface_hub import HfFileSystem
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # It tells of each of its attempts.

    try:
        builder = load_dataset_builder(
            str(root) if root else repository,
            data_files={"train": list(patterns)},
            revision=None if root else revision,
        )
        paths = [str(path) for path in builder.config.data_files["train"]]
        if root:
            return [File(os.path.relpath(path, root), path, os.path.getsize(path)) for path in paths]
        hub = HfFileSystem()
        return [File(path.partition("@")[2].partition("/")[2], path, int(hub.info(path)["size"])) for path in paths]
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise _refused(name, repository, revision, root, error) from None


def _every_name(name: str, repository: str, revision: str | None, root: Path | None) -> list[str]:
    """The names of all files of a data set of the hub."""
    if root is not None:
        return [str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()]
    from huggingface_hub import HfFileSystem

    with reading(name, repository):
        paths = HfFileSystem().find(f"datasets/{repository}@{revision}")
    return [str(path).partition("@")[2].partition("/")[2] for path in paths]


def _refused(name: str, repository: str, revision: str | None, root: Path | None, error: BaseException) -> UserError:
    """One line for what the hub, or its libraries, said."""
    said = " ".join(str(error).split())
    page = f"https://huggingface.co/datasets/{repository}"
    if root is not None:
        return UserError(f"{name}: {root} does not hold the files of {repository} ({said[:200]})")
    if "gated" in said.lower():
        return UserError(
            f"{name} is gated: accept its terms at {page}, then set HF_TOKEN to a token that has access to it"
        )
    if "Revision" in said or "revision" in said:
        return UserError(f"{name}: {page} has no revision {revision}")
    if "doesn't exist" in said:
        return UserError(
            f"{name}: there is no data set {repository} on the hub, or it is private and HF_TOKEN is not set"
        )
    if "Unable to find" in said or "No (supported) data files" in said:
        return UserError(f"{name}: {page} at {revision} has none of the files asked for ({said[:200]})")
    return UserError(
        f"{name}: the hub cannot be reached ({said[:160]}): check the network, or set {MIRROR} to a folder "
        f"that holds a copy as {repository}"
    )


@contextmanager
def opened(file: File, stream: bool) -> Iterator[BinaryIO]:
    """The bytes of a file; one of the hub is downloaded into the hub's own cache first, unless it is to be streamed."""
    if not file.path.startswith("hf://"):
        with open(file.path, "rb") as content:
            yield content
        return
    from huggingface_hub import HfFileSystem, hf_hub_download

    hub = HfFileSystem()
    if stream:
        with hub.open(file.path, "rb") as content:
            yield content
        return
    place = hub.resolve_path(file.path)
    local = hf_hub_download(place.repo_id, place.path_in_repo, repo_type="dataset", revision=place.revision)
    with open(local, "rb") as content:
        yield content
