"""The journal says whose a directory is, and nothing that it was not asked to say."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from snapmount.core.document import from_document, to_document
from snapmount.errors import SpaceError, StateError
from snapmount.host.identity import Host
from snapmount.records import journal
from snapmount.records.journal import Entry
from snapmount.records.record import Record
from snapmount.records.store import Store
from snapmount.sources.pull import state

from ..rig.records import ID, OTHER_ID, a_record, a_snapshot
from ..strategies import PROPERTY, json_values


def directory_of(record: Record) -> str:
    return f"/somewhere/snapmount-{record.id}"


def write(record: Record, store: Store, owner_uid: int) -> None:
    trio.run(journal.write, record, store, directory_of(record), owner_uid)


def test_what_was_written_is_read_and_is_private_and_gone_when_it_is_forgotten(
    scratch_parent: Path, store: Store
) -> None:
    record = a_record()
    write(record, store, 64055)
    ((entry,), broken) = journal.load_all()
    assert broken == {}
    assert (entry.directory, entry.snapshot, entry.owner_uid) == (directory_of(record), ID, 64055)
    assert (entry.vm_uuid, state.of(entry).socket, entry.runtime) == (
        record.snapshot.vm_uuid,
        state.of(record).socket,
        str(store.directory),
    )
    assert entry.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert entry.host == Host.this()
    assert entry.mount == "/"
    assert [path.name for path in scratch_parent.iterdir()] == [f"snapmount-{ID}.json"]
    assert journal.path(entry.directory).stat().st_mode & 0o777 == 0o600
    journal.forget(entry.directory)
    assert not scratch_parent.exists()
    journal.forget(entry.directory)


def test_a_broken_entry_hides_no_other(scratch_parent: Path, store: Store) -> None:
    record, other = a_record(), a_record(a_snapshot(OTHER_ID))
    for each in (record, other):
        write(each, store, 0)
    path = journal.path(directory_of(record))
    path.write_bytes(path.read_bytes()[:50])
    entries, broken = journal.load_all()
    assert [entry.snapshot for entry in entries] == [OTHER_ID]
    assert [(each, type(error)) for each, error in broken.items()] == [(path, StateError)]


def test_an_entry_under_the_name_of_another_is_refused(scratch_parent: Path, store: Store) -> None:
    record = a_record()
    write(record, store, 0)
    own = journal.path(directory_of(record))
    own.rename(own.with_name(f"snapmount-{OTHER_ID}.json"))
    entries, broken = journal.load_all()
    assert entries == []
    assert f"of another directory, {directory_of(record)}" in str(next(iter(broken.values())))


def test_where_it_cannot_be_written_nothing_is_left(scratch_parent: Path, store: Store) -> None:
    scratch_parent.mkdir()
    (scratch_parent / f"snapmount-{ID}.json").mkdir()
    with pytest.raises(SpaceError, match=f"tells whose {directory_of(a_record())} is, cannot be written"):
        write(a_record(), store, 0)
    assert os.listdir(scratch_parent) == [f"snapmount-{ID}.json"]


def test_what_is_written_is_on_the_disk_before_it_has_its_name_and_so_is_the_name_then(
    scratch_parent: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power cut leaves an empty file, and scratch files that nobody owns."""
    synced: list[tuple[str, bool]] = []
    fsync, entry = os.fsync, journal.path(directory_of(a_record()))

    def note(descriptor: int) -> None:
        fsync(descriptor)
        synced.append((os.readlink(f"/proc/self/fd/{descriptor}"), entry.exists()))

    monkeypatch.setattr(os, "fsync", note)
    write(a_record(), store, 0)
    assert synced == [(f"{entry}.new", False), (str(entry.parent), True)]


@PROPERTY
@given(json_values)
def test_any_other_json_is_refused(document: Any) -> None:
    with pytest.raises(ValueError, match=r"version|not an object"):
        from_document(Entry, document)


@PROPERTY
@given(st.sampled_from(["version", "devices", "socket", "directory"]), json_values)
def test_an_entry_of_the_version_before_with_anything_in_it_is_read_or_refused(key: str, value: Any) -> None:
    document = {"version": 2, "directory": f"/x/snapmount-{ID}", "owner_uid": 0, "snapshot": ID, "socket": "/s"}
    document |= {"devices": ["/dev/x"], "host": to_document(Host.this())}
    rest = ("mount", "runtime", "vm_name", "vm_uuid", "connect", "mount_source", "boot_id")
    document |= dict.fromkeys(rest, "")
    assert state.of(from_document(Entry, document)).policy.devices == (("", "/dev/x"),)
    with contextlib.suppress(ValueError):
        from_document(Entry, document | {key: value})


@PROPERTY
@given(st.text() | st.sampled_from(["/", "/etc", f"/x/snapmount-{ID}/..", f"/x/../snapmount-{ID}", f"snapmount-{ID}"]))
def test_only_a_directory_that_is_named_as_ours_can_be_meant(directory: str) -> None:
    document = {"version": journal.VERSION, "directory": directory, "owner_uid": 0, "snapshot": ID, "source": {}}
    document["host"] = to_document(Host.this())
    rest = ("mount", "runtime", "vm_name", "vm_uuid", "connect", "mount_source", "boot_id")
    with contextlib.suppress(ValueError):
        entry = from_document(Entry, json.loads(json.dumps(document | dict.fromkeys(rest, ""))))
        assert Path(entry.directory).name == f"snapmount-{ID}"
        assert os.path.isabs(entry.directory)
