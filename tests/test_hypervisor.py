"""libvirt's connections, by its own test driver, which needs no daemon."""

from __future__ import annotations

from dataclasses import replace

import pytest

from snapmount import hypervisor
from snapmount.core import scratchdomain
from snapmount.errors import NotFoundError

from .test_scratchdomain import WISH


async def test_a_vm_name_that_is_no_utf_8_is_not_found() -> None:
    async with hypervisor.connected("test:///default") as connection:
        with pytest.raises(NotFoundError):
            await connection.domain("vm\udcff")


DOMAIN = "<domain type='test'><name>vm1</name><memory>1024</memory><os><type>hvm</type></os></domain>"


async def test_a_scratch_vm_is_known_by_its_mark() -> None:
    async with hypervisor.connected("test:///default") as connection:
        original = await connection.start(DOMAIN, persistent=False)
        assert await original.scratch_vm_of() is None
        derived = scratchdomain.derive(await original.xml(), replace(WISH, accelerator="test", disks={}))
        scratch = await connection.start(derived.xml, persistent=False)
        assert await scratch.scratch_vm_of() == WISH.snapshot
        for each in (scratch, original):
            await each.stop()
        assert await scratch.scratch_vm_of() is None, "it has ended"
