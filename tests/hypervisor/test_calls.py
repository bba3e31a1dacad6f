"""A connection is not closed under a call."""

from __future__ import annotations

import threading

import libvirt
import pytest
import trio

from snapmount.hypervisor import calls

DRIVER = "test:///default"  # libvirt's own, which needs no daemon


async def test_a_connection_is_closed_when_the_call_that_was_left_behind_has_ended(hang: threading.Event) -> None:
    connection = libvirt.open(DRIVER)
    closed = trio.Event()

    def look_up(using: libvirt.virConnect) -> int:
        hang.wait()
        number: int = using.numOfDomains()
        return number

    async def close() -> None:
        await calls.close(connection)
        closed.set()

    async with trio.open_nursery() as nursery:
        async with trio.open_nursery() as cancelled:
            cancelled.start_soon(calls.call, "count", look_up, connection)
            while not calls.USES.has(connection):
                await trio.sleep(0.01)
            cancelled.cancel_scope.cancel()
        nursery.start_soon(close)
        await trio.testing.wait_all_tasks_blocked()
        assert connection.isAlive()
        assert not closed.is_set()
        hang.set()
        await closed.wait()
    assert not calls.USES.has(connection)


async def test_one_whose_call_never_ends_is_left_to_who_has_it(
    hang: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = libvirt.open(DRIVER)
    domain = connection.lookupByName("test")
    monkeypatch.setattr(calls, "CLOSE_S", 0.1)
    monkeypatch.setattr(type(domain), "isActive", lambda _: hang.wait())
    with trio.move_on_after(0.1):
        await calls.call("look", domain.isActive)
    await calls.close(connection)
    assert connection.isAlive()
