"""A hub on localhost: what `datasets` and `huggingface_hub` ask of the real one, answered out of a folder of data sets."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

# The one commit that no data set has.
NONE = "0" * 40


@contextmanager
def serve(folder: Path, gated: tuple[str, ...] = (), token: str = "") -> Iterator[tuple[str, list[str]]]:
    """The address, and what was asked; `gated` data sets need `token`."""
    asked: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None: ...

        def do_GET(self) -> None:
            self.answer()

        def do_HEAD(self) -> None:
            self.answer()

        def do_POST(self) -> None:
            self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def answer(self, body: Any = None) -> None:
            path = unquote(urlsplit(self.path).path)
            asked.append(f"{self.command} {path}")
            parts = path.removeprefix("/api").strip("/").split("/")
            if parts[0] != "datasets" or len(parts) < 3:
                return self.say(404, {"error": "no such page"})
            repository, rest = "/".join(parts[1:3]), parts[3:]
            root = folder / repository
            if not root.is_dir():
                return self.say(401, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            if repository in gated and self.headers.get("Authorization") != f"Bearer {token}":
                message = f"Access to dataset {repository} is restricted."
                return self.say(401, {"error": message}, {"X-Error-Code": "GatedRepo", "X-Error-Message": message})
            files = sorted(p for p in root.rglob("*") if p.is_file())
            names = [str(p.relative_to(root)) for p in files]
            if not rest or rest[0] == "revision":
                if rest and rest[1] == NONE:
                    return self.say(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
                return self.say(
                    200,
                    {"id": repository, "sha": rest[1] if rest else "1" * 40, "private": False, "tags": [],
                     "downloads": 0, "likes": 0, "siblings": [{"rfilename": name} for name in names]},
                )  # fmt: skip
            if rest[0] == "paths-info":
                wanted = {path.strip("/") for path in (body or {}).get("paths", [])}
                return self.say(
                    200, [self.entry(root, name) for name in names if name in wanted] + self.folders(names, wanted)
                )
            if rest[0] == "tree":
                under = "/".join(rest[2:])
                inside = [name for name in names if not under or name.startswith(f"{under}/")]
                if "recursive=true" in self.path.lower():
                    every = {str(Path(name).parent) for name in inside} - {".", under}
                    return self.say(200, [self.entry(root, name) for name in inside] + self.folders(names, every))
                depth = len(Path(under).parts)
                direct = [name for name in inside if len(Path(name).parts) == depth + 1]
                folders = {"/".join(Path(name).parts[: depth + 1]) for name in inside} - set(direct)
                return self.say(200, [self.entry(root, name) for name in direct] + self.folders(names, folders))
            if rest[0] == "resolve":
                file = root / "/".join(rest[2:])
                if not file.is_file():
                    return self.say(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
                return self.content(file.read_bytes(), rest[1])
            return self.say(404, {"error": "no such page"})

        @staticmethod
        def entry(root: Path, name: str) -> dict[str, Any]:
            return {
                "type": "file",
                "path": name,
                "size": (root / name).stat().st_size,
                "oid": f"{abs(hash(name)):040x}"[:40],
            }

        @staticmethod
        def folders(names: list[str], wanted: set[str]) -> list[dict[str, Any]]:
            there = {str(parent) for name in names for parent in Path(name).parents} - {"."}
            return [{"type": "directory", "path": name, "size": 0, "oid": "0" * 40} for name in sorted(there & wanted)]

        def content(self, content: bytes, commit: str) -> None:
            status, part = 200, content
            if wanted := self.headers.get("Range"):
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                part = content[int(first) : int(last) + 1 if last else None]
                status = 206
            self.send_response(status)
            self.send_header("X-Repo-Commit", commit)
            self.send_header("ETag", f'"{len(content)}-{sum(content[:1000])}"')
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(part)

        def say(self, status: int, answer: Any, headers: dict[str, str] | None = None) -> None:
            content = json.dumps(answer).encode()
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
