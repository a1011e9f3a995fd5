"""watch, and the page of `run --watch`."""

from __future__ import annotations

import argparse
import os
import secrets
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from raysweep.cli.options import load_space, open_store
from raysweep.errors import UserError
from raysweep.store import Store
from raysweep.suites.read import is_suite

if TYPE_CHECKING:
    from raysweep.watch.watcher import Watcher


def watch(options: argparse.Namespace) -> NoReturn:
    """`raysweep watch`."""
    if is_suite(options.space):
        raise UserError(
            f"{options.space} is a suite of published models: `raysweep status` shows it, the report its models"
        )
    from raysweep.watch.server import LOOPBACK, application, listening, serve

    local = options.host in LOOPBACK
    token = secrets.token_urlsafe(24) if options.token or not local else None
    with listening(options.host, options.port) as opened:
        watcher = _watcher(options)
        port = opened.getsockname()[1]
        with watcher:
            asked = f"?token={token}" if token else ""
            shown = f"[{options.host}]" if ":" in options.host else options.host
            print(f"{watcher.source.space.name}: http://{shown}:{port}/{asked}", flush=True)
            if options.of_run:
                _end_with_parent()
            else:
                print(
                    f"from another machine: ssh -L {port}:localhost:{port} THIS_MACHINE; Ctrl-C ends the page, no sweep"
                )
                sys.stdout.flush()
            # A browser writes the last of them in brackets.
            serve(application(watcher, [*LOOPBACK, "[::1]"], token), opened)
    # Python would first wait for every file that a thread was to read.
    sys.stdout.flush()
    os._exit(0)


def _watcher(options: argparse.Namespace) -> Watcher:
    from raysweep.exchange.published import read_published
    from raysweep.watch.published import PublishedReader
    from raysweep.watch.snapshot import Reader
    from raysweep.watch.watcher import Watcher

    if Path(options.space).is_dir():
        if options.store:
            raise UserError(f"{options.space} already contains its results: leave --store out")
        return Watcher(PublishedReader(read_published(Path(options.space))), True, options.space, [options.space], "")
    space = load_space(options, reading=True)
    store = open_store(options, space)
    again = shlex.join(["raysweep", "run", options.space, "--store", store.location])
    return Watcher(Reader(space, store), False, store.location, [options.space, store.location], again)


def _end_with_parent() -> None:
    """End this process when the one that started it is gone, whose end of the pipe is our standard input."""

    def wait() -> None:
        sys.stdin.read()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
    # Nobody reads on.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


@contextmanager
def page_of_run(space: str, store: Store) -> Iterator[str]:
    """The address of a page that shows the sweep while in the context.

    It is a process of its own, so that nobody who looks slows the sweep down; it ends with this one, however that ends.
    Raises `UserError` where there can be no page.
    """
    command = [sys.executable, "-m", "raysweep.cli", "watch", space, "--store", store.location, "--of-run"]
    process = subprocess.Popen(  # noqa: S603 (this Python, without a shell)
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        said = process.stdout.readline().strip()
        if not said:
            raise UserError(f"--watch: {process.stderr.read().strip().removeprefix('raysweep: error: ')}")
        yield said.rpartition(" ")[2]
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
