"""What the command says: results on standard output, all else on standard error.  The only module that prints."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import select
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

from ..core import names
from ..errors import SnapmountError, UnreadError, UnwritableError
from ..host import priorities
from .progress import Progress

PIPE_BYTES = 1 << 20  # proc(5), "pipe-max-size"

progress = Progress()


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
    with contextlib.suppress(OSError):  # a standard error that cannot be written changes nothing
        progress.write((priorities.prioritised(level, line) if priorities.has_journal() else line) + "\n")


def print_text(text: str, there: str = "", remedy: str | None = None) -> None:
    """Print it, or raise as writing() does."""
    with writing(there, remedy):
        sys.stdout.write(text)


def print_bytes(parts: Iterable[bytes]) -> None:
    """Print them as they come; as print_text()."""
    with contextlib.suppress(OSError, ValueError):  # a pipe gets as large as anybody may make it, once for all
        fcntl.fcntl(sys.stdout.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    for part in parts:
        with writing():
            sys.stdout.flush()
            _write(sys.stdout.fileno(), memoryview(part))


def _write(descriptor: int, left: memoryview) -> None:
    """Write all of it, also if a signal interrupts that, or the descriptor does not block.  Python's own streams, if
    they are not buffered (PYTHONUNBUFFERED), would leave out what one write(2) does not take.
    """
    while left:
        try:
            left = left[os.write(descriptor, left) :]
        except BlockingIOError:
            poll = select.poll()
            poll.register(descriptor, select.POLLOUT)
            poll.poll()


@contextlib.contextmanager
def writing(there: str = "", remedy: str | None = None) -> Iterator[None]:
    """What is printed in the block has been written at its end, also if that raises SystemExit.  Else UnwritableError
    or UnreadError is raised, which says what is `there` all the same.
    """
    try:
        try:
            with progress.cleared():
                yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        raise UnreadError(there and f"nobody reads standard output; {there}", remedy) from None
    except OSError as error:
        what = f"standard output cannot be written ({error.strerror})"
        raise UnwritableError(f"{what}; {there}" if there else what, remedy) from None


def print_json(document: object, there: str = "", remedy: str | None = None) -> None:
    """As print_text()."""
    print_text(json.dumps(document, indent=2) + "\n", there, remedy)


@contextlib.contextmanager
def going_on(errors: list[SnapmountError]) -> Iterator[None]:
    """If the block cannot print, that is told and kept in `errors`, and is no reason not to go on."""
    try:
        yield
    except (UnwritableError, UnreadError) as error:
        if error.message:
            complain(error)
        errors.append(error)


def print_either(
    as_json: bool, document: Callable[[], object], text: Callable[[], str], there: str = "", remedy: str | None = None
) -> None:
    """The document as JSON, or else the text; as print_text()."""
    if as_json:
        print_json(document(), there, remedy)
    else:
        print_text(text(), there, remedy)


def complain_all(errors: Sequence[SnapmountError]) -> int:
    """Tell of them; return the exit code."""
    for error in errors:
        complain(error)
    return errors[0].exit_code if errors else 0
