"""Calls that hang end at their deadline, and keep no other kind of calls from being made, however many they are."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import trio

from snapmount import blocking
from snapmount.errors import UnreachableError
from snapmount.hypervisor import calls

MANY = 100
SOON_S = 0.01


@pytest.fixture
def hang() -> Iterator[threading.Event]:
    """What waits for it hangs until the end of the test."""
    event = threading.Event()
    yield event
    event.set()


async def libvirt_hangs(hang: threading.Event) -> None:
    with pytest.raises(UnreachableError, match=r"^libvirt did not answer within 0.01 s: ask$"):
        await calls.call("ask", hang.wait, deadline_s=SOON_S)


async def host_hangs(hang: threading.Event) -> None:
    with pytest.raises(trio.TooSlowError):
        await blocking.call(SOON_S, hang.wait)


async def test_libvirt_calls_that_hang_leave_the_host_to_be_looked_at(hang: threading.Event) -> None:
    """The scratch space must be watched on."""
    for _ in range(MANY):
        await libvirt_hangs(hang)
    assert await blocking.call(30, lambda: "looked") == "looked"
    assert (await blocking.run(30, ["echo", "run"])).stdout == b"run\n"


async def test_file_systems_that_hang_leave_libvirt_to_be_called_and_programs_to_be_run(hang: threading.Event) -> None:
    for _ in range(MANY):
        await host_hangs(hang)
    assert await calls.call("ask", lambda: "asked") == "asked"
    assert (await blocking.run(30, ["echo", "run"])).stdout == b"run\n"
