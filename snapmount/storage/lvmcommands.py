"""Runs lvm2's commands, for all that needs its metadata.  What of them went wrong is told in its own words."""

from __future__ import annotations

import os

from ..errors import SnapmountError, StateError
from ..host import execution
from . import lvmreport
from .lvmreport import Volume

LOOK_S = 60.0
CHANGE_S = 180.0  # a volume that is open is tried again for seconds, and others may hold the group's lock


def _environment() -> dict[str, str]:
    """Messages as they stand in lvm2's source, and none about the descriptors that we have open."""
    return {**os.environ, "LC_ALL": "C", "LVM_SUPPRESS_FD_WARNINGS": "1"}


async def volumes(*selection: str, what: str, kind: type[SnapmountError] = StateError) -> list[Volume]:
    """The volumes that lvs(8) finds by these arguments.  Raises an error of that kind: `what`, and why."""
    command = ["lvs", *lvmreport.OPTIONS, *selection]
    try:
        text = await execution.output(command, LOOK_S, what, kind, env=_environment())
        return lvmreport.parse(text)
    except ValueError as error:
        raise kind(f"{what}: {error}") from error
    except kind as error:
        raise _shortened(error, what, kind) from None


async def find(group: str, name: str, what: str, kind: type[SnapmountError] = StateError) -> Volume | None:
    """The volume of that name; None if the group has none.  Raises an error of that kind, also if there is no group."""
    found = await volumes("--select", f'lv_name="{name}"', group, what=what, kind=kind)
    return found[0] if found else None


async def change(command: list[str], what: str, kind: type[SnapmountError] = StateError) -> None:
    """Run a command that changes something.  Raises an error of that kind: `what`, and why.

    lvm2 blocks all signals while it holds a group's lock, so also while a device is suspended; if it waits for the lock
    it ends on SIGTERM (lib/misc/lvm-signal.c, lvm-flock.c).  Only SIGKILL could leave a guest's device suspended.
    """
    try:
        await execution.unkilled_output(command, CHANGE_S, what, kind, env=_environment())
    except kind as error:
        raise _shortened(error, what, kind) from None


def _shortened(error: SnapmountError, what: str, kind: type[SnapmountError]) -> SnapmountError:
    """The error in one line, without lvm2's warnings."""
    lines = [line.strip() for line in error.message.removeprefix(f"{what}: ").splitlines()]
    told = [line for line in lines if line and not line.startswith("WARNING: ")] or lines
    return kind(f"{what}: {'; '.join(told)}", error.remedy)


async def settings(*paths: str) -> dict[str, str]:
    """Settings of lvm.conf(5) as they are in force, by the last part of their name.  Raises StateError."""
    what = "the settings of lvm2 cannot be read"
    command = ["lvmconfig", "--typeconfig", "full", *paths]
    text = await execution.output(command, LOOK_S, what, StateError, env=_environment())
    return dict(line.strip().split("=", 1) for line in text.decode(errors="replace").splitlines() if "=" in line)
