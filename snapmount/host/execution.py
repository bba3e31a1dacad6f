"""Runs programs of the distribution, to make or to read something; what goes wrong is told in words."""

from __future__ import annotations

from typing import Any

import trio

from ..core import names
from ..errors import MissingError, SnapmountError
from . import blocking

# Which of Debian's packages has it.
PACKAGES = {
    **dict.fromkeys(("dd",), "coreutils"),
    **dict.fromkeys(("mount", "umount"), "mount"),
    **dict.fromkeys(("fallocate", "findmnt", "setpriv", "wipefs"), "util-linux"),
    "btrfs": "btrfs-progs",
    "fusermount3": "fuse3",
    "qemu-img": "qemu-utils",
    "qemu-storage-daemon": "qemu-system-common",
}


async def output(
    command: list[str],
    deadline_s: float,
    what: str,
    kind: type[SnapmountError],
    remedy: str | None = None,
    **options: Any,
) -> bytes:
    """What the program prints.

    Raises an error of that kind where it fails, or has not ended by the deadline and is killed: `what`, such as 'x
    cannot be made', and why.  Raises MissingError where it cannot be started.
    """
    program = command[0]
    try:
        done = await blocking.run(deadline_s, command, **options)
    except OSError as error:
        raise cannot_run(program, error) from error
    except trio.TooSlowError:
        raise kind(f"{what}: {program} has not ended within {deadline_s:g} s", remedy) from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().removeprefix(f"{program}: ")
        raise kind(f"{what}: {said or f'{program} has failed with exit status {done.returncode}'}", remedy)
    return done.stdout


def cannot_run(program: str, error: OSError) -> MissingError:
    """The error for a program that could not be started."""
    why = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be run: {error.strerror}"
    return MissingError(f"{program} {why}", names.command("sudo", "apt-get", "install", PACKAGES[program]))
