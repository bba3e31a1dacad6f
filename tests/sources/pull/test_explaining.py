"""Why a backup job has ended is told as far as it is known, and told again when more is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from snapmount.sources.pull import job

from ...rig.records import a_record


class Ending:
    """A VM whose QEMU is being destroyed: it tells libvirt at first that its guest has shut it down."""

    def __init__(self) -> None:
        self._looks = 0

    async def domain_by_uuid(self, _uuid: str) -> Ending:
        self._looks += 1
        return self

    async def is_shutting_down(self) -> bool:
        return True

    async def has_job_at(self, _socket: str) -> bool:
        return False

    async def why_shut_off(self) -> str | None:
        return "was destroyed" if self._looks > 1 else None


async def test_a_vm_that_is_destroyed_may_seem_to_be_shut_down_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    @asynccontextmanager
    async def connected(_uri: str) -> AsyncIterator[Ending]:
        yield Ending()

    monkeypatch.setattr(job, "connected", connected)
    told: list[str] = []
    await job.explain_loss(a_record(), told.append)
    assert told == ["vm1 was shut down", "vm1 was destroyed"]
