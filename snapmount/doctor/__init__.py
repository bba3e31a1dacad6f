"""`snapmount doctor`: looks at this host for what snapshots need.  Judging is core.health's; here the facts are got.

Whatever is missing is a finding, and nothing else: also Python modules, and daemons that hang.  All checks run at the
same time, and each ends by a deadline.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from ..errors import SnapmountError
from . import health, host, virtualisation
from .health import Finding
from .subject import Subject
from .virtualisation import uri

__all__ = ["Subject", "examine", "uri"]


@dataclass(frozen=True)
class _Check:
    """A check, the name of what it looks at, and how long it may take."""

    name: str
    look: Callable[[Subject], Awaitable[list[Finding]]]
    deadline_s: float = 15.0


_CHECKS = (
    _Check("Python modules", host.modules),
    _Check("kernel", host.kernel),
    _Check("FUSE", host.fuse),
    _Check("libvirt", virtualisation.check, virtualisation.DEADLINE_S),
    _Check("KVM", host.kvm),
    _Check("programs", host.programs),
    _Check("mount propagation", host.propagation),
    _Check("iSCSI", host.iscsi_targets),
    _Check("records", host.records),
)


async def examine(subject: Subject) -> list[Finding]:
    """All findings, in the order of the checks."""
    found: dict[str, list[Finding]] = {}

    async def run(check: _Check) -> None:
        found[check.name] = await _by_deadline(check, subject)

    async with trio.open_nursery() as nursery:
        for check in _CHECKS:
            nursery.start_soon(run, check)
    return [finding for check in _CHECKS for finding in found[check.name]]


async def _by_deadline(check: _Check, subject: Subject) -> list[Finding]:
    try:
        with trio.fail_after(check.deadline_s):
            return await check.look(subject)
    except trio.TooSlowError:
        return [health.problem(check.name, f"no answer within {check.deadline_s:g} s", "dmesg | tail")]
    except SnapmountError as error:
        return [health.problem(check.name, error.message, error.remedy or "dmesg | tail")]
    except OSError as error:
        return [
            health.problem(
                check.name, f"{error.filename or 'it'} cannot be looked at: {error.strerror}", "dmesg | tail"
            )
        ]
