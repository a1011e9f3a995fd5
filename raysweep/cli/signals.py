"""Ctrl-C and `kill`: the first ends a sweep in an orderly way, the second at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from raysweep.sweep.events import ClusterConnected, Event

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopOnSignal:
    """While in the context, Ctrl-C and `kill` set `stop` once cells train, and raise `KeyboardInterrupt` before that.

    It subscribes to the sweep's events to know which.
    """

    def __init__(self) -> None:
        self.stop = threading.Event()
        self._training = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopOnSignal:
        for number in _SIGNALS:
            # One that is ignored, as under `nohup`, stays so; one that is not Python's cannot be put back.
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                self._before[number] = signal.signal(number, self._handle)
        # What Ray starts, a job too, has Ctrl-C's signal blocked.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __call__(self, event: Event) -> None:
        if isinstance(event, ClusterConnected):
            self.work_began()

    def work_began(self) -> None:
        """From here on the first signal asks for an end in order."""
        self._training = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._training or self.stop.is_set():
            raise KeyboardInterrupt
        self.stop.set()
