"""Runs programs of the distribution, to make or to read something; what goes wrong is told in words."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from functools import partial
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
    "dmsetup": "dmsetup",
    "fusermount3": "fuse3",
    **dict.fromkeys(("lvchange", "lvcreate", "lvmconfig", "lvremove", "lvs"), "lvm2"),
    "qemu-img": "qemu-utils",
    "qemu-storage-daemon": "qemu-system-common",
    "thin_delta": "thin-provisioning-tools",
}
ENDING_S = 5.0


async def output(
    command: list[str],
    deadline_s: float,
    what: str,
    kind: type[SnapmountError],
    remedy: str | None = None,
    **options: Any,
) -> bytes:
    """What the program prints.

    Raises an error of that kind if it fails, or has not ended by the deadline and is killed: `what`, such as 'x
    cannot be made', and why.  Raises MissingError if it cannot be started.
    """
    program = command[0]
    try:
        done = await blocking.run(deadline_s, command, **options)
    except OSError as error:
        raise cannot_run(program, error) from error
    except trio.TooSlowError:
        raise kind(f"{what}: {program} has not ended within {deadline_s:g} s", remedy) from None
    _check(done, what, kind, remedy)
    return done.stdout


async def unkilled_output(
    command: list[str], deadline_s: float, what: str, kind: type[SnapmountError], **options: Any
) -> bytes:
    """output() of a program that would do harm if it were killed on its way: one that has suspended a guest's device.

    At the deadline, or if this is cancelled, it gets SIGTERM, which it must be able to put off.  If it does, and for
    long, it is left to end by itself: what it makes may come late, for the caller to undo.
    """
    program = command[0]
    with tempfile.TemporaryFile() as told, tempfile.TemporaryFile() as complaint:  # no pipes, whose end might kill it
        streams = {"stdin": subprocess.DEVNULL, "stdout": told, "stderr": complaint}
        try:
            process = await trio.to_thread.run_sync(partial(subprocess.Popen, command, **streams, **options))
        except OSError as error:
            raise cannot_run(program, error) from error
        try:
            status = await blocking.call(deadline_s, process.wait)  # whose thread stays until it has ended
        except trio.TooSlowError:
            await _terminate(process)
            raise kind(f"{what}: {program} has not ended within {deadline_s:g} s") from None
        except trio.Cancelled:
            await _terminate(process)
            raise
        told.seek(0)
        complaint.seek(0)
        done = subprocess.CompletedProcess(command, status, told.read(), complaint.read())
    _check(done, what, kind)
    return done.stdout


async def _terminate(process: subprocess.Popen[Any]) -> None:
    process.terminate()
    with trio.CancelScope(shield=True), contextlib.suppress(trio.TooSlowError):
        await blocking.call(ENDING_S, process.wait)


def _check(
    done: subprocess.CompletedProcess[bytes], what: str, kind: type[SnapmountError], remedy: str | None = None
) -> None:
    """Raise an error of that kind for a program that has failed."""
    if done.returncode:
        program = done.args[0]
        said = done.stderr.decode(errors="replace").strip().removeprefix(f"{program}: ")
        raise kind(f"{what}: {said or f'{program} has failed with exit status {done.returncode}'}", remedy)


def cannot_run(program: str, error: OSError) -> MissingError:
    """The error for a program that could not be started."""
    why = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be run: {error.strerror}"
    return MissingError(f"{program} {why}", names.command("sudo", "apt-get", "install", PACKAGES[program]))
