"""libvirt's connections, by its own test driver, which needs no daemon."""

from __future__ import annotations

import pytest

from snapmount import hypervisor
from snapmount.errors import NotFoundError


async def test_a_vm_name_that_is_no_utf_8_is_not_found() -> None:
    async with hypervisor.connected("test:///default") as connection:
        with pytest.raises(NotFoundError):
            await connection.domain("vm\udcff")
