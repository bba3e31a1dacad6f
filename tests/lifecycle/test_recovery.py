"""Which snapshots are left to be recovered."""

from __future__ import annotations

import subprocess
from dataclasses import replace

import pytest

from snapmount.core.lifecycle import State
from snapmount.host.processes import Process
from snapmount.lifecycle import recovery
from snapmount.records.record import Record

from ..rig.records import ID, OwnStore, a_record


@pytest.fixture
def dead() -> Record:
    """The record of a snapshot whose server has ended."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as server:
        process = Process.of_pid(server.pid)
    return replace(a_record(), state=State.ACTIVE, server=process)


def test_what_another_process_is_about_to_recover_is_ours_when_that_gives_it_back(
    store: OwnStore, dead: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one does that was killed: its server finds that nobody waits for it any more."""
    other, looks = store.lease(dead), []

    def is_served(snapshot_id: str) -> bool:
        looks.append(snapshot_id)
        if len(looks) == 4:
            store.leases.remove(other)
            other.release()
        return OwnStore.is_served(store, snapshot_id)

    monkeypatch.setattr(store, "is_served", is_served)
    assert recovery.is_dead(dead, store) is False
    assert recovery._is_left_dead(dead, store)


def test_what_another_process_holds_for_too_long_is_told(
    store: OwnStore, dead: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.lease(dead)
    monkeypatch.setattr(recovery, "OTHERS_S", 0.2)
    told: list[str] = []
    done = recovery.recover_all([ID], store, False, told.append)
    assert (done.recovered, done.errors) == ([], [])
    assert told == [f"snapshot {ID} is dead, in the hands of {store.holder(ID)}"]
