"""A hub of models on localhost: what `huggingface_hub` asks of the real one, answered out of a folder, with faults to order.

`<folder>/<owner>/<name>/<revision>/<files>` is served; HF_ENDPOINT is `Hub.address`, and must be set before huggingface_hub
is imported. Status codes, headers and error codes are those that huggingface_hub 0.36 tells the real hub's answers apart by.
There are no xet headers, so files come by plain HTTP.
"""

import hashlib
import json
import re
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

# What the hub's own .gitattributes keeps in LFS; the rest are blobs of git.
LFS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".msgpack", ".h5", ".npz", ".parquet", ".model")
LFS_BYTES = 10_000_000
POINTER_BYTES = 134
PIECE = 64 * 1024


class Hub:
    """The server, while it is a context manager's; its faults can be ordered from any thread as it runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: list[tuple[str, str, int]] = []
        """(method, path without its query, status), in the order of the answers."""
        self.bytes_sent = 0
        """Of the contents of files, as far as the network took them."""
        self.down = False
        """Whether everything is answered 503."""
        self._rate: float | None = None
        self._limits: list[tuple[str, dict[str, str]]] = []
        self._cuts: list[int] = []
        self._corrupt: list[tuple[str, str]] = []
        self._gates: dict[str, str] = {}
        self._hashes: dict[tuple[Path, int, int], tuple[str, str]] = {}
        self._lock = threading.RLock()
        self._over = False
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))

    @property
    def address(self) -> str:
        """To be HF_ENDPOINT."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "Hub":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # A connection that a client keeps open gets no further answers either.
        self._over = True
        self._server.shutdown()
        self._server.server_close()

    def limit(self, times: int, retry_after: float | None, header: str = "Retry-After", method: str = "") -> None:
        """Answer the next `times` requests (of a method) 429, with `retry_after` seconds in a header, or without where None.

        The header `RateLimit` is written as the real hub's: https://huggingface.co/docs/hub/rate-limits.
        """
        headers = {}
        if retry_after is not None:
            headers = {header: f'"resolvers";r=0;t={retry_after:g}' if header == "RateLimit" else f"{retry_after:g}"}
        with self._lock:
            self._limits += [(method, headers)] * times

    def cut(self, times: int, after: int) -> None:
        """Close the connection of the next `times` GETs of files after so many bytes of the body; shorter bodies pass."""
        with self._lock:
            self._cuts += [after] * times

    def corrupt(self, repository: str, file: str, times: int = 1) -> None:
        """Serve wrong bytes of the right length for the next GETs of a file, at any revision."""
        with self._lock:
            self._corrupt += [(repository, file)] * times

    def gate(self, repository: str, token: str) -> None:
        """Give its files to nobody without the token; what it has is public, as on the real hub."""
        with self._lock:
            self._gates[repository] = token

    def slow(self, bytes_per_second: float | None) -> None:
        """Send every file at this rate, whose pieces are a twentieth of a second's, or a byte: 0.01 stalls. None ends it."""
        self._rate = bytes_per_second

    def commit(self, repository: str, revision: str) -> str:
        """The commit of a revision, which is a hash of its files."""
        return self._commit(self.folder / repository / revision)

    def _commit(self, folder: Path) -> str:
        whole = hashlib.sha1()
        for file in _files(folder):
            whole.update(f"{file.relative_to(folder)} {self._hashes_of(file)[1]}\n".encode())
        return whole.hexdigest()

    def _hashes_of(self, file: Path) -> tuple[str, str]:
        """Of a file: git's own hash and SHA-256."""
        status = file.stat()
        key = (file, status.st_size, status.st_mtime_ns)
        if key not in self._hashes:
            content = file.read_bytes()
            blob = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
            self._hashes[key] = (blob, hashlib.sha256(content).hexdigest())
        return self._hashes[key]

    def _next_limit(self, method: str) -> dict[str, str] | None:
        """The headers of a 429, where this request is to have one."""
        with self._lock:
            for index, (only, _) in enumerate(self._limits):
                if only in ("", method):
                    return self._limits.pop(index)[1]
            return None

    def _next_cut(self, length: int) -> int | None:
        with self._lock:
            return self._cuts.pop(0) if self._cuts and self._cuts[0] < length else None

    def _is_corrupt(self, repository: str, file: str) -> bool:
        with self._lock:
            if (repository, file) in self._corrupt:
                self._corrupt.remove((repository, file))
                return True
            return False

    def _note(self, method: str, path: str, status: int) -> None:
        with self._lock:
            self.requests.append((method, path, status))

    def _sent(self, number: int) -> None:
        with self._lock:
            self.bytes_sent += number


