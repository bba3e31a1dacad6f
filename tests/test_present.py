"""What is shown of a snapshot, as text."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from snapmount import present
from snapmount.core.space import Terms
from snapmount.scratch import directories, glances
from snapmount.state import Store

from .rig.records import ID, OTHER_ID, a_record, a_snapshot


def test_what_take_says_cannot_steer_the_terminal(store: Store) -> None:
    record = store.claim(a_record(a_snapshot(vm="vm\x9b2J\u202e"), "/mnt/\x1b[2J")).record
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

    monkeypatch.setattr(directories, "used_bytes", hang)
    monkeypatch.setattr(directories, "free_bytes", hang)
    monkeypatch.setattr(glances, "GLANCE_S", 0.05)
    monkeypatch.setattr(glances, "_hung", set())
    yield looked
    go_on.set()


def test_a_scratch_file_system_that_hangs_is_waited_for_once_and_not_for_long(
    store: Store,
    hung: list[Path],
) -> None:
    records = [store.claim(replace(a_record(a_snapshot(each)), scratch=f"/x/{each}")).record for each in (ID, OTHER_ID)]
    shown = [present.Shown(record, store) for record in records]
    before = time.monotonic()
    documents = json.loads(json.dumps([each.document() for each in shown]))
    assert {(each["scratch"]["used_bytes"], each["scratch"]["free_bytes"]) for each in documents} == {(None, None)}
    assert present.listing(shown).splitlines()[1].split()[5] == "-"
    assert "an unknown amount used" in shown[0].details()
    assert len(hung) == 1
    assert time.monotonic() - before < glances.GLANCE_S * 100


def test_what_a_device_holds_is_not_told_when_nobody_measures_it(store: Store) -> None:
    """libvirt told it to the server, which is dead."""
    terms = Terms(devices=(("vda", "/dev/null"),))
    record = store.claim(replace(a_record(), terms=terms)).record
    assert present.Shown(record, store).document()["scratch"]["used_bytes"] is None
