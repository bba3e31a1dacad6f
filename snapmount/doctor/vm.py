"""Asks all sources whether they can take a snapshot of a VM, of each of its disks and of all.

They are asked as `take` asks them, so that both answer the same.  Nothing is made, and each look has a deadline.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace

import trio

from .. import hypervisor
from ..core.diskdefinition import DiskDefinition
from ..core.plan import Choice, Selection
from ..errors import SnapmountError
from ..host import blocking, programs
from ..lifecycle import planning
from ..lifecycle.planning import Request
from ..records.store import Store
from ..sources import kinds, registry
from ..sources import source as sources
from ..storage import devicemapper, files
from . import service
from .service import Lack, Refusal, Row, Service, Survey

log = logging.getLogger(__name__)

LOOK_S = 15.0  # for one disk: a hook alone may take ten seconds
SOURCE_S = 30.0  # for all disks of the VM
FILES_S = 5.0
_DMESG = "dmesg | tail"


async def survey(request: Request) -> Survey:
    """What the sources say.  Raises NotFoundError, StateError, UnreachableError."""
    async with hypervisor.connected(request.connect) as connection:
        domain = await planning.domain_of(request, connection)
        store = Store.of_user(kinds.check)
        subject = await planning.subject_of(request, store, connection, domain, log.info)
        asked = {kind: Question(kind, source, subject) for kind, source in registry.SOURCES.items()}
        async with trio.open_nursery() as nursery:
            for each in asked.values():
                nursery.start_soon(each.ask)
        rows = [row for disk in subject.selection.chosen for each in asked.values() for row in each.of(disk)]
        return Survey(
            vm=domain.name,
            uuid=domain.uuid,
            is_running=await domain.is_active(),
            rows=tuple(rows),
            wholes=tuple((kind, each.whole) for kind, each in asked.items()),
            left_out=subject.selection.left_out,
            lacking=await lacking(subject.selection.chosen),
        )


@dataclass
class Question:
    """A source that is asked for one disk after the other, so that no look makes another one slow, then for all."""

    kind: str
    source: sources.Source
    subject: sources.Subject
    rows: list[Row] = field(default_factory=list)
    whole: Service | Refusal = field(default_factory=lambda: Refusal("it was not asked"))

    def of(self, disk: DiskDefinition) -> list[Row]:
        return [row for row in self.rows if row.disk == disk.name]

    async def ask(self) -> None:
        until_s = trio.current_time() + SOURCE_S
        for disk in self.subject.selection.chosen:
            choice = Choice(only=(disk.name,), command=self.subject.choice.command)
            alone = replace(self.subject, selection=Selection((disk,), ()), choice=choice)
            self.rows.append(Row(disk.name, self.kind, await self._answer(alone, until_s)))
        self.whole = service.whole(self.rows) or await self._answer(self.subject, until_s)

    async def _answer(self, subject: sources.Subject, until_s: float) -> Service | Refusal:
        warnings: list[str] = []
        within_s = max(0.0, min(LOOK_S, until_s - trio.current_time()))
        try:
            with trio.fail_after(within_s):
                if refused := await self.source.why_not(subject.domain):
                    raise refused
                planned = await planning.judged(self.source, replace(subject, warn=warnings.append))
        except trio.TooSlowError:
            if within_s < LOOK_S:
                return Refusal(f"not looked at to the end: {SOURCE_S:g} s were not enough for all disks", _DMESG)
            return Refusal(f"no answer within {LOOK_S:g} s", _DMESG)
        except SnapmountError as error:
            return Refusal(error.message.removeprefix(f"{subject.domain.name}: "), error.remedy)
        return Service(planned.cost, tuple(warnings))


# -- programs ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tool:
    """What storage drivers call, and for which images."""

    program: str
    package: str
    would: str
    serves: Callable[[str], Awaitable[bool]]  # given an image's path


async def lacking(disks: Sequence[DiskDefinition]) -> tuple[Lack, ...]:
    """The programs that this host lacks of those that would serve these disks.  Only root can clone with them."""
    missing = [tool for tool in _TOOLS if os.geteuid() == 0 and not programs.has(tool.program)]
    paths = [(disk.name, str(disk.origin)) for disk in disks if disk.kind in ("file", "block") and not disk.is_readonly]
    served = {tool: tuple([name for name, path in paths if await _serves(tool, path)]) for tool in missing}
    return tuple(Lack(tool.program, tool.package, names, tool.would) for tool, names in served.items() if names)


async def _serves(tool: _Tool, path: str) -> bool:
    try:
        with trio.fail_after(FILES_S):
            return await tool.serves(path)
    except (OSError, SnapmountError, trio.TooSlowError):  # of which the rows tell
        return False


async def _is_on_btrfs(path: str) -> bool:
    return await blocking.call(FILES_S, _lies_on_btrfs, path)


def _lies_on_btrfs(path: str) -> bool:
    return files.why_no_file(path) is None and files.fstype(os.path.realpath(path)) == "btrfs"


async def _is_logical_volume(path: str) -> bool:
    device = await devicemapper.at(path)
    return device is not None and device.uuid.startswith("LVM-")


_TOOLS = (
    _Tool("btrfs", "btrfs-progs", "take one snapshot of their subvolume, whatever their extents,", _is_on_btrfs),
    _Tool("lvs", "lvm2", "take snapshots of logical volumes", _is_logical_volume),
    _Tool("dmsetup", "dmsetup", "look after thin pools and snapshots", _is_logical_volume),
)
