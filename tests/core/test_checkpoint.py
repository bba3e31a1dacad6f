"""Which checkpoint is meant, what its record looks like, and what libvirt is told of it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from snapmount.core import checkpoint, checkpointxml
from snapmount.core.checkpoint import Checkpoint, MarkedDisk, is_name, since
from snapmount.core.document import DocumentError, from_document, to_document
from snapmount.core.snapshot import Disk

MONDAY = Checkpoint(
    name="monday",
    vm_name="vm1",
    vm_uuid="6695eb01-f6a4-8304-79aa-97f2502e193f",
    connect="qemu:///system",
    snapshot="3f2a91bc",
    created=datetime(2026, 11, 23, 12, 5, tzinfo=UTC),
    disks=(MarkedDisk("vda", "/images/vda.qcow2", 1 << 30),),
    source={"kind": "pull"},
    counts=True,
)
TUESDAY = replace(MONDAY, name="tuesday", created=MONDAY.created + timedelta(days=1))
FAILED = replace(TUESDAY, name="wednesday", created=TUESDAY.created + timedelta(days=1), counts=False)
DISK = Disk("vda", 1 << 30, "qcow2", "/images/vda.qcow2")


@pytest.mark.parametrize("name", ["monday", "snapmount-3f2a91bc", "2026-11-28T04:16+01", "_", "a" * 64])
def test_names(name: str) -> None:
    assert is_name(name)


@pytest.mark.parametrize("name", ["", "last", "-x", ".x", "a/b", "../x", "a b", "ä", "a\n", "a" * 65])
def test_what_is_no_name(name: str) -> None:
    assert not is_name(name)


def test_a_default_name_is_one() -> None:
    assert is_name(checkpoint.default_name("3f2a91bc"))


def test_last_is_the_newest_that_counts() -> None:
    assert since("last", [MONDAY, TUESDAY, FAILED]).checkpoint == TUESDAY
    assert since("last", [MONDAY, TUESDAY, FAILED]).name == "tuesday"
    assert since("monday", [MONDAY, TUESDAY]).checkpoint == MONDAY


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ("last", "there is no checkpoint yet"),
        ("sunday", "there is no checkpoint sunday any more, or never was"),
        ("wednesday", "the snapshot of checkpoint wednesday, 3f2a91bc, has not ended well"),
    ],
)
def test_without_a_checkpoint_all_is_changed_and_why_is_said(asked: str, why: str) -> None:
    found = since(asked, [FAILED])
    assert (found.name, found.checkpoint, found.why_full) == (asked, None, why)


def test_a_record_is_read_back() -> None:
    document = to_document(MONDAY)
    assert document["version"] == 1
    assert from_document(Checkpoint, document) == MONDAY
    with pytest.raises(ValueError, match="another version"):
        from_document(Checkpoint, to_document(MONDAY) | {"version": 2})
    with pytest.raises(DocumentError):
        from_document(Checkpoint, to_document(MONDAY) | {"disks": [{"name": 1}]})


def test_what_libvirt_is_told() -> None:
    xml = checkpointxml.definition("monday", "by <us>", ["vda", "vdb"], ["vdc"])
    assert xml == (
        "<domaincheckpoint><name>monday</name><description>by &lt;us&gt;</description><disks>"
        '<disk name="vda" checkpoint="bitmap" /><disk name="vdb" checkpoint="bitmap" />'
        '<disk name="vdc" checkpoint="no" /></disks></domaincheckpoint>'
    )
    assert checkpointxml.marked_disks(xml) == ["vda", "vdb"]


def test_a_checkpoint_of_some_of_its_disks_has_no_parent() -> None:
    xml = (
        "<domaincheckpoint><name>b</name><parent><name>a</name></parent><disks>"
        '<disk name="vda" checkpoint="bitmap" bitmap="b" /><disk name="vdb" checkpoint="bitmap" bitmap="b" />'
        "</disks></domaincheckpoint>"
    )
    assert checkpointxml.only(xml, ["vdb"]) == (
        '<domaincheckpoint><name>b</name><disks><disk name="vda" checkpoint="no" />'
        '<disk name="vdb" checkpoint="bitmap" bitmap="b" /></disks></domaincheckpoint>'
    )
