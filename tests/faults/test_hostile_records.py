"""Runtime records that are broken, foreign or meant to harm: a clear error for each, and all others are listed and
deleted as if there were none.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snapmount.boot import scratchvm
from snapmount.boot.scratchvm import ScratchVm
from snapmount.cli import present
from snapmount.core.document import to_document
from snapmount.core.iscsi import Credentials
from snapmount.errors import SnapmountError, StateError
from snapmount.records import documents
from snapmount.records.record import VERSION, Record
from snapmount.records.store import Store
from snapmount.sources import kinds

from ..boot.test_scratchvm import a_vm
from ..rig import traces, vm
from ..rig.command import snapmount, snapmount_json
from ..rig.records import a_record, a_snapshot, records_of_each_source
from ..strategies import json_values

BOUNDED = settings(
    deadline=None,
    derandomize=True,
    max_examples=150,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
RECORD = to_document(a_record())
SCRATCH_VM = to_document(a_vm())
CREDENTIALS = to_document(Credentials("snapmount", "secret-secret"))


def places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each value of a JSON document."""
    yield path
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in items:
        yield from places(value, (*path, key))


def replaced(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    copy = dict(document) if isinstance(document, dict) else list(document)
    copy[path[0]] = replaced(copy[path[0]], path[1:], value)
    return copy


values = json_values | st.sampled_from(
    ["\0", "\ud800", "../../etc", "/", -1, 1 << 80, 1e300, 1e400, "2026-01-01T00:00:00Z"]
)


RECORDS = {source: to_document(record) for source, record in records_of_each_source().items()}
PLACES = [(source, path) for source, record in RECORDS.items() for path in places(record)]


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# -- any ---------------------------------------------------------------------------------------------------------------


@BOUNDED
@given(where=st.sampled_from(PLACES), value=values)
def test_a_record_with_anything_in_it_is_shown_or_refused(
    tmp_path: Path, where: tuple[str, tuple[Any, ...]], value: Any
) -> None:
    store = Store(tmp_path, kinds.check)
    source, path = where
    document = json.dumps(replaced(RECORDS[source], path, value), default=str)
    written(store.path(RECORD["snapshot"]["id"]) / "record.json", document)
    records, broken = store.load_all()
    assert len(records) + len(broken) <= 1
    for record in records:
        shown = present.Shown(record, store)
        json.dumps(shown.document())
        for text in (shown.details(), present.listing([shown])):
            assert all(line.isprintable() for line in text.splitlines())
        store.state(record)
    for error in broken:
        assert "record.json cannot be read" in error.message


@BOUNDED
@given(where=st.sampled_from(list(places(SCRATCH_VM))), value=values)
def test_a_scratch_vm_with_anything_in_it_is_shown_or_refused(
    tmp_path: Path, where: tuple[Any, ...], value: Any
) -> None:
    uuid = SCRATCH_VM["uuid"]
    written(tmp_path / "scratch-vm" / f"{uuid}.json", json.dumps(replaced(SCRATCH_VM, where, value), default=str))
    for found in scratchvm.load_all(tmp_path):
        json.dumps(found.document())
    assert len(scratchvm.load_all(tmp_path)) + len(scratchvm.unreadable(tmp_path)) == 1


@BOUNDED
@given(data=st.binary(max_size=60) | st.text(max_size=30).map(lambda text: json.dumps(text).encode()))
def test_a_file_of_any_bytes_is_an_error_that_names_it(tmp_path: Path, data: bytes) -> None:
    for name, kind in (("a", Record), ("b", ScratchVm), ("c", Credentials)):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(StateError, match=f"{tmp_path / name} cannot be read"):
            documents.read(tmp_path / name, kind)


# -- by the command ----------------------------------------------------------------------------------------------------


def by_another_user(path: Path) -> None:
    written(path, json.dumps(RECORD))
    os.chown(path, 65534, 65534)


def enormous(path: Path) -> None:
    with path.open("wb") as f:
        f.truncate(1 << 40)


BROKEN: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_text(""),
    "cut off": lambda path: path.write_text(json.dumps(RECORD)[:200]),
    "of another program": lambda path: path.write_text('{"id": 5}'),
    "newer": lambda path: path.write_text(json.dumps(RECORD | {"version": VERSION + 1})),
    "a directory": lambda path: path.mkdir(),
    "a symbolic link": lambda path: path.symlink_to("/etc/passwd"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "another's": by_another_user,
    "enormous": enormous,
    "nested": lambda path: path.write_text("[" * 200_000),
    "a text of numbers": lambda path: path.write_text("9" * 50_000),
}


@pytest.fixture
def broken(clean: None) -> Iterator[list[str]]:
    """A broken record of each kind in root's runtime directory; yields their ids."""
    ids = [f"0000{number:04x}" for number in range(len(BROKEN))]
    for snapshot_id, make in zip(ids, BROKEN.values(), strict=True):
        directory = traces.RUNTIME / snapshot_id
        directory.mkdir(parents=True)
        make(directory / "record.json")
    traces.RUNTIME.chmod(0o700)
    yield ids
    for snapshot_id in ids:
        shutil.rmtree(traces.RUNTIME / snapshot_id)
    with contextlib.suppress(OSError):  # it is gone already, or the test has failed
        traces.RUNTIME.rmdir()


@pytest.mark.vm
def test_broken_records_are_told_one_by_one_and_hide_no_other(
    writer: vm.VM, mountpoint: Path, broken: list[str]
) -> None:
    taken = snapmount_json(writer.name, mountpoint)
    done = snapmount("list", "--json", check=False)
    assert [each["id"] for each in json.loads(done.stdout)] == [taken["id"]]
    assert done.returncode == StateError.exit_code
    assert "Traceback" not in done.stderr
    complaints = done.stderr.splitlines()
    assert sorted(line.split("/")[3] for line in complaints) == sorted(broken)
    assert all(" cannot be read: " in line and line.isprintable() and len(line) < 300 for line in complaints)
    assert snapmount_json("show", taken["id"])["state"] == "active"
    for snapshot_id in broken:
        refused = snapmount("delete", snapshot_id, check=False)
        assert (refused.returncode, refused.stdout) == (StateError.exit_code, "")
        assert f"/{snapshot_id}/record.json cannot be read" in refused.stderr
    snapmount("delete", taken["id"])
    assert not os.path.ismount(mountpoint)
    assert [line for line in traces.found() if not line.startswith("directory: /run/snapmount")] == []


@pytest.mark.vm
def test_a_scratch_vm_whose_record_is_broken_is_still_ended_with_its_snapshot(writer: vm.VM, mountpoint: Path) -> None:
    taken = snapmount_json(writer.name, mountpoint)
    booted = snapmount_json("boot", taken["id"])
    other = snapmount_json("boot", taken["id"])
    record = traces.RUNTIME / taken["id"] / "scratch-vm" / f"{booted['uuid']}.json"
    record.write_text("{")

    done = snapmount("list", "--json", check=False)
    assert [each["name"] for each in json.loads(done.stdout)[0]["scratch_vms"]] == [other["name"]]
    assert done.returncode == StateError.exit_code
    assert f"{record} cannot be read" in done.stderr

    refused = snapmount("delete", taken["id"], check=False)
    assert refused.returncode == StateError.exit_code
    assert f"try: snapmount delete --force {taken['id']}" in refused.stderr
    assert os.path.ismount(mountpoint)

    snapmount("delete", "--force", taken["id"])
    listed = subprocess.run(["virsh", "-q", "list", "--all", "--name"], capture_output=True, text=True).stdout.split()
    assert not {booted["name"], other["name"]} & set(listed)
    assert not Path(booted["overlay_directory"]).exists()
    assert traces.found() == []


def test_broken_credentials_hide_nothing_else(tmp_path: Path) -> None:
    store = Store(tmp_path / "run", kinds.check)
    lease = store.lease(a_record(a_snapshot()))
    written(lease.directory / "credentials.json", '{"user": 5}')
    shown = present.Shown(lease.record, store)
    assert present.listing([shown])
    [error] = shown.faults()
    assert isinstance(error, SnapmountError)
    assert "credentials.json cannot be read" in error.message
    lease.forget()
    lease.release()
