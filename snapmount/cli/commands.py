"""The command line: runs the verb that is asked for, and tells of errors."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from ..errors import SnapmountError
from ..host import logs
from . import missing, output
from .arguments import doing, parse

if TYPE_CHECKING:
    import argparse


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    try:
        return _run(sys.argv[1:] if argv is None else list(argv))
    except SnapmountError as error:
        if error.message:  # a reader that has gone away wants to know nothing
            output.complain(error)
        return error.exit_code
    except ModuleNotFoundError as error:
        explained = missing.explained(error)
        output.complain(explained)
        return explained.exit_code


def _run(argv: list[str]) -> int:
    with output.writing():  # --help
        arguments = parse(argv)
    level = logging.INFO if getattr(arguments, "verbose", False) else logging.WARNING
    logs.log_to(output.progress, level, "snapmount: %(message)s")
    with output.progress.shown("" if _is_quiet(arguments) else doing(arguments)):
        verb: Callable[[argparse.Namespace], int] = import_module(f"{__package__}.verbs.{arguments.verb}").run
        return verb(arguments)


def _is_quiet(arguments: argparse.Namespace) -> bool:
    """Whether nothing is to be shown on a terminal while the command works."""
    is_piped = getattr(arguments, "json", False) and not sys.stdout.isatty()
    return is_piped or getattr(arguments, "foreground", False)
