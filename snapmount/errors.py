"""The errors that a user may see, by what the user can do about them.

Each carries a message that names the object and the value, where there is one a remedy (a command to try), and the exit
code of the command line.  Anything else that is raised is a bug.
"""

from __future__ import annotations


class SnapmountError(Exception):
    """An error to show as `snapmount: MESSAGE` and `  try: REMEDY`, without a traceback."""

    exit_code = 1
    evidence: tuple[str, ...] = ()  # lines to show below the message

    def __init__(self, message: str, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


class UsageError(SnapmountError):
    """The command line makes no sense."""

    exit_code = 2


class NotFoundError(SnapmountError):
    """There is no such VM, disk, snapshot or mountpoint."""

    exit_code = 3


class StateError(SnapmountError):
    """The thing exists, but its state forbids what was asked: a VM that is shut off, a job that runs, a mountpoint in
    use.
    """

    exit_code = 4


class SpaceError(SnapmountError):
    """The scratch directory is too small or cannot be used by QEMU; or what the guest writes would find no space."""

    exit_code = 5


class UnreachableError(SnapmountError):
    """libvirt or QEMU does not answer, or refuses."""

    exit_code = 6


class MissingError(SnapmountError):
    """The host or the guest lacks something: /dev/fuse, fusermount3, python3-libnbd, the guest agent."""

    exit_code = 7


class LeftoverError(SnapmountError):
    """Something could not be undone; the record of it is kept, so that `snapmount delete` can be tried again."""

    exit_code = 8


class NotBootedError(SnapmountError):
    """A scratch VM was started, but what was waited for has not come."""

    exit_code = 9

    def __init__(self, message: str, remedy: str | None = None, evidence: tuple[str, ...] = ()) -> None:
        super().__init__(message, remedy)
        self.evidence = evidence


class UnwritableError(SnapmountError):
    """Standard output cannot be written; what was asked for has been done."""

    exit_code = 10


class InterruptedByUserError(SnapmountError):
    """Ctrl-C or SIGTERM; what had been begun has been undone."""

    exit_code = 130


class UnreadError(SnapmountError):
    """Nobody reads standard output, which is a pipe; what was asked for has been done."""

    exit_code = 128 + 13  # as if SIGPIPE had ended us


def of_exit_code(exit_code: object) -> type[SnapmountError]:
    """The kind of errors with that exit code: each has one of its own."""
    kinds: list[type[SnapmountError]] = [SnapmountError, *SnapmountError.__subclasses__()]
    return next((kind for kind in kinds if kind.exit_code == exit_code), SnapmountError)


def first_cause(error: BaseException) -> BaseException:
    """The error to report of a (nested) group as trio's nurseries raise them: a SnapmountError, if there is one, else
    the first.
    """
    if not isinstance(error, BaseExceptionGroup):
        return error
    causes = [first_cause(each) for each in error.exceptions]
    return next((cause for cause in causes if isinstance(cause, SnapmountError)), causes[0])
