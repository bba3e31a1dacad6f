"""Runtime records: private, written before anything is made, tied to a living process, and gone when they are done."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from snapmount.core.document import dump, from_document, to_document
from snapmount.core.iscsi import Credentials
from snapmount.core.lifecycle import State
from snapmount.errors import NotFoundError, StateError
from snapmount.host.identity import Host
from snapmount.host.processes import Process
from snapmount.records.exclusion import exclusive
from snapmount.records.record import VERSION, Record
from snapmount.records.store import Store
from snapmount.sources import kinds
from snapmount.sources.pull import state

from ..rig.records import CREATED, ID, OTHER_ID, OTHER_UUID, UUID, OwnStore, a_record, a_snapshot
from ..strategies import PROPERTY, json_values, records

# Serves a snapshot as a server does: its record is on standard input; it says so, and waits.
SERVE = """
import json, pathlib, sys
from snapmount.core.document import from_document
from snapmount.records.record import Record
from snapmount.records.store import Store
lease = Store(pathlib.Path(sys.argv[1])).lease(from_document(Record, json.loads(sys.stdin.readline())))
print("claimed", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def served_by_another_process(store: Store, record: Record) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", SERVE, str(store.directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            print(json.dumps(to_document(record)), file=server.stdin, flush=True)
            assert server.stdout.readline() == "claimed\n"
            yield server
        finally:
            server.kill()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def write(store: Store, snapshot_id: str, content: bytes) -> Path:
    path = store.path(snapshot_id) / "record.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


# -- the shape of a record ---------------------------------------------------------------------------------------------


@PROPERTY
@given(records)
def test_a_record_is_read_back_as_it_was_written(record: Record) -> None:
    assert from_document(Record, to_document(record)) == record
    assert from_document(Record, json.loads(dump(to_document(record)))) == record


@PROPERTY
@given(json_values)
def test_any_other_json_is_refused_as_such(document: Any) -> None:
    with pytest.raises(ValueError, match=r"version|not an object"):
        from_document(Record, document)


@PROPERTY
@given(st.sampled_from(sorted(to_document(a_record()))), st.none() | st.lists(st.integers()) | st.just("other"))
def test_a_record_with_another_shape_in_its_place_raises_what_is_promised(key: str, value: Any) -> None:
    with contextlib.suppress(ValueError):
        from_document(Record, to_document(a_record()) | {key: value})


def test_an_export_s_uri_names_its_disk_and_socket() -> None:
    assert state.of(a_record()).export_uri("vda") == "nbd+unix:///vda?socket=/run/vm1.sock"


# -- writing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_nobody_else_may_look_into_the_records_whatever_the_umask(store: Store, umask: int) -> None:
    before = os.umask(umask)
    try:
        store.lease(a_record()).update(state=State.ACTIVE)
    finally:
        os.umask(before)
    assert mode(store.directory) == 0o700
    assert mode(store.path(ID)) == 0o700
    assert mode(store.path(ID) / "record.json") == 0o600
    assert mode(store.path(ID) / "lock") == 0o600


def test_a_runtime_directory_that_was_open_is_closed(store: Store) -> None:
    store.directory.mkdir(parents=True, mode=0o755)
    store.lease(a_record())
    assert mode(store.directory) == 0o700


def test_a_runtime_directory_that_is_a_symbolic_link_is_refused_and_left_alone(store: Store, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir(mode=0o755)
    store.directory.parent.mkdir()
    store.directory.symlink_to(target)
    with pytest.raises(StateError, match=f"cannot write the runtime record {store.path(ID)}: it belongs to another"):
        store.lease(a_record())
    assert mode(target) == 0o755
    assert list(target.iterdir()) == []
    assert store.directory.is_symlink()


def test_a_runtime_directory_that_cannot_be_made_is_named(store: Store, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(StateError, match=f"cannot write the runtime record {store.path(ID)}: Not a directory"):
        store.lease(a_record())


def test_a_claim_is_on_disk_and_so_is_each_update(store: Store) -> None:
    record = a_record()
    lease = store.lease(record)
    assert store.load(ID) == record
    lease.update(state=State.ACTIVE)
    lease.update(state=State.LOST, reason="vm1 was destroyed")
    assert lease.record == replace(record, state=State.LOST, reason="vm1 was destroyed")
    assert store.load(ID) == lease.record
    assert sorted(os.listdir(store.path(ID))) == ["lock", "record.json"]


def test_a_reader_of_a_record_never_sees_half_of_an_update(store: Store) -> None:
    lease = store.lease(a_record())
    with (store.path(ID) / "record.json").open("rb") as opened:
        lease.update(reason="x" * 10_000)
        assert from_document(Record, json.loads(opened.read())) == a_record()


def test_a_mountpoint_whose_name_is_no_utf_8_is_recorded_as_it_is(store: Store) -> None:
    record = a_record(mountpoint=os.fsdecode(b"/mnt/caf\xe9"))
    store.lease(record)
    assert store.load(ID) == record
    assert store.find(record.mountpoint) == record


def test_the_firmware_s_variables_are_kept_beside_it_and_nobody_else_may_read_them(store: Store) -> None:
    lease = store.lease(a_record())
    with pytest.raises(StateError, match=f"the firmware's variables {store.path(ID)}/nvram cannot be read: No such"):
        store.nvram(ID)
    lease.write_nvram(b"\xff\0")
    assert store.nvram(ID) == b"\xff\0"
    assert mode(store.path(ID) / "nvram") == 0o600


def test_forgetting_removes_everything(store: Store) -> None:
    lease = store.lease(a_record())
    store.log(ID).write_text("what the server has said")
    lease.forget()
    assert not store.directory.exists()
    assert store.directory.parent.exists()
    assert store.load(ID) is None
    assert store.load_all() == ([], [])
    lease.forget()


def test_forgetting_a_snapshot_leaves_the_others(store: Store) -> None:
    lease, other = store.lease(a_record()), a_record(a_snapshot(OTHER_ID))
    store.lease(other)
    lease.forget()
    assert os.listdir(store.directory) == [OTHER_ID]
    assert store.load(OTHER_ID) == other


def test_a_new_id_is_of_no_snapshot_that_exists(store: Store) -> None:
    ids = {store.new_id() for _ in range(20)}
    assert len(ids) == 20
    assert all(len(each) == 8 and int(each, 16) >= 0 for each in ids)


def test_an_id_that_is_taken_meanwhile_costs_the_other_snapshot_nothing(store: Store) -> None:
    record = store.lease(a_record()).record
    with pytest.raises(StateError):
        store.lease(a_record(a_snapshot(ID, vm="another")))
    assert store.load(ID) == record
    assert store.is_served(ID)


# -- the lock ----------------------------------------------------------------------------------------------------------


def test_a_snapshot_is_served_while_its_claim_is_held(store: Store) -> None:
    assert not store.is_served(ID)
    lease = store.lease(a_record())
    assert store.is_served(ID)
    assert store.is_served(ID), "looking does not take the lock away"
    lease.forget()
    assert not store.is_served(ID)


def test_what_is_served_cannot_be_taken_over(store: Store) -> None:
    store.lease(a_record())
    with store.taken_over(ID) as lease:
        assert lease is None
    assert store.is_served(ID)


def test_what_is_not_there_cannot_be_taken_over(store: Store) -> None:
    with store.taken_over(ID) as lease:
        assert lease is None
    assert not store.directory.exists()


def test_a_snapshot_whose_server_was_killed_is_dead_and_can_be_taken_over_by_one_at_a_time(store: Store) -> None:
    record = replace(a_record(), state=State.ACTIVE)
    with served_by_another_process(store, record) as server:
        assert store.is_served(ID)
        assert store.state(record) is State.ACTIVE
        with store.taken_over(ID) as lease:
            assert lease is None
        server.kill()
        server.wait()
    assert not store.is_served(ID)
    assert store.state(record) is State.DEAD
    with store.taken_over(ID) as lease:
        assert lease is not None
        assert lease.record == record
        assert store.is_served(ID)
        with store.taken_over(ID) as second:
            assert second is None
        lease.update(state=State.ENDING)
    assert not store.is_served(ID)
    assert store.load(ID) == replace(record, state=State.ENDING)


def test_who_takes_over_and_fails_lets_the_lock_go(store: Store) -> None:
    with served_by_another_process(store, a_record()):
        pass
    with pytest.raises(ZeroDivisionError), store.taken_over(ID):
        _ = 1 / 0
    assert not store.is_served(ID)
    with store.taken_over(ID) as lease:
        assert lease is not None
        lease.forget()
    assert not store.directory.exists()


def test_who_waited_for_a_snapshot_that_was_undone_meanwhile_gets_nothing(store: Store) -> None:
    with served_by_another_process(store, a_record()):
        pass
    (store.path(ID) / "record.json").unlink()
    with store.taken_over(ID) as lease:
        assert lease is None


@pytest.mark.parametrize("state", [each for each in State if each is not State.DEAD])
def test_the_state_is_what_the_record_says_while_somebody_serves_it(store: Store, state: State) -> None:
    lease = store.lease(replace(a_record(), state=state))
    assert store.state(lease.record) is state


@pytest.mark.parametrize("state", [each for each in State if each is not State.DEAD])
def test_without_a_server_a_snapshot_is_dead_unless_it_could_not_be_undone(store: Store, state: State) -> None:
    record = replace(a_record(), state=state)
    assert store.state(record) is (State.LEFTOVER if state is State.LEFTOVER else State.DEAD)


def test_a_snapshot_is_dead_until_who_takes_it_over_shows_it(store: Store) -> None:
    record = replace(a_record(), state=State.ACTIVE, server=replace(Process.of_pid(os.getpid()), start_ticks=0))
    lease = store.lease(record)
    assert store.state(lease.record) is State.DEAD
    assert store.state(replace(record, state=State.ENDING)) is State.ENDING
    lease.update(state=State.ACTIVE, server=Process.of_pid(os.getpid()))
    assert store.state(lease.record) is State.ACTIVE


def test_a_state_that_may_not_follow_is_not_written(store: Store) -> None:
    lease = store.lease(a_record())
    lease.update(state=State.ENDING)
    with pytest.raises(ValueError, match="'ending' does not become 'active'"):
        lease.update(state=State.ACTIVE)
    lease.note(State.LOST, "vm1 was destroyed")  # which comes too late
    assert store.load(ID) == replace(a_record(), state=State.ENDING)


def test_why_a_snapshot_was_lost_is_still_known_while_it_ends(store: Store) -> None:
    lease = store.lease(a_record())
    lease.update(state=State.ACTIVE)
    lease.note(State.LOST, "QEMU has closed the connection")
    lease.note(State.LOST, "vm1 was destroyed")
    lease.note(State.ENDING)
    ending = store.load(ID)
    assert ending is not None
    assert ending.why == "vm1 was destroyed"


def test_it_is_told_who_holds_a_snapshot(store: Store) -> None:
    with served_by_another_process(store, a_record()) as server:
        assert store.holder(ID) == f"process {server.pid}"
    with store.taken_over(ID):
        assert store.holder(ID) == f"process {os.getpid()}"
    assert store.holder(OTHER_ID) == "another process"


async def test_one_at_a_time_makes_records(store: Store, autojump_clock: trio.testing.MockClock) -> None:
    async with exclusive(store):
        with pytest.raises(StateError, match=f"another process has held {store.directory} for 10 s"):
            async with exclusive(store):
                pytest.fail("two at once")
        store.lease(a_record()).forget()
        assert store.directory.exists(), "not while somebody is about to make a record there"
    assert not store.directory.exists()
    async with exclusive(store):
        pass


def test_an_update_that_cannot_be_written_is_an_error_and_leaves_the_record_as_it_was(store: Store) -> None:
    lease = store.lease(a_record())
    (store.path(ID) / "record.json.new").mkdir()
    with pytest.raises(StateError, match=f"cannot write the runtime record {store.path(ID)}: Is a directory"):
        lease.update(state=State.ACTIVE)
    lease.note(State.ENDING)
    assert store.load(ID) == a_record()


def test_the_time_that_is_left_does_not_go_by_the_clock(store: Store) -> None:
    record = replace(a_record(), expires_s=time.monotonic() + 3600)
    assert record.left_s == pytest.approx(3600, abs=60)
    assert record.expires == pytest.approx(datetime.now(UTC) + timedelta(hours=1), abs=timedelta(minutes=1))
    assert replace(record, expires_s=time.monotonic() - 1).left_s == 0
    assert a_record().left_s is None
    assert a_record().expires is None
    assert replace(a_record(), expires_s=1e300).expires is None


# -- reading what is broken --------------------------------------------------------------------------------------------


def test_no_record_is_none(store: Store) -> None:
    assert store.load(ID) is None
    store.directory.mkdir(parents=True)
    assert store.load(ID) is None
    store.path(ID).mkdir()
    assert store.load(ID) is None
    store.path(OTHER_ID).write_text("a file")
    assert store.load(OTHER_ID) is None
    assert not store.is_served(OTHER_ID)
    assert store.load_all() == ([], [])


def test_a_record_that_was_cut_off_anywhere_is_an_error_that_names_it(store: Store) -> None:
    whole = dump(to_document(a_record()))
    path = write(store, ID, b"")
    for length in range(len(whole.rstrip())):
        path.write_bytes(whole[:length])
        with pytest.raises(StateError, match=f"the record {path} cannot be read"):
            store.load(ID)
    path.write_bytes(whole)
    assert store.load(ID) == a_record()


@pytest.mark.parametrize(
    "content",
    [b"[]", b"5", b"null", b'"record"', b"{}", b'{"version": 1}', b"\0\0\0\0", b"\xff\xfe", b"<domain/>"],
    ids=repr,
)
def test_a_record_of_another_program_is_an_error_that_names_it(store: Store, content: bytes) -> None:
    path = write(store, ID, content)
    with pytest.raises(StateError, match=f"the record {path} cannot be read"):
        store.load(ID)


def test_a_record_that_is_a_directory_is_an_error_that_names_it(store: Store) -> None:
    path = store.path(ID) / "record.json"
    path.mkdir(parents=True)
    with pytest.raises(StateError, match=f"the record {path} cannot be read"):
        store.load(ID)


def test_a_record_of_a_newer_version_is_not_guessed_at(store: Store) -> None:
    newer = to_document(a_record()) | {"version": VERSION + 1, "target": "iqn.2026-11.example:vm1"}
    path = write(store, ID, dump(newer))
    with pytest.raises(StateError, match=f"the record {path} cannot be read: .* another version of snapmount"):
        store.load(ID)


@pytest.mark.parametrize(
    "change", [{"state": "sleeping"}, {"server": {"pid": 1}}, {"server": None}, {"snapshot": {}}, {"more": 1}], ids=str
)
def test_a_record_with_a_fact_that_makes_no_sense_is_refused(store: Store, change: dict[str, Any]) -> None:
    path = write(store, ID, dump(to_document(a_record()) | change))
    with pytest.raises(StateError, match=f"the record {path} cannot be read"):
        store.load(ID)


def test_what_is_wrong_with_a_record_is_told_with_its_place_in_it(store: Store) -> None:
    document = to_document(a_record())
    document["snapshot"]["disks"][0]["size_bytes"] = "x"
    path = write(store, ID, dump(document))
    says = f'the record {path} cannot be read: snapshot.disks[0].size_bytes is "x", not a whole number'
    with pytest.raises(StateError, match=f"^{re.escape(says)}$"):
        store.load(ID)


def test_a_record_that_is_nested_too_deeply_is_an_error_that_names_it(store: Store) -> None:
    path = write(store, ID, b"[" * 100_000)
    with pytest.raises(StateError, match=f"the record {path} cannot be read"):
        store.load(ID)


# -- all, and one of them ----------------------------------------------------------------------------------------------


def test_all_records_come_oldest_first_with_an_error_for_each_broken_one(store: Store) -> None:
    hours = {"00000001": 3, "00000002": 1, "00000003": 2}
    for snapshot_id, hour in hours.items():
        store.lease(a_record(a_snapshot(snapshot_id, created=CREATED + timedelta(hours=hour))))
    broken = write(store, "00000000", b"{")
    write(store, "not-an-id", b"{")
    records, errors = store.load_all()
    assert [record.id for record in records] == ["00000002", "00000003", "00000001"]
    assert [type(error) for error in errors] == [StateError]
    assert str(broken) in str(errors[0])


def test_a_record_whose_time_has_no_zone_hides_no_other(store: Store) -> None:
    store.lease(a_record())
    snapshot = to_document(a_snapshot(OTHER_ID)) | {"created": "2026-11-23T12:00:00"}
    write(store, OTHER_ID, dump(to_document(a_record()) | {"snapshot": snapshot}))
    records, broken = store.load_all()
    assert len(records) + len(broken) == 2


def test_without_a_runtime_directory_there_are_no_records(store: Store) -> None:
    assert store.load_all() == ([], [])


@pytest.fixture
def two(store: Store, tmp_path: Path) -> tuple[Record, Record]:
    """Two snapshots in the store, of two VMs, at mountpoints that exist."""
    found = []
    for snapshot_id, vm, uuid in ((ID, "vm1", UUID), (OTHER_ID, "vm 2", OTHER_UUID)):
        mountpoint = tmp_path / f"mount {vm}"
        mountpoint.mkdir()
        record = a_record(a_snapshot(snapshot_id, vm, uuid), str(mountpoint.resolve()))
        found.append(store.lease(record).record)
    return found[0], found[1]


def test_a_snapshot_is_found_by_its_id_its_vm_and_its_mountpoint(store: Store, two: tuple[Record, Record]) -> None:
    for record in two:
        for word in (record.id, record.snapshot.vm_name, record.snapshot.vm_uuid, record.mountpoint):
            assert store.find(word) == record, word


def test_a_mountpoint_may_be_written_in_any_way(
    store: Store, two: tuple[Record, Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(two[1].mountpoint)
    monkeypatch.chdir(tmp_path)
    for word in ("link", "mount vm 2", "./mount vm 2/", f"{two[1].mountpoint}/../mount vm 2", str(tmp_path / "link")):
        assert store.find(word) == two[1], word


def test_what_is_not_found_is_named(store: Store, two: tuple[Record, Record]) -> None:
    for word in ("vm", "3f2a91bd", "3f2", "3F2A", "3f2a91bc0", "/", ""):
        with pytest.raises(NotFoundError, match=f"there is no snapshot .* {word!r}") as caught:
            store.find(word)
        assert caught.value.remedy == "snapmount list"


def test_a_snapshot_is_found_by_the_beginning_of_its_id(store: Store, two: tuple[Record, Record]) -> None:
    for length in range(4, 8):
        for record in two:
            assert store.find(record.id[:length]) == record
            assert store.meant(record.id[:length]) == [record]


def test_a_beginning_that_several_ids_have_is_an_error_that_lists_them(store: Store) -> None:
    for number in (1, 2):
        created = CREATED + timedelta(seconds=number)
        store.lease(a_record(a_snapshot(f"3f2a91b{number}", f"vm{number}", created=created), f"/mnt/{number}"))
    with pytest.raises(StateError, match="'3f2a' names 2 snapshots: 3f2a91b1, 3f2a91b2"):
        store.find("3f2a")
    assert store.find("3f2a91b2").snapshot.vm_name == "vm2"


def test_a_vm_of_that_name_is_meant_and_not_an_id_that_begins_so(store: Store) -> None:
    store.lease(a_record(a_snapshot(ID), "/mnt/1"))
    own = store.lease(a_record(a_snapshot(OTHER_ID, ID[:4], OTHER_UUID), "/mnt/2")).record
    assert store.find(ID[:4]) == own
    assert store.find(ID[:5]).id == ID


def test_a_record_that_cannot_be_read_is_not_passed_over_for_another_that_begins_so(store: Store) -> None:
    store.lease(a_record(a_snapshot("3f2a91b1"), "/mnt/1"))
    store.lease(a_record(a_snapshot("3f2a91b2", "vm2"), "/mnt/2"))
    (store.path("3f2a91b2") / "record.json").write_text("{")
    with pytest.raises(StateError, match="3f2a91b2"):
        store.find("3f2a")
    assert store.find("3f2a91b1").snapshot.vm_name == "vm1"


def test_of_snapshots_of_vms_of_one_name_that_at_the_connection_is_meant(store: Store) -> None:
    first = store.lease(a_record(a_snapshot(ID), "/mnt/1")).record
    other = replace(a_record(a_snapshot(OTHER_ID, uuid=OTHER_UUID), "/mnt/2"), connect="qemu:///session")
    store.lease(other)
    assert store.find("vm1", first.connect).id == ID
    assert store.find("vm1", "qemu:///session").id == OTHER_ID
    with pytest.raises(NotFoundError, match=f"'{ID}' at qemu:///session"):
        store.find(ID, "qemu:///session")


def test_where_nothing_is_to_be_listed_the_list_is_no_remedy(store: Store) -> None:
    with pytest.raises(NotFoundError) as caught:
        store.find("vm1")
    assert caught.value.remedy is None


def test_a_word_that_names_more_than_one_snapshot_is_an_error_that_lists_them(store: Store) -> None:
    store.lease(a_record(a_snapshot(ID), "/mnt/1"))
    store.lease(a_record(a_snapshot(OTHER_ID, created=CREATED + timedelta(seconds=1)), "/mnt/2"))
    with pytest.raises(StateError, match=f"'vm1' names 2 snapshots: {ID}, {OTHER_ID}") as caught:
        store.find("vm1")
    assert caught.value.remedy == f"snapmount show {ID}"
    assert store.find(OTHER_ID).id == OTHER_ID
    assert store.find("/mnt/1").id == ID


def test_a_vm_that_is_named_as_another_s_snapshot_id_is_ambiguous(store: Store) -> None:
    store.lease(a_record(a_snapshot(ID), "/mnt/1"))
    store.lease(a_record(a_snapshot(OTHER_ID, vm=ID, uuid=OTHER_UUID), "/mnt/2"))
    with pytest.raises(StateError, match="names 2 snapshots"):
        store.find(ID)


def test_a_broken_record_hides_no_other_and_is_told_of_where_none_is_found(store: Store) -> None:
    record = store.lease(a_record()).record
    path = write(store, OTHER_ID, b"{")
    assert store.find("vm1") == record
    with pytest.raises(StateError, match=f"the record {path} cannot be read"):
        store.find(OTHER_ID)


def test_root_s_records_are_in_run_and_a_user_s_in_the_user_s_runtime_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    expected = Path("/run/snapmount") if os.geteuid() == 0 else tmp_path / "snapmount"
    assert Store.of_user(kinds.check).directory == expected
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = Path("/run/snapmount") if os.geteuid() == 0 else tmp_path / ".cache" / f"snapmount-{Host.this().id}"
    assert Store.of_user(kinds.check).directory == expected, "homes may be shared by hosts"


def test_a_record_that_lasts_is_found_without_the_runtime_directory_and_leaves_nothing(
    tmp_path: Path, scratch_parent: Path
) -> None:
    directory, lasting = tmp_path / "run", tmp_path / "lasting"
    store = OwnStore(directory, lasting)
    short, long = store.lease(a_record(a_snapshot(OTHER_ID))), store.lease(a_record(), lasts=True)
    assert (short.directory, long.directory) == (directory / OTHER_ID, lasting / ID)
    assert sorted(store.ids()) == sorted([ID, OTHER_ID])
    shutil.rmtree(directory)
    after_reboot = OwnStore(directory, lasting)
    assert [record.id for record in after_reboot.load_all()[0]] == [ID]
    assert after_reboot.find(ID[:4]).id == ID
    long.forget()
    assert not lasting.exists()


def test_what_lasts_is_on_the_disk_before_it_has_its_name_and_so_is_the_name_then(
    tmp_path: Path, scratch_parent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power cut leaves a record that is empty, and clones that nobody shows again."""
    store, synced, fsync = OwnStore(tmp_path / "run", tmp_path / "lasting"), list[str](), os.fsync

    def note(descriptor: int) -> None:
        fsync(descriptor)
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))

    monkeypatch.setattr(os, "fsync", note)
    store.lease(a_record(a_snapshot(OTHER_ID))).update(state=State.ACTIVE)
    assert synced == []

    lease = store.lease(a_record(), lasts=True)
    directory = str(lease.directory)
    assert synced == [f"{directory}/record.json.new", directory, str(tmp_path / "lasting")]
    writes: list[tuple[str, Callable[[], object]]] = [
        ("record.json", lambda: lease.update(state=State.ACTIVE)),
        ("credentials.json", lambda: lease.write_credentials(Credentials("snapmount", "secret-secret"))),
        ("domain.xml", lambda: lease.write_definition("<domain/>")),
        ("nvram", lambda: lease.write_nvram(b"variables")),
    ]
    for name, write in writes:
        synced.clear()
        write()
        assert synced == [f"{directory}/{name}.new", directory]


def test_after_a_reboot_the_clock_tells_when_a_snapshot_expires() -> None:
    record = a_record()
    moment = datetime.now(UTC) + timedelta(hours=1)
    left = replace(record, expires_s=1.0, expires_at=moment, server=replace(record.server, boot_id="another"))
    assert left.left_s is not None
    assert 3500 < left.left_s <= 3600
    assert replace(left, server=record.server).has_expired, "in the same boot the clock that nobody sets does"
