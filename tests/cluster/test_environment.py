"""What of the process's environment a sweep changes, and what it puts back."""

import os
import signal

import pytest

from raysweep.cluster.connection import _own_signals
from raysweep.cluster.environment import CLIENT, LOCAL_CLUSTER, TRIAL, preserved_environment, ray_environment


def test_the_environment_is_put_back_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AIR_NEW_OUTPUT", "mine")
    monkeypatch.setenv("KEPT", "before")
    before = dict(os.environ)

    def changes_and_fails() -> None:
        with preserved_environment():
            os.environ["KEPT"] = "changed"
            os.environ["ADDED"] = "x"
            del os.environ["RAY_AIR_NEW_OUTPUT"]
            raise KeyError

    with pytest.raises(KeyError):
        changes_and_fails()
    assert dict(os.environ) == before


@pytest.mark.parametrize("local", [True, False])
def test_ray_has_its_environment_in_the_context_only(local: bool) -> None:
    before = dict(os.environ)
    with ray_environment(local):
        assert {**os.environ} == before | CLIENT | TRIAL | (LOCAL_CLUSTER if local else {})
    assert dict(os.environ) == before


def test_handlers_of_signals_are_put_back() -> None:
    mine = signal.signal(signal.SIGTERM, lambda number, frame: None)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with _own_signals():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, mine)
