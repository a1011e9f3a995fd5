"""measure."""

from __future__ import annotations

import argparse

from pydantic import ValidationError

from raysweep.cli import messages
from raysweep.cli.options import load_space, open_store
from raysweep.cli.progress_bars import ProgressBars
from raysweep.errors import UserError
from raysweep.space.explain import explain
from raysweep.space.measure import Measurement

_SETTINGS = ("metrics", "sequences", "positions", "tokens", "against")


def measure(options: argparse.Namespace) -> int:
    """`raysweep measure`."""
    from raysweep.sweep.measure import measure  # With what a running sweep needs.

    space = load_space(options)
    store = open_store(options, space)
    measurements = asked(options)
    with ProgressBars() as bars:
        measured = measure(space, store, measurements, bars.step)
    messages.show_measured(measured, store, asked_for=measurements is not None)
    return 1 if measured.errors else 0


def asked(options: argparse.Namespace) -> list[Measurement] | None:
    """What the options ask for, in place of the search space's `measure`; None where they ask for nothing."""
    settings = {name: value for name in _SETTINGS if (value := getattr(options, name, None)) is not None}
    if options.of is None:
        if settings:
            raise UserError(f"--{min(settings)} is of --of: say of which matrices, such as --of unembedding")
        return None
    if "metrics" in settings:
        settings["metrics"] = [name for name in settings["metrics"].split(",") if name]
    try:
        return [Measurement.model_validate({"of": options.of, **settings})]
    except ValidationError as error:
        where, message = explain(error, Measurement)
        raise UserError(f"--{'.'.join(map(str, where)) or 'of'}: {message}") from None
