"""A sweep as a function, from a script of one's own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SCRIPT = """
import contextlib, io, json, os, signal, sys, threading
import raysweep
from raysweep.sweep.events import CellReported

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
space, store = raysweep.load(sys.argv[1]), sys.argv[2]
environment, handlers = dict(os.environ), [signal.getsignal(number) for number in SIGNALS]
printed, events, stop, state = io.StringIO(), [], threading.Event(), raysweep.RunState()

def on_event(event):
    events.append(type(event).__name__)
    state.apply(event)
    if sys.argv[3] == "stop" and isinstance(event, CellReported) and event.step > 100:
        stop.set()

with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
    result = raysweep.run(space, store, on_event=on_event, stop=stop)
print(json.dumps({
    "printed": printed.getvalue(),
    "environment": dict(os.environ) == environment,
    "handlers": [signal.getsignal(number) for number in SIGNALS] == handlers,
    "events": events,
    "complete": result.complete,
    "interrupted": state.interrupted,
    "failed": result.failed,
    "rows": result.table.num_rows,
    "same": result.table.equals(raysweep.results(space, store)),
    "status": raysweep.status(space, store).counts()["cells"],
}))
"""


def call(file: Path, store: Path, how: str = "") -> dict[str, Any]:
    """`raysweep.run` in a process of its own, and what was seen of it; `stop` ends it in its first cell."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(file), str(store), how],
        capture_output=True,
        text=True,
        timeout=480,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert done.stderr == ""
    answer: dict[str, Any] = json.loads(line)
    return answer
