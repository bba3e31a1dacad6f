"""The agent in a VM's guest (qemu-guest-agent), which libvirt speaks to."""

from __future__ import annotations

from typing import Any

import libvirt

from ..core import names
from ..errors import MissingError, StateError, UnreachableError
from .calls import CALL_S, call, change, explained

AGENT_S = 15.0  # libvirt itself waits 5 s for its first word

_AGENT_COMMAND_FAILED = getattr(libvirt, "VIR_ERR_AGENT_COMMAND_FAILED", None)  # of libvirt since 10


class Agent:
    """The guest agent of a VM, be it there or not."""

    def __init__(self, handle: Any, vm: str) -> None:
        self._handle = handle  # of the VM
        self._vm = vm  # its name

    async def check(self) -> None:
        """Raise MissingError if it does not answer."""
        try:
            await call("ask the guest agent for its time", self._handle.getTime, deadline_s=AGENT_S)
        except (libvirt.libvirtError, UnreachableError) as error:
            if isinstance(error, libvirt.libvirtError) and _has_answered(error):
                return
            raise MissingError(
                f"{self._vm}: the guest's file systems cannot be frozen: {error}",
                "install and start qemu-guest-agent in the guest, or do without --quiesce",
            ) from error

    async def freeze(self) -> None:
        """Freeze the guest's file systems.

        Raises StateError if it refuses: they are not frozen by this.  They may be, or still become so, where
        UnreachableError is raised.
        """
        try:
            await change("freeze the guest's file systems", self._handle.fsFreeze)
        except libvirt.libvirtError as error:
            message = f"{self._vm}: the guest's file systems cannot be frozen: {error}"
            if not _has_answered(error):
                raise UnreachableError(message) from error
            if not is_disabled(str(error)):
                raise StateError(message, "see the guest agent's log, or do without --quiesce") from error
            raise await self._why_disabled() from error

    async def _why_disabled(self) -> StateError:
        """The error where the agent does not obey the command to freeze.

        While file systems are frozen it obeys hardly any (ga_command_is_blocked() in QEMU's qga/main.c, and names no
        reason from QEMU 10.0 on); else its configuration forbids this one.
        """
        message = f"{self._vm}: the guest's file systems cannot be frozen"
        try:
            await call("ask the guest agent for its time", self._handle.getTime, deadline_s=AGENT_S)
        except libvirt.libvirtError as error:
            if _has_answered(error) and is_disabled(str(error)):
                thaw = names.command("virsh", "domfsthaw", self._vm)
                return StateError(
                    f"{message}: they are frozen already, by another program",
                    f"wait until that has thawed them ({thaw}, if it has died), or do without --quiesce",
                )
        except UnreachableError:
            pass
        return StateError(
            f"{message}: the guest agent's configuration does not allow it",
            "allow guest-fsfreeze-freeze and guest-fsfreeze-thaw in the guest (qemu-ga.conf), or do without --quiesce",
        )

    async def thaw(self, deadline_s: float = CALL_S) -> None:
        """Thaw the guest's file systems; they need not be frozen.  Raises UnreachableError."""
        remedy = names.command("virsh", "domfsthaw", self._vm)
        try:
            await call("thaw the guest's file systems", self._handle.fsThaw, deadline_s=deadline_s)
        except libvirt.libvirtError as error:
            raise UnreachableError(f"{self._vm}: the guest's file systems cannot be thawed: {error}", remedy) from error
        except UnreachableError as error:
            raise UnreachableError(f"{self._vm}: {error.message}", remedy) from error

    async def answers(self) -> bool:
        """Whether it does, within a time that is enough for one that is there.

        Raises UnreachableError if the connection is closed, since libvirt was restarted for instance: one that is
        made anew can tell.
        """
        try:
            await call("ask the guest agent for its time", self._handle.getTime, deadline_s=AGENT_S)
        except UnreachableError:
            return False  # libvirt waits for ever for an agent that was there and has got stuck
        except libvirt.libvirtError as error:
            with explained(f"{self._vm}: ask whether libvirt is there"):
                is_connected = await call("ask whether libvirt is there", self._handle.connect().isAlive)
            if not is_connected:
                raise UnreachableError(f"{self._vm}: the connection to libvirt is closed: {error}") from error
            return False
        return True


def is_disabled(refusal: str) -> bool:
    """Whether the agent refuses that command now, whatever its arguments (do_qmp_dispatch() in QEMU's
    qapi/qmp-dispatch.c).

    'The command guest-... has been disabled for this instance', since QEMU 5.2 'Command guest-... has been disabled:
    the agent is in frozen state', since 10.0 '...: the command is not allowed'.
    """
    return "has been disabled" in refusal


def _has_answered(error: libvirt.libvirtError) -> bool:
    """Whether this is the guest agent's own refusal; else nobody has answered, or it is not known what came of it."""
    if error.get_error_domain() != libvirt.VIR_FROM_QEMU:
        return False
    # an older libvirt quotes the command: "unable to execute QEMU agent command 'guest-...': ..."
    is_quoted = error.get_error_code() == libvirt.VIR_ERR_INTERNAL_ERROR and "'guest-" in str(error)
    return is_quoted or error.get_error_code() == _AGENT_COMMAND_FAILED
