"""What is shown of a snapshot, as text."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from snapmount.boot.check import Came, WaitFor
from snapmount.boot.scratchvm import ScratchVm
from snapmount.cli import present
from snapmount.core.lifecycle import State
from snapmount.host import glances, usage
from snapmount.host.processes import Process
from snapmount.records.store import Store
from snapmount.sources.pull.figures import Figures
from snapmount.sources.pull.space import ScratchPolicy

from ..rig.records import ID, OTHER_ID, UUID, a_record, a_snapshot, by_pull


def test_what_take_says_cannot_steer_the_terminal(store: Store) -> None:
    record = store.lease(a_record(a_snapshot(vm="vm\x9b2J\u202e"), "/mnt/\x1b[2J")).record
    shown = present.Shown(record, store)
    for text in (shown.taken(), shown.details(), present.listing([shown])):
        assert all(line.isprintable() for line in text.splitlines())
        assert "\x1b" not in text


@pytest.fixture
def hung(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """The file systems of all scratch directories hang; yields what has been looked at."""
    looked, go_on = list[Path](), threading.Event()

    def hang(path: Path) -> int:
        looked.append(path)
        go_on.wait()
        return 0

    monkeypatch.setattr(usage, "used_bytes", hang)
    monkeypatch.setattr(usage, "free_bytes", hang)
    monkeypatch.setattr(glances, "GLANCE_S", 0.05)
    monkeypatch.setattr(glances, "_hung", set())
    yield looked
    go_on.set()


def test_a_scratch_file_system_that_hangs_is_waited_for_once_and_not_for_long(
    store: Store,
    hung: list[Path],
) -> None:
    records = [store.lease(by_pull(a_record(a_snapshot(each)), scratch=f"/x/{each}")).record for each in (ID, OTHER_ID)]
    shown = [present.Shown(record, store) for record in records]
    before = time.monotonic()
    documents = json.loads(json.dumps([each.document() for each in shown]))
    assert {(each["scratch"]["used_bytes"], each["scratch"]["free_bytes"]) for each in documents} == {(None, None)}
    assert present.listing(shown).splitlines()[1].split()[6] == "-"
    assert "an unknown amount used" in shown[0].details()
    assert len(hung) == 1
    assert time.monotonic() - before < glances.GLANCE_S * 100


def test_what_a_device_holds_is_not_told_when_nobody_measures_it(store: Store) -> None:
    """libvirt told it to the server, which is dead."""
    policy = ScratchPolicy(devices=(("vda", "/dev/null"),))
    record = store.lease(by_pull(a_record(), policy=policy)).record
    assert present.Shown(record, store).document()["scratch"]["used_bytes"] is None


@pytest.mark.parametrize(
    ("wait_for", "told"),
    [
        ("agent", "its guest agent has answered after 12s"),
        ("login: $", "its console has shown 'login: $' after 12s"),
        ("12s", "it still runs after 12s"),
    ],
)
def test_boot_tells_when_what_was_waited_for_has_come_and_how_to_end_it(wait_for: str, told: str) -> None:
    scratch = ScratchVm("vm1-scratch-c17c", UUID, "kvm", "/y", False, Process(1, 1, "boot"))
    lines = present.booted(scratch, a_record(), Came(WaitFor.parse(wait_for), 12.7)).splitlines()
    assert told in lines
    assert lines[-1].endswith("virsh -c qemu:///system destroy vm1-scratch-c17c")


@pytest.mark.parametrize(
    ("asked_s", "left_s", "told"),
    [(3600.0, 3598.7, "1h"), (3600.0, 1000.0, "16m 39s"), (None, 3599.9, "59m 59s"), (90.0, 89.9, "1m 30s")],
    ids=["new", "re-attached", "not asked", "short"],
)
def test_take_tells_of_the_time_that_was_asked_for(
    store: Store, asked_s: float | None, left_s: float, told: str
) -> None:
    record = store.lease(replace(a_record(), expires_s=time.monotonic() + left_s)).record
    text = present.Shown(record, store, expire_s=asked_s).taken()
    assert f"it ends by itself in {told}\n" in text


def test_the_list_tells_when_a_snapshot_ends_and_fits_a_usual_terminal(store: Store) -> None:
    figures = Figures(time.monotonic(), 1536 << 20, 12.5 * (1 << 20), 4000.0)
    for number, snapshot_id in enumerate((ID, OTHER_ID)):
        record = a_record(a_snapshot(snapshot_id, "webserver1"), "/mnt/webserver1")
        expires_s = time.monotonic() + 7000 if number else None
        record = store.lease(replace(record, state=State.ACTIVE, expires_s=expires_s)).record
        figures.write(store.path(record.id))
    listed = present.listing([present.Shown(record, store) for record in store.load_all()[0]])
    header, *rows = listed.splitlines()
    assert header.split("  ")[0] == "ID"
    assert [word for word in header.split() if word in ("EXPIRES", "LEFT")] == ["EXPIRES", "LEFT"]
    assert "SCRATCH LEFT" in header
    assert sorted(row[header.index("EXPIRES") :].split("  ")[0] for row in rows) == ["-", "1h 56m"]
    assert max(map(len, [header, *rows])) <= 120, listed
