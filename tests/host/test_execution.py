"""Programs that must not be killed are asked to end, and else left to end by themselves."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from snapmount.errors import MissingError, StateError
from snapmount.host import execution
from snapmount.host.execution import unkilled_output

from ..rig.libvirtd import wait_for

STUBBORN = 'trap "" TERM; : >begun; read line <fifo; echo late; echo late >&2; echo "$line" >made'


async def test_what_it_prints_is_returned_and_what_it_complains_of_is_told() -> None:
    assert await unkilled_output(["sh", "-c", "echo out"], 30, "x", StateError) == b"out\n"
    with pytest.raises(StateError, match=r"^x cannot be made: no$"):
        await unkilled_output(["sh", "-c", "echo no >&2; exit 3"], 30, "x cannot be made", StateError)
    with pytest.raises(StateError, match=r"^x cannot be made: false has failed with exit status 1$"):
        await unkilled_output(["false"], 30, "x cannot be made", StateError)


async def test_one_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(execution.PACKAGES, "snapmount-test-none", "none")
    with pytest.raises(MissingError, match="snapmount-test-none is missing"):
        await unkilled_output(["snapmount-test-none"], 30, "x", StateError)


async def test_one_that_takes_too_long_is_asked_to_end() -> None:
    with pytest.raises(StateError, match=r"^x: sleep has not ended within 0.01 s$"):
        await unkilled_output(["sleep", "1000"], 0.01, "x", StateError)


async def test_one_that_puts_that_off_goes_on_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "ENDING_S", 0.01)
    os.mkfifo(tmp_path / "fifo")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: unkilled_output(["sh", "-c", STUBBORN], 30, "x", StateError, cwd=tmp_path))
        while not (tmp_path / "begun").exists():
            await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert not (tmp_path / "made").exists()
    (tmp_path / "fifo").write_text("all of it\n")
    wait_for(lambda: (tmp_path / "made").exists() and (tmp_path / "made").read_text() == "all of it\n", "it has ended")
