"""The Hugging Face hub, asked patiently: which checkpoints there are, which files they have, and the files themselves.

When the hub limits rates it is waited for, longer each time and without an end. When it cannot be reached, or is at fault,
it is waited for some minutes. Everything else is one clear line. Only what a model is loaded from is downloaded, never code.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from raysweep.errors import UserError, first_line

Said = Callable[[str], None]
"""Called with what is being waited for."""

_T = TypeVar("_T")

STOP = threading.Event()
"""Set where nobody is to wait any longer."""

LONGEST_PAUSE = 300.0
UNREACHABLE = 600.0
"""Seconds for which a hub that cannot be reached, or is at fault, is waited for."""

_TIMEOUT = 30.0

# What a model and its tokenizer are loaded from. Of the weights one form is taken, in this order.
_SMALL = ("config.json", "generation_config.json", "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json",
          "added_tokens.json", "*.model", "spiece*")  # fmt: skip
_WEIGHTS = (
    ("model.safetensors",),
    ("model.safetensors.index.json", "model-*-of-*.safetensors"),
    ("pytorch_model.bin",),
    ("pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin"),
)
_NEVER = ("*.py", "*.pkl", "*.pickle")

# A file that comes out damaged is downloaded again so often.
_TRIES = 3

_PIECE = 1 << 20


@dataclass(frozen=True)
class RemoteFile:
    """A file of a checkpoint, with what it is checked against."""

    name: str
    size: int
    sha256: str | None
    """None where the hub has only its git hash, as of small files."""
    git_hash: str


def refs(repository: str, waiting: Said) -> dict[str, str]:
    """The checkpoints of a repository: the name of each branch and tag -> its commit."""
    if offline():
        return _cached_refs(repository)
    from huggingface_hub import HfApi, configure_http_backend  # It takes a moment.

    configure_http_backend(_impatient)  # Of this question huggingface_hub has no limit of its own.
    found = patiently(repository, None, lambda: HfApi().list_repo_refs(repository), waiting)
    return {ref.name: ref.target_commit for ref in [*found.tags, *found.branches]}


def _impatient() -> Any:
    """A session of requests that waits for no answer without an end."""
    import requests

    class Impatient(requests.Session):
        def request(self, *given: Any, **named: Any) -> requests.Response:
            return super().request(*given, **named | {"timeout": named.get("timeout") or _TIMEOUT})

    return Impatient()


def files(repository: str, commit: str, waiting: Said) -> list[RemoteFile]:
    """What a checkpoint is loaded from. Raises `UserError` where it has no weights."""
    from huggingface_hub import HfApi

    info = patiently(
        repository,
        commit,
        lambda: HfApi().model_info(repository, revision=commit, files_metadata=True, timeout=_TIMEOUT),
        waiting,
    )
    there = {one.rfilename: one for one in info.siblings or []}
    names = needed(list(there))
    if not any(matches(name, group) for name in names for group in _WEIGHTS):
        raise UserError(f"{repository} at {commit[:12]} has no weights that transformers would load")
    return [_remote(there[name]) for name in names]


def _remote(file: Any) -> RemoteFile:
    """A file as the hub says of it."""
    return RemoteFile(file.rfilename, file.size or 0, file.lfs.sha256 if file.lfs else None, file.blob_id or "")


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def needed(names: list[str]) -> list[str]:
    """Of a checkpoint's files those that it is loaded from."""
    weights: list[str] = next(
        (found for group in _WEIGHTS if (found := [name for name in names if matches(name, group)])), []
    )
    # A whole file beside the parts: transformers takes the whole.
    return [name for name in names if matches(name, _SMALL) and not matches(name, _NEVER)] + weights


def download(repository: str, commit: str, wanted: list[RemoteFile], folder: Path, waiting: Said) -> None:
    """Have the files in a folder, each compared with what the hub says of it. What is there already stays, parts too.

    Raises `UserError` where it cannot be had.
    """
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    # A download resumes where a whole piece ended; and the hub's other protocol, xet, keeps no part of a file at all.
    constants.DOWNLOAD_CHUNK_SIZE, constants.HF_HUB_DISABLE_XET = _PIECE, True
    folder.mkdir(parents=True, exist_ok=True)
    for one in wanted:
        path = folder / one.name
        if path.exists() and is_whole(path, one):
            continue
        for last in (*[False] * (_TRIES - 1), True):
            patiently(
                repository,
                commit,
                partial(hf_hub_download, repository, one.name, revision=commit, local_dir=folder),
                waiting,
            )
            if is_whole(path, one):
                break
            path.unlink()
            waiting(f"{repository}/{one.name} came damaged: downloading it again")
            if last:
                raise UserError(
                    f"{repository} at {commit[:12]}: {one.name} came damaged {_TRIES} times (its checksum is another than "
                    "the hub says): try again later"
                )


