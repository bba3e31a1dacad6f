"""Calls that hang end at their deadline, and keep no other kind of calls from being made, however many they are."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import trio

from snapmount.errors import LeftoverError, SpaceError, StateError, UnreachableError
from snapmount.host import blocking
from snapmount.hypervisor import calls

MANY = 100
SOON_S = 0.01


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


async def test_what_becomes_of_a_look_at_a_path_is_said_in_words(hang: threading.Event, tmp_path: Path) -> None:
    there, gone = tmp_path / "there", tmp_path / "gone"
    there.write_text("content")
    assert await blocking.on_path(there, 30, there.read_text) == "content"
    with pytest.raises(SpaceError, match=r"^/srv: its file system did not answer within 0\.01 s$") as slow:
        await blocking.on_path("/srv", SOON_S, hang.wait, kind=SpaceError, remedy="elsewhere")
    assert slow.value.remedy == "elsewhere"
    with pytest.raises(StateError, match=f"^{gone} cannot be read: No such file or directory$"):
        await blocking.on_path(tmp_path, 30, gone.read_bytes)
    with pytest.raises(LeftoverError, match=f"^{gone} cannot be removed: No such file or directory$"):
        await blocking.on_path(tmp_path, 30, gone.unlink, done="removed", kind=LeftoverError)
