"""What the command says: results on standard output, all else on standard error.  The only module that prints."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence

from . import notify
from .core import names
from .errors import SnapmountError
from .progress import Progress

progress = Progress()


class CannotPrintError(Exception):
    """Nobody reads our standard output."""


def complain(error: SnapmountError) -> None:
    """Tell of an error, with its remedy."""
    _say(logging.ERROR, f"snapmount: {names.printable(error.message)}")
    for line in error.evidence:
        _say(logging.ERROR, f"  {names.printable(line)}")
    if error.remedy:
        _say(logging.ERROR, f"  try: {names.printable(error.remedy)}")


def tell(text: str) -> None:
    """Tell of something that is no error, or a warning."""
    _say(logging.WARNING, f"snapmount: {names.printable(text)}")


def _say(level: int, line: str) -> None:
    progress.write((notify.prioritised(level, line) if notify.has_journal() else line) + "\n")


def print_text(text: str) -> None:
    """Raises CannotPrintError."""
    try:
        with progress.cleared():
            sys.stdout.write(text)
            sys.stdout.flush()
    except BrokenPipeError:
        raise CannotPrintError from None


def print_json(document: object) -> None:
    """Raises CannotPrintError."""
    print_text(json.dumps(document, indent=2) + "\n")


def complain_all(errors: Sequence[SnapmountError]) -> int:
    """Tell of them; return the exit code."""
    for error in errors:
        complain(error)
    return errors[0].exit_code if errors else 0