class _Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is nothing to speak of."""


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        with suppress(ConnectionError):
            self._answer()

    def do_HEAD(self) -> None:
        with suppress(ConnectionError):
            self._answer()

    def _answer(self) -> None:
        if self.hub._over:
            self.close_connection = True
            return
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if self.hub.down:
            self._say(503, {"error": "Service Unavailable"})
        elif (headers := self.hub._next_limit(self.command)) is not None:
            self._say(429, {"error": "Too Many Requests"}, headers)
        elif parts[:2] == ["api", "models"] and len(parts) >= 4:
            self._api("/".join(parts[2:4]), parts[4:])
        elif len(parts) >= 5 and parts[2] == "resolve":
            self._file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            self._say(404, {"error": "Sorry, we can't find the page you are looking for."})

    def _api(self, repository: str, rest: list[str]) -> None:
        """`/api/models/<repository>`, and `/revision/<revision>`, `/tree/<revision>[/<folder>]` or `/refs` of it."""
        root = self.hub.folder / repository
        if not root.is_dir():
            self._no_repository()
        elif rest == ["refs"]:
            branches = [
                {"name": path.name, "ref": f"refs/heads/{path.name}", "targetCommit": self.hub._commit(path)}
                for path in _revisions(root)
            ]
            self._say(200, {"branches": branches, "converts": [], "tags": []})
        elif not rest or (rest[0] in ("revision", "tree") and len(rest) > 1):
            revision = rest[1] if rest else "main"
            folder = self._revision(root, revision)
            if folder is None:
                self._no_revision(revision)
            elif rest and rest[0] == "tree":
                self._tree(folder, "/".join(rest[2:]))
            else:
                self._information(repository, folder)
        else:
            self._say(404, {"error": "Sorry, we can't find the page you are looking for."})

    def _information(self, repository: str, folder: Path) -> None:
        blobs = "blobs=true" in self.path.lower()
        siblings = []
        for file in _files(folder):
            sibling: dict[str, Any] = {"rfilename": str(file.relative_to(folder))}
            if blobs:
                sibling |= self._entry(file, "blobId")
            siblings.append(sibling)
        self._say(
            200,
            {"_id": "0" * 24, "id": repository, "modelId": repository, "author": repository.split("/")[0],
             "sha": self.hub._commit(folder), "private": False, "disabled": False,
             "gated": "manual" if repository in self.hub._gates else False,
             "tags": [], "downloads": 0, "likes": 0, "siblings": siblings},
        )  # fmt: skip

    def _tree(self, folder: Path, under: str) -> None:
        """Every file below a folder, however deep: what transformers looks for chat templates with."""
        if not (folder / under).is_dir():
            return self._no_entry(self.hub._commit(folder))
        files = _files(folder / under)
        entries = [
            {"type": "file", "path": str(file.relative_to(folder)), **self._entry(file, "oid")} for file in files
        ]
        return self._say(200, entries)

    def _entry(self, file: Path, name: str) -> dict[str, Any]:
        """Size and hash of a file, and, of one in LFS, the hash of what its pointer points to."""
        blob, sha256 = self.hub._hashes_of(file)
        size = file.stat().st_size
        entry: dict[str, Any] = {"size": size, name: blob}
        if _in_lfs(file):
            entry["lfs"] = {"sha256": sha256, "oid": sha256, "size": size, "pointerSize": POINTER_BYTES}
        return entry

    def _file(self, repository: str, revision: str, name: str) -> None:
        root = self.hub.folder / repository
        if not root.is_dir():
            return self._no_repository()
        token = self.hub._gates.get(repository)
        if token is not None and self.headers.get("Authorization") != f"Bearer {token}":
            return self._gated(repository)
        folder = self._revision(root, revision)
        if folder is None:
            return self._no_revision(revision)
        file = folder / name
        if ".." in Path(name).parts or not file.is_file():
            return self._no_entry(self.hub._commit(folder))
        return self._content(repository, folder, file, name)

    def _content(self, repository: str, folder: Path, file: Path, name: str) -> None:
        content = file.read_bytes()
        blob, sha256 = self.hub._hashes_of(file)
        headers = {"X-Repo-Commit": self.hub._commit(folder), "Accept-Ranges": "bytes", "ETag": f'"{blob}"'}
        if _in_lfs(file):
            headers |= {"ETag": f'"{sha256}"', "X-Linked-ETag": f'"{sha256}"', "X-Linked-Size": str(len(content))}
        start, end, status = 0, len(content), 200
        if wanted := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
            first, last = wanted.groups()
            if first:
                start, end = int(first), min(int(last) + 1, len(content)) if last else len(content)
            else:
                start = max(0, len(content) - int(last or 0))
            if start >= end:
                return self._say(416, {"error": "Range Not Satisfiable"}, {"Content-Range": f"bytes */{len(content)}"})
            status = 206
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
        body = content[start:end]
        if self.command == "GET" and self.hub._is_corrupt(repository, name):
            body = bytes(byte ^ 0xFF for byte in body)
        self.hub._note(self.command, self._path, status)
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            after = self.hub._next_cut(len(body))
            if after is not None:
                self.close_connection = True
            self._send(body[:after])
        return None

    def _send(self, body: bytes) -> None:
        """Piece by piece, at the rate that was ordered."""
        start = 0
        while start < len(body) and not self.hub._over:
            rate = self.hub._rate
            piece = body[start : start + (PIECE if rate is None else max(1, int(rate / 20)))]
            self.wfile.write(piece)
            self.hub._sent(len(piece))
            start += len(piece)
            if rate is not None and start < len(body):
                due = time.monotonic() + len(piece) / rate
                while (left := due - time.monotonic()) > 0 and self.hub._rate == rate and not self.hub._over:
                    time.sleep(min(left, 0.05))

    def _revision(self, root: Path, revision: str) -> Path | None:
        """The folder of a revision, by its name or its commit."""
        revisions = _revisions(root)
        named = [folder for folder in revisions if folder.name == revision]
        if not named and re.fullmatch(r"[0-9a-f]{40}", revision):
            named = [folder for folder in revisions if self.hub._commit(folder) == revision]
        return named[0] if named else None

    def _no_repository(self) -> None:
        """Nobody without a token is told whether there is one.

        The real hub leaves the code out at 401, which huggingface_hub then takes for a missing repository only at an https
        address (its REPO_API_REGEX); here the code makes it the same exception.
        """
        if "Authorization" in self.headers:
            return self._refuse(404, "RepoNotFound", "Repository not found")
        return self._refuse(401, "RepoNotFound", "Invalid username or password.")

    def _no_revision(self, revision: str) -> None:
        self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")

    def _no_entry(self, commit: str) -> None:
        self._refuse(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})

    def _gated(self, repository: str) -> None:
        if "Authorization" in self.headers:
            message = f"Access to model {repository} is restricted and you are not in the authorized list."
            return self._refuse(403, "GatedRepo", f"{message} Visit {self.hub.address}/{repository} to ask for access.")
        message = f"Access to model {repository} is restricted. You must have access to it and be authenticated."
        return self._refuse(401, "GatedRepo", message)

    def _refuse(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        self._say(status, {"error": message}, {"X-Error-Code": code, "X-Error-Message": message} | (headers or {}))

    def _say(self, status: int, answer: Any, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(answer).encode()
        self.hub._note(self.command, self._path, status)
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    @property
    def _path(self) -> str:
        return unquote(urlsplit(self.path).path)


def _revisions(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir())


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _in_lfs(file: Path) -> bool:
    return file.suffix in LFS or file.stat().st_size > LFS_BYTES
