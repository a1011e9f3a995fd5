"""The entry point of `raysweep`: parse, find the command, call it, turn errors into exit statuses."""

from __future__ import annotations

import argparse
import importlib
import io
import logging
import os
import sys
from typing import NoReturn

from raysweep.cli.exit_status import INTERRUPTED
from raysweep.cli.options import check_environment
from raysweep.cli.parser import build_parser
from raysweep.errors import UserError, one_line


def main(arguments: list[str] | None = None) -> NoReturn:
    """Exits 0 on success, 1 on an error or a failed cell, 2 on bad usage, 130 on Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # A sign that an encoding does not have must not end a command.
            stream.reconfigure(errors="replace")
    # Of a notebook that calls the command: figures go to files here, and its backend need not be installed.
    os.environ.pop("MPLBACKEND", None)
    options = build_parser().parse_args(arguments)
    logging.basicConfig(format="raysweep: %(levelname)s: %(message)s", level=logging.WARNING)
    logging.addLevelName(logging.WARNING, "warning")
    try:
        if sys.flags.optimize > 1:
            raise UserError(
                "transformers reads docstrings, which Python drops here: unset PYTHONOPTIMIZE, or leave out -OO"
            )
        check_environment()
        # Only the command that runs is imported, with what it needs.
        module, _, function = options.command.partition(":")
        status = getattr(importlib.import_module(f"raysweep.cli.{module}"), function)(options)
        sys.stdout.flush()
    except UserError as error:
        status = _fail(error, options, str(error))
    except KeyboardInterrupt:
        status = INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away (`| head`); there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except Exception as error:
        status = _fail(error, options, f"{type(error).__name__}: {one_line(error)} (--debug shows where)")
    sys.exit(status)


def _fail(error: Exception, options: argparse.Namespace, message: str) -> int:
    if options.debug:
        raise error
    print(f"raysweep: error: {message}", file=sys.stderr)
    return 1
