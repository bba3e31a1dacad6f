"""`snapmount doctor`: looks at this host for what snapshots need.  Judging is core.health's; here the facts are got.

Whatever is missing is a finding, and nothing else: also Python modules, and daemons that hang.  All checks run at the
same time, and each ends by a deadline.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import trio

from ..core import health
from ..core.health import Finding
from ..errors import SnapmountError
from . import host, virtualisation
from .subject import Subject
from .virtualisation import uri

__all__ = ["Subject", "examine", "uri"]

CHECK_S = 15.0
_DEADLINES_S = {"libvirt": virtualisation.LIBVIRT_S + virtualisation.PROBE_S + CHECK_S}  # others: CHECK_S

Check = Callable[[Subject], Awaitable[list[Finding]]]

_CHECKS: Sequence[tuple[str, Check]] = (
    ("Python modules", host.modules),
    ("kernel", host.kernel),
    ("FUSE", host.fuse),
    ("libvirt", virtualisation.check),
    ("KVM", host.kvm),
    ("programs", host.programs),
    ("mount propagation", host.propagation),
    ("iSCSI", host.iscsi_targets),
    ("records", host.records),
)


async def examine(subject: Subject) -> list[Finding]:
    """All findings, in the order of the checks."""
    found: dict[str, list[Finding]] = {}

    async def run(name: str, check: Check) -> None:
        found[name] = await _by_deadline(name, check, subject)

    async with trio.open_nursery() as nursery:
        for name, check in _CHECKS:
            nursery.start_soon(run, name, check)
    return [finding for name, _ in _CHECKS for finding in found[name]]


async def _by_deadline(name: str, check: Check, subject: Subject) -> list[Finding]:
    deadline_s = _DEADLINES_S.get(name, CHECK_S)
    try:
        with trio.fail_after(deadline_s):
            return await check(subject)
    except trio.TooSlowError:
        return [health.problem(name, f"no answer within {deadline_s:g} s", "dmesg | tail")]
    except SnapmountError as error:
        return [health.problem(name, error.message, error.remedy or "dmesg | tail")]
    except OSError as error:
        return [health.problem(name, f"{error.filename or 'it'} cannot be looked at: {error.strerror}", "dmesg | tail")]
