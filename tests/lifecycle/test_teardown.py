"""The end of a snapshot comes, or is an error that says what is left: it does not hang where a file system does."""

from __future__ import annotations

import threading
from pathlib import Path
from unittest.mock import Mock

import pytest

from snapmount.core.lifecycle import State
from snapmount.errors import LeftoverError, StateError
from snapmount.host import mounts
from snapmount.lifecycle import adoption, teardown
from snapmount.records.record import Record
from snapmount.records.store import Store
from snapmount.sources.pull import job, source, state
from snapmount.sources.pull.scratch import files

from ..rig.records import a_record, by_pull


async def test_scratch_files_that_cannot_be_removed_for_a_hung_file_system_are_left_over(
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    hang: threading.Event,
) -> None:
    async def end(record: Record) -> None:
        """The job has ended."""

    monkeypatch.setattr(job, "end", end)
    monkeypatch.setattr(files, "remove", lambda _: hang.wait())
    monkeypatch.setattr(source, "REMOVE_S", 0.05)
    record = by_pull(a_record(), scratch=str(tmp_path / "scratch"), socket=str(tmp_path / "socket"))
    lease = store.lease(record)
    with pytest.raises(
        LeftoverError, match=f"^.*: {state.of(record).scratch}: its file system did not answer within 0.05 s"
    ) as caught:
        await teardown.tear_down(lease)
    assert f"rm -rf {state.of(record).scratch}" in caught.value.message
    assert lease.record.state is State.LEFTOVER


async def test_a_mountpoint_that_hangs_is_not_waited_for_for_ever(
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    hang: threading.Event,
) -> None:
    monkeypatch.setattr(mounts, "check_mountpoint", lambda _: hang.wait())
    monkeypatch.setattr(adoption, "CHECK_S", 0.05)
    lease = store.lease(a_record())
    with pytest.raises(StateError, match=f"^{lease.record.mountpoint}: its file system did not answer within 0.05 s"):
        await adoption._prepare(lease, Mock())
