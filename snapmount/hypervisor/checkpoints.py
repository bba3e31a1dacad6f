"""A VM's checkpoints in libvirt, of which each is a bitmap in every qcow2 image that is part of it.

libvirt keeps a description of each beside the images.  While there is one, a VM can neither be undefined nor renamed,
so ours are described to libvirt only while it must know of them; the bitmaps need no description to go on recording.
"""

from __future__ import annotations

import re
from typing import Any

import libvirt

from ..core import checkpointxml
from ..errors import UnreachableError
from .calls import call, change

_REDEFINE = libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE
_VALIDATE = libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE_VALIDATE
_METADATA_ONLY = libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY


class Checkpoints:
    """The checkpoints of one VM that libvirt knows of."""

    def __init__(self, handle: Any, vm_name: str) -> None:
        self._handle = handle
        self._vm_name = vm_name

    async def description(self, name: str) -> str | None:
        """libvirt's XML of the checkpoint; None if it knows none of that name.  Raises UnreachableError."""
        found = await self._find(name)
        if found is None:
            return None
        secure = libvirt.VIR_DOMAIN_CHECKPOINT_XML_SECURE  # to define it again takes all
        return str(await self._answered("read a checkpoint", call, found.getXMLDesc, secure))

    async def describe(self, description: str) -> list[str]:
        """Let libvirt know of a checkpoint again, for those of its disks whose bitmaps are whole.

        Returns the disks whose bitmap is missing or broken.  The VM runs.  Raises UnreachableError.
        """
        broken: list[str] = []
        marked = checkpointxml.marked_disks(description)
        while marked:
            try:
                only = checkpointxml.only(description, marked)
                await change("define a checkpoint again", self._handle.checkpointCreateXML, only, _REDEFINE | _VALIDATE)
                break
            except libvirt.libvirtError as error:
                if error.get_error_code() != libvirt.VIR_ERR_CHECKPOINT_INCONSISTENT:
                    raise self._failed("define a checkpoint again", error) from error
                named = _named(error, marked)
                broken += named
                marked = [disk for disk in marked if disk not in named]
        return broken

    async def forget(self, name: str) -> None:
        """Let libvirt know no more of it; its bitmaps stay.  None of that name is fine.  Raises UnreachableError."""
        found = await self._find(name)
        if found is not None:
            await self._answered("forget a checkpoint", change, found.delete, _METADATA_ONLY)

    async def delete(self, name: str, description: str) -> None:
        """Remove its bitmaps, also broken ones, and let libvirt know no more of it.  Idempotent; the VM runs.

        libvirt refuses to delete one that lacks a bitmap, so each disk is tried by itself.  Raises UnreachableError.
        """
        await self.forget(name)
        for disk in checkpointxml.marked_disks(description):
            only = checkpointxml.only(description, [disk])
            await self._answered("define a checkpoint again", change, self._handle.checkpointCreateXML, only, _REDEFINE)
            found = await self._find(name)
            if found is None:
                continue
            try:
                await change("delete a checkpoint", found.delete)
            except libvirt.libvirtError as error:
                if error.get_error_code() != libvirt.VIR_ERR_INTERNAL_ERROR:  # 'bitmap not found'
                    raise self._failed("delete a checkpoint", error) from error
                await self.forget(name)

    async def _find(self, name: str) -> Any | None:
        try:
            return await call("look for a checkpoint", self._handle.checkpointLookupByName, name)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_CHECKPOINT:
                return None
            raise self._failed("look for a checkpoint", error) from error

    async def _answered(self, what: str, how: Any, function: Any, *args: Any) -> Any:
        try:
            return await how(what, function, *args)
        except libvirt.libvirtError as error:
            raise self._failed(what, error) from error

    def _failed(self, what: str, error: libvirt.libvirtError) -> UnreachableError:
        return UnreachableError(f"{self._vm_name}: {what}: {error}")


def _named(error: libvirt.libvirtError, disks: list[str]) -> list[str]:
    """Whose bitmap libvirt complains of, as far as its message names disks; else all of them."""
    return [disk for disk in disks if re.search(rf"\b{re.escape(disk)}\b", str(error))] or list(disks)
