"""The records of checkpoints, in a directory that outlives snapshots."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from snapmount.errors import LeftoverError, SpaceError, StateError
from snapmount.host import datadirectory
from snapmount.records import checkpoints

from ..core.test_checkpoint import MONDAY, TUESDAY


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of all that lasts."""
    monkeypatch.setattr(datadirectory, "path", lambda: tmp_path / "snapmount")
    return tmp_path / "snapmount"


def test_they_are_found_by_their_vm_oldest_first_and_leave_nothing(place: Path) -> None:
    other = replace(MONDAY, vm_uuid="0b7d2c39-3c5d-4b61-9cf4-0d9f1a6f8f11", vm_name="vm2")
    for each in (TUESDAY, MONDAY, other):
        checkpoints.write(each)
    assert checkpoints.of_vm(MONDAY.vm_uuid) == [MONDAY, TUESDAY]
    assert checkpoints.load(MONDAY.vm_uuid, "monday") == MONDAY
    assert checkpoints.load(MONDAY.vm_uuid, "sunday") is None
    assert checkpoints.load(MONDAY.vm_uuid, "../x") is None
    assert checkpoints.named("vm1") == TUESDAY
    assert checkpoints.named(other.vm_uuid) == other
    assert checkpoints.named("vm3") is None
    for each in (TUESDAY, MONDAY, other, other):
        checkpoints.forget(each)
    assert not place.exists()


def test_a_record_that_cannot_be_read_is_told(place: Path) -> None:
    checkpoints.write(MONDAY)
    (file,) = place.glob("checkpoints/*/monday.json")
    assert file.stat().st_mode & 0o777 == 0o600
    file.write_text("{}")
    with pytest.raises(StateError, match=r"monday\.json cannot be read"):
        checkpoints.of_vm(MONDAY.vm_uuid)


def test_a_place_that_cannot_be_written_is_told(place: Path) -> None:
    place.parent.joinpath("snapmount").mkdir()
    (place / "checkpoints").write_text("")
    with pytest.raises(SpaceError, match=r"monday\.json cannot be written"):
        checkpoints.write(MONDAY)
    with pytest.raises(LeftoverError, match="cannot be removed"):
        checkpoints.forget(MONDAY)