def is_whole(path: Path, file: RemoteFile) -> bool:
    """Whether a file is what the hub says of it."""
    if path.stat().st_size != file.size:
        return False
    content = hashlib.sha256() if file.sha256 else hashlib.sha1(usedforsecurity=False)
    if not file.sha256:
        if not file.git_hash:
            return True
        content.update(f"blob {file.size}\0".encode())
    with path.open("rb") as read:
        while part := read.read(1 << 22):
            content.update(part)
    return content.hexdigest() == (file.sha256 or file.git_hash)


def offline() -> bool:
    """Whether HF_HUB_OFFLINE keeps this process from the network."""
    return os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE")


def cached_folder(repository: str, commit: str) -> Path:
    """Where the hub's cache on this machine has a checkpoint. Raises `UserError` where it does not have it."""
    folder = _cached(repository) / "snapshots" / commit
    if not folder.is_dir():
        raise UserError(
            f"{repository} at {commit[:12]} is not in the hub's cache ({folder.parent}), and HF_HUB_OFFLINE keeps it from "
            "being downloaded: unset that, or download it first"
        )
    return folder


def _cached(repository: str) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model")


def _cached_refs(repository: str) -> dict[str, str]:
    folder = _cached(repository) / "refs"
    if not folder.is_dir():
        raise UserError(
            f"{repository} is not in the hub's cache ({folder.parent}), and HF_HUB_OFFLINE keeps it from being asked for: "
            "unset that, or set `mirror` to a folder that has it"
        )
    names = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_text(encoding="utf-8").strip() for path in names}


def patiently(repository: str, revision: str | None, ask: Callable[[], _T], waiting: Said) -> _T:
    """What the hub answers, asked again where it limits rates or is away. Raises `UserError`."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    pause = 1.0
    away_since: float | None = None
    while True:
        try:
            return ask()
        except GatedRepoError:
            raise UserError(
                f"{repository} is gated: accept its terms at https://huggingface.co/{repository}, and set HF_TOKEN to a "
                "token that has access to it, on every node"
            ) from None
        except RevisionNotFoundError:
            raise UserError(f"{repository} on the hub has no revision {revision}") from None
        except (RepositoryNotFoundError, HFValidationError):
            raise UserError(f"{repository} is not on the hub (or is private: set HF_TOKEN)") from None
        except (HfHubHTTPError, OSError, RuntimeError, ValueError) as error:
            status, after = _answer(error)
            if status is not None and status not in (408, 429) and status < 500:
                raise UserError(f"{repository}: the hub refuses ({status}): {first_line(error)}") from None
            if not _transient(error, status):
                raise
            if status == 429:
                away_since = None
                why = "the hub limits how often it may be asked"
            else:
                away_since = away_since or time.monotonic()
                why = "the hub cannot be reached" if status is None else f"the hub is at fault ({status})"
                if time.monotonic() - away_since > UNREACHABLE:
                    raise UserError(
                        f"{repository}: {why}, for {UNREACHABLE / 60:.0f} minutes ({first_line(error)}): run the same "
                        "command again when it is back; nothing that was measured is lost"
                    ) from None
            seconds = after if after is not None else pause
            waiting(f"{repository}: {why}; asking again in {seconds:.0f} s")
            if STOP.wait(seconds):
                raise UserError(f"{repository}: {why}, and the search for it was stopped") from None
            pause = min(2 * pause, LONGEST_PAUSE)


def _answer(error: BaseException) -> tuple[int | None, float | None]:
    """The status of the hub's answer, if there was one, and the seconds after which it may be asked again."""
    response = getattr(error, "response", None)
    inner = error.__cause__ if response is None else None
    if inner is not None and (found := _answer(inner))[0] is not None:
        return found
    if response is None:
        return None, None
    # `RateLimit: "resolvers";r=0;t=30` of today's hub: nothing is left, for 30 seconds.
    limit = re.search(r";\s*t=(\d+)", response.headers.get("RateLimit", ""))
    after = response.headers.get("Retry-After", "") or (limit[1] if limit else "")
    return int(response.status_code), min(float(after), LONGEST_PAUSE) if after.isdecimal() else None


def _transient(error: BaseException, status: int | None) -> bool:
    """Whether an error may be over the next time: the network's, or a download that broke off."""
    import requests

    if status is not None or isinstance(error, requests.RequestException | ConnectionError | TimeoutError):
        return True
    cause = error.__cause__
    if cause is not None and _transient(cause, None):
        return True
    # What huggingface_hub says of a download that ended early, and where it could ask for nothing.
    return "Consistency check failed" in str(error) or "LocalEntryNotFound" in type(error).__name__
