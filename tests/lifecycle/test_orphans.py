"""What `recover` removes without a runtime record is this host's own, and lies where it was made."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from snapmount.host import datadirectory, mounts
from snapmount.lifecycle import orphans
from snapmount.lifecycle.orphans import Orphan
from snapmount.records import journal
from snapmount.records.journal import Entry
from snapmount.records.store import Store

from ..rig.records import ID, OTHER_ID, a_record

pytestmark = pytest.mark.usefixtures("scratch_parent")


async def left(tmp_path: Path, change: Callable[[Any], object] = lambda _: None) -> Path:
    """The scratch directory of a snapshot whose runtime record has gone; its entry in the journal is changed."""
    directory = tmp_path / f"snapmount-{ID}"
    await journal.write(a_record(), Store(tmp_path / "run"), str(directory), os.geteuid())
    _lay_out(directory, change)
    return directory


def _lay_out(directory: Path, change: Callable[[Any], object]) -> None:
    document = json.loads(entry_of(directory).read_text())
    change(document)
    entry_of(directory).write_text(json.dumps(document))
    directory.mkdir(mode=0o700)
    (directory / "vda.qcow2").write_bytes(b"QFI\xfb")


def entry_of(directory: Path) -> Path:
    return journal.path(str(directory))


async def swept(tmp_path: Path) -> tuple[list[Orphan], list[str]]:
    """What is found, and what is told."""
    told: list[str] = []
    return await orphans.sweep(Store(tmp_path / "run"), told.append), told


async def test_what_another_host_has_made_is_told_of_and_left(tmp_path: Path) -> None:
    """It may be in use there: the directory, and the journal, are on a file server."""
    scratch = await left(tmp_path, lambda entry: entry.update(host={"id": "0123456789abcdef", "name": "far-away"}))
    found, told = await swept(tmp_path)
    assert found == [], "which is no error"
    assert f"{scratch} is left to snapshot {ID} of vm1 on the host far-away" in told[0]
    assert (scratch / "vda.qcow2").exists()
    assert entry_of(scratch).exists()


async def test_what_a_version_that_knew_no_hosts_has_made_is_named_and_left(tmp_path: Path) -> None:
    scratch = await left(tmp_path, lambda entry: (entry.pop("host"), entry.update(version=1)))
    ((orphan,), _) = await swept(tmp_path)
    assert (orphan.path, orphan.is_removed) == (str(entry_of(scratch)), False)
    assert "it was written by another version of snapmount" in orphan.why
    assert (scratch / "vda.qcow2").exists()


async def test_an_entry_that_tells_nothing_comes_with_what_to_do(tmp_path: Path) -> None:
    """As a power cut leaves it where the disk has lost what was written."""
    entry = entry_of(await left(tmp_path))
    entry.write_bytes(b"")
    ((orphan,), _) = await swept(tmp_path)
    assert (orphan.path, orphan.is_removed) == (str(entry), False)
    assert orphan.remedy
    assert orphan.remedy.startswith(f"rm {entry}   (")


async def test_what_was_made_on_a_file_system_that_is_not_mounted_yet_is_not_forgotten(tmp_path: Path) -> None:
    """After a restart of the host it appears later, and would have no owner then."""
    elsewhere = tmp_path / "a disk"
    scratch = await left(tmp_path, lambda entry: entry.update(mount=str(elsewhere)))
    shutil.rmtree(scratch)
    ((orphan,), _) = await swept(tmp_path)
    assert (orphan.path, orphan.is_removed) == (str(scratch), False)
    assert f"{elsewhere} is not mounted" in orphan.why
    assert orphan.remedy
    assert orphan.remedy.startswith(f"mount '{elsewhere}' && snapmount recover")
    assert entry_of(scratch).exists()


async def test_what_has_scratch_on_a_device_that_is_not_there_yet_is_not_forgotten(tmp_path: Path) -> None:
    device = str(tmp_path / "volume")
    scratch = await left(tmp_path, lambda entry: entry["source"]["policy"].update(devices=[["vda", device]]))
    ((orphan,), _) = await swept(tmp_path)
    assert (orphan.is_removed, orphan.why) == (False, f"the scratch device {device} is not there")
    assert scratch.exists()
    assert entry_of(scratch).exists()


async def test_what_was_not_there_is_not_said_to_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orphans, "_check_unused", _is_unused)
    scratch = await left(tmp_path)
    entry = entry_of(scratch)
    shutil.rmtree(scratch)
    ((orphan,), _) = await swept(tmp_path)
    assert (orphan.path, orphan.is_removed) == (str(entry), True)
    assert orphan.why.endswith(f"{scratch} had gone already")
    assert not entry.exists()


async def _is_unused(entry: Entry) -> None:
    """libvirt knows of nobody who uses it."""


def mounted(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Let the snapshot's view be mounted there."""
    real = mounts.current
    monkeypatch.setattr(
        mounts, "current", lambda: [*real(), mounts.Mount(str(path), "fuse.snapmount", a_record().mount_source)]
    )


async def test_what_a_process_serves_on_is_left_with_the_way_to_end_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody has removed its runtime record."""
    mounted(monkeypatch, tmp_path)
    scratch = await left(tmp_path)
    ((orphan,), _) = await swept(tmp_path)
    assert orphan.why == f"snapshot {ID} of vm1 is served at {tmp_path}, though its runtime record has gone"
    assert orphan.remedy
    assert f"umount {tmp_path}" in orphan.remedy or f"fusermount3 -u {tmp_path}" in orphan.remedy
    assert scratch.exists()


async def test_a_view_that_does_not_answer_may_be_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounted(monkeypatch, tmp_path)
    scratch = await left(tmp_path)
    hangs = threading.Event()
    monkeypatch.setattr(orphans, "ANSWER_S", 0.01)
    monkeypatch.setattr(os, "statvfs", lambda _: hangs.wait())
    try:
        ((orphan,), _) = await swept(tmp_path)
    finally:
        hangs.set()
    assert f"may be served at {tmp_path}" in orphan.why
    assert scratch.exists()


def test_a_snapshot_that_is_taken_or_ended_meanwhile_is_not_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if each came just after one look and before the next."""
    taken, ended = (datadirectory.path() / f"snapmount-{each}" for each in (ID, OTHER_ID))
    load_all, glob = journal.load_all, Path.glob

    def take_after(*args: Any) -> Any:
        entries = load_all(*args)
        taken.mkdir(parents=True, exist_ok=True)
        return entries

    def end_after(path: Path, pattern: str) -> Iterator[Path]:
        found = list(glob(path, pattern))
        if pattern == "snapmount-*":
            ended.rmdir()
        return iter(found)

    ended.mkdir(parents=True)
    monkeypatch.setattr(journal, "load_all", take_after)
    monkeypatch.setattr(Path, "glob", end_after)
    assert [*orphans._unknown()] == []
