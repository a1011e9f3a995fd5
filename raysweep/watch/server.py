"""The page's server: the page's own files, and what it asks for of the sweep; nothing else.

It listens on this machine alone unless another address is given, and then asks for a token, as does `--token`.
"""

from __future__ import annotations

import errno
import hmac
import json
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raysweep.errors import UserError, reason
from raysweep.page import content as page
from raysweep.watch.watcher import Watcher

_SCRIPTS = (*page.SCRIPTS, "live.js")
_COOKIE = "raysweep_watch"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
FIRST_PORT = 8266
"""One after that of Ray's dashboard."""

# Nothing from elsewhere, and nowhere else to send anything. Plotly writes style sheets, draws pictures of its own, and makes
# functions of text where it draws with WebGL.
_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-eval'; connect-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src data: blob:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

# Curves that a page asks for at once, and bytes of such a request.
MOST_CURVES = 400
_MOST_BYTES = 1 << 16


def application(watcher: Watcher, hosts: list[str], token: str | None) -> Starlette:
    """The server's routes. `hosts` are the names that it may be called by; with a `token` whoever asks must have it."""
    templates = page.environment(Path(__file__).parent)
    html = templates.get_template("watch.html").render(
        name=watcher.source.space.name, place=watcher.place, scripts=_SCRIPTS
    )
    files = {"page.css": (page.style(), "text/css")}
    files |= {name: (page.script(name), "text/javascript") for name in (*_SCRIPTS, "plotly.js")}

    def index(request: Request) -> Response:
        return HTMLResponse(html)

    def file(request: Request) -> Response:
        found = files.get(request.path_params["name"])
        if found is None:
            return PlainTextResponse("no such file", 404)
        return Response(found[0], media_type=found[1])

    def state(request: Request) -> Response:
        return JSONResponse(watcher.state(request.query_params.get("have", "")))

    def verdicts(request: Request) -> Response:
        return HTMLResponse(watcher.verdicts.html)

    def cells(request: Request) -> Response:
        since = request.query_params.get("since", "0")
        if not since.isdecimal() or len(since) > 9:
            return PlainTextResponse("since: a version is needed", 400)
        content = watcher.snapshot.content
        return _arrow(page.arrow(content.cells[content.cells["changed"] > int(since)], content.measured))

    async def curves(request: Request) -> Response:
        try:
            body = await _json(request)
            column, rows = body["column"], body["cells"]
            count = len(watcher.source.space.cells)
            if not isinstance(column, str) or not isinstance(rows, list) or len(rows) > MOST_CURVES:
                raise ValueError
            if not all(isinstance(row, int) and 0 <= row < count for row in rows):
                raise ValueError
        except (ValueError, KeyError, TypeError):
            return PlainTextResponse(f"a column and at most {MOST_CURVES} cells are needed", 400)
        try:
            found = await run_in_threadpool(watcher.curves, column, rows)
        except UserError as error:
            return PlainTextResponse(str(error), 503)
        return _arrow(page.arrow(found.assign(cell=found["cell"].astype(np.int32)), {"value"}))

    routes = [
        Route("/", index),
        Route("/static/{name}", file),
        Route("/state", state),
        Route("/verdicts", verdicts),
        Route("/cells", cells),
        Route("/curves", curves, methods=["POST"]),
    ]
    # Without a token, a page of somebody else's whose name leads here must not read what this one shows.
    guard = Middleware(TrustedHostMiddleware, allowed_hosts=hosts) if token is None else Middleware(_Token, token=token)
    compressed = Middleware(GZipMiddleware, minimum_size=1000, compresslevel=4)
    return Starlette(routes=routes, middleware=[Middleware(_Headers), guard, compressed])


class _Headers:
    """Puts what a browser must not do into every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
            await send(message)

        await self._app(scope, receive, with_headers)


class _Token:
    """Lets in who has the token: in the address at first, from then on in a cookie."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        # A cookie is of a host, whatever its port.
        cookie = f"{_COOKIE}_{request.url.port or 80}"
        if self._fits(request.cookies.get(cookie)):
            await self._app(scope, receive, send)
            return
        answer: Response
        if self._fits(request.query_params.get("token")):
            answer = RedirectResponse("/", 303)
            answer.set_cookie(cookie, self._token, httponly=True, samesite="strict")
        else:
            answer = PlainTextResponse("a token is needed: open the address that raysweep watch has printed\n", 401)
        await answer(scope, receive, send)

    def _fits(self, given: str | None) -> bool:
        return given is not None and hmac.compare_digest(given.encode(), self._token.encode())


async def _json(request: Request) -> Any:
    """The body of a request. Raises `ValueError` where it is too long, or no JSON."""
    content = b""
    async for part in request.stream():
        content += part
        if len(content) > _MOST_BYTES:
            raise ValueError
    return json.loads(content)


def _arrow(content: bytes) -> Response:
    return Response(content, media_type="application/vnd.apache.arrow.stream")


def listening(host: str, port: int | None) -> socket.socket:
    """A socket at an address; without a port at `FIRST_PORT`, or the next that is free. Raises `UserError`."""
    try:
        family = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][0]
    except (OSError, UnicodeError):
        raise UserError(f"--host {host}: this machine does not know that name") from None
    for tried in range(FIRST_PORT, FIRST_PORT + 50) if port is None else (port,):
        opened = socket.socket(family, socket.SOCK_STREAM)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            opened.bind((host, tried))
            opened.listen(128)
            return opened
        except OSError as error:
            opened.close()
            why = reason(error)
            if error.errno != errno.EADDRINUSE:
                break
    what = f"port {port}" if port is not None else f"a port from {FIRST_PORT} on"
    raise UserError(f"{host}: {what} cannot be listened at: {why}; choose another with --port")


def serve(app: Starlette, opened: socket.socket) -> None:
    """Answer until Ctrl-C or `kill`."""
    server = _Server(uvicorn.Config(app, log_level="critical", lifespan="off", timeout_graceful_shutdown=1))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, server.handle_exit)
    server.run(sockets=[opened])


class _Server(uvicorn.Server):
    """Uvicorn's raises a signal again when it has ended: an ending that was asked for is none of a failure."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
