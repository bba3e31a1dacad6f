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
        """Raise MissingError where it does not answer."""
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

        Raises StateError where it refuses: they are not frozen by this.  They may be, or still become so, where
        UnreachableError is raised.
        """
        try:
            await change("freeze the guest's file systems", self._handle.fsFreeze)
        except libvirt.libvirtError as error:
            message = f"{self._vm}: the guest's file systems cannot be frozen: {error}"
            if _has_answered(error):
                remedy = "wait until the program has ended that has frozen them, if one has, or do without --quiesce"
                raise StateError(message, remedy) from error
            raise UnreachableError(message) from error

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

        Raises UnreachableError where the connection is closed, since libvirt was restarted for instance: one that is
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


def _has_answered(error: libvirt.libvirtError) -> bool:
    """Whether this is the guest agent's own refusal; else nobody has answered, or it is not known what came of it."""
    if error.get_error_domain() != libvirt.VIR_FROM_QEMU:
        return False
    # an older libvirt quotes the command: "unable to execute QEMU agent command 'guest-...': ..."
    is_quoted = error.get_error_code() == libvirt.VIR_ERR_INTERNAL_ERROR and "'guest-" in str(error)
    return is_quoted or error.get_error_code() == _AGENT_COMMAND_FAILED
