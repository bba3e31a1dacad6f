"""Snapshots of the version that was released before: after an upgrade they are listed, recovered and deleted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ..rig import servers, traces, vm
from ..rig.command import read_direct, snapmount, snapmount_json

pytestmark = pytest.mark.vm

# What record.json had in version 6, and the journal in version 2; all else is of later ones.
RECORD = {
    *("version", "snapshot", "connect", "mountpoint", "mount_source", "socket", "scratch", "server", "standby"),
    *("state", "terms", "reason", "frozen", "is_hidden", "is_for_boot", "is_open", "publication", "read_timeout_s"),
    "expires_s",
}
SNAPSHOT = {"id", "vm", "created", "source", "quiesced", "disks", "nvram", "left_out"}
DISK = {"name", "size_bytes", "format", "origin", "file"}


def make_old(shown: dict[str, Any]) -> None:
    """Rewrite the record as version 6 has written it."""
    path = traces.RUNTIME / shown["id"] / "record.json"
    record = json.loads(path.read_text())
    source = record.get("source", {})
    record = only(record | source | {"terms": source.get("policy", record.get("terms"))}, RECORD) | {"version": 6}
    record["snapshot"] = only(record["snapshot"], SNAPSHOT)
    record["snapshot"]["disks"] = [only(disk, DISK) for disk in record["snapshot"]["disks"]]
    path.write_text(json.dumps(record))
    for entry in traces.SCRATCH.glob(f"snapmount-{shown['id']}*.json"):
        journal = json.loads(entry.read_text())
        if journal["version"] != 2:
            source = journal.pop("source")
            journal |= {"version": 2, "socket": source["socket"], "devices": source["policy"]["devices"]}
            entry.write_text(json.dumps(journal))


def only(document: dict[str, Any], names: set[str]) -> dict[str, Any]:
    assert names <= document.keys(), "what was there then and is not now cannot be left out: write it"
    return {name: document[name] for name in names}


def test_a_snapshot_that_was_taken_before_an_upgrade_is_listed_recovered_and_deleted(
    writer: vm.VM, mountpoint: Path
) -> None:
    taken = snapmount_json(writer.name, mountpoint)
    before = read_direct(mountpoint / "vda.raw")
    make_old(taken)
    not_told = [disk | {"allocated_bytes": None} for disk in taken["disks"]]
    assert servers.listed(taken["id"]) | {"scratch": None} == taken | {"scratch": None, "disks": not_told}
    assert taken["id"] in snapmount("show", taken["id"]).stdout
    servers.kill(taken)
    make_old(taken)
    assert servers.listed(taken["id"])["state"] == "dead"
    assert [each["id"] for each in snapmount_json("recover")["reattached"]] == [taken["id"]]
    assert read_direct(mountpoint / "vda.raw") == before
    make_old(taken)
    snapmount("delete", taken["id"])
    assert traces.found() == []


def test_a_dead_snapshot_that_was_taken_before_an_upgrade_is_deleted(writer: vm.VM, mountpoint: Path) -> None:
    taken = snapmount_json(writer.name, mountpoint)
    servers.kill(taken)
    make_old(taken)
    snapmount("delete", taken["id"])
    assert traces.found() == []
    assert not writer.has_job()


def test_what_is_left_of_a_snapshot_from_before_an_upgrade_and_a_reboot_is_removed(
    writer: vm.VM, mountpoint: Path
) -> None:
    taken = snapmount_json(writer.name, mountpoint)
    servers.kill(taken)
    make_old(taken)
    writer.virsh("domjobabort", writer.name)
    shutil.rmtree(traces.RUNTIME / taken["id"])
    (orphan,) = snapmount_json("recover")["orphans"]
    assert (orphan["path"], orphan["removed"]) == (taken["scratch"]["directory"], True)
    assert traces.found() == []
