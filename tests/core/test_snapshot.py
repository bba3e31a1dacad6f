"""The facts of a snapshot survive the way through snapshot.json, whose shape is documented."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapmount.core.document import DocumentError, dump, from_document, to_document
from snapmount.core.leftout import LeftOut
from snapmount.core.snapshot import Disk, DiskUrl, Nvram, Snapshot
from snapmount.errors import UsageError

from ..strategies import PROPERTY, snapshots

SNAPSHOT = Snapshot(
    id="3f2a91bc",
    vm_name="vm1",
    vm_uuid="6695eb01-f6a4-8304-79aa-97f2502e193f",
    created=datetime(2026, 11, 23, 12, 5, 1, 123, tzinfo=UTC),
    source="pull",
    quiesced=False,
    disks=(Disk("vda", 1 << 30, "qcow2", "/images/vda.qcow2", 1 << 29),),
    left_out=(LeftOut("sda", "CD-ROM"),),
    urls=(DiskUrl("vdb", "https://filer/1"),),
    nvram=Nvram(540672, "raw", "/nvram/vm1_VARS.fd"),
)

CHANGES = [
    {"created": "yesterday"},
    {"created": None},
    {"vm": "vm1"},
    {"disks": [1]},
    {"left_out": [{"name": "sda"}]},
    {"nvram": 1},
]


def test_the_document_has_the_documented_shape() -> None:
    assert to_document(SNAPSHOT) == {
        "id": "3f2a91bc",
        "vm": {"name": "vm1", "uuid": "6695eb01-f6a4-8304-79aa-97f2502e193f"},
        "created": "2026-11-23T12:05:01.000123Z",
        "source": "pull",
        "quiesced": False,
        "since": None,
        "disks": [
            {
                "name": "vda",
                "size_bytes": 1073741824,
                "format": "qcow2",
                "origin": "/images/vda.qcow2",
                "allocated_bytes": 1 << 29,
                "logical_block_size_bytes": 512,
                "backing": None,
                "full": None,
                "qcow2_cluster_size_bytes": 65536,
                "file": "vda.raw",
                "qcow2_file": "vda.qcow2",
            }
        ],
        "urls": [{"name": "vdb", "url": "https://filer/1", "file": "vdb.url"}],
        "checkpoint": None,
        "nvram": {"size_bytes": 540672, "format": "raw", "origin": "/nvram/vm1_VARS.fd", "file": "nvram"},
        "left_out": [{"name": "sda", "why": "CD-ROM"}],
    }


@PROPERTY
@given(snapshots)
def test_a_snapshot_is_read_back_from_its_document(snapshot: Snapshot) -> None:
    assert from_document(Snapshot, to_document(snapshot)) == snapshot


@PROPERTY
@given(snapshots)
def test_a_snapshot_is_read_back_from_the_bytes_of_its_file(snapshot: Snapshot) -> None:
    assert from_document(Snapshot, json.loads(dump(to_document(snapshot)))) == snapshot


def test_a_document_from_before_block_sizes_were_told_is_read() -> None:
    document = to_document(SNAPSHOT)
    for disk in document["disks"]:
        del disk["logical_block_size_bytes"]
    assert from_document(Snapshot, document) == SNAPSHOT


def test_a_document_from_before_there_were_qcow2_files_is_read() -> None:
    document = to_document(SNAPSHOT)
    for disk in document["disks"]:
        del disk["qcow2_cluster_size_bytes"], disk["qcow2_file"]
    assert from_document(Snapshot, document) == SNAPSHOT


TIB = 1 << 40


@pytest.mark.parametrize(
    ("size", "asked", "chosen"),
    [(0, None, 65536), (16 * TIB, None, 65536), (17 * TIB, None, 2 << 20), (TIB, 4096, 4096), (17 * TIB, 65536, 65536)],
)
def test_the_clusters_of_a_qcow2_file_are_as_asked_or_as_usual(size: int, asked: int | None, chosen: int) -> None:
    assert replace(SNAPSHOT.disks[0], size_bytes=size).with_clusters(asked).qcow2_cluster_size_bytes == chosen


def test_clusters_that_qemu_could_not_address_are_refused() -> None:
    with pytest.raises(UsageError, match="vda, which has 9 TiB") as caught:
        replace(SNAPSHOT.disks[0], size_bytes=9 * TIB).with_clusters(4096)
    assert caught.value.remedy == "--cluster-size 8K"


def test_a_disk_that_is_larger_than_it_was_said_to_be_has_clusters_for_that() -> None:
    disk = SNAPSHOT.disks[0].with_clusters(4096)
    assert disk.of_size(TIB) == replace(disk, size_bytes=TIB)
    assert disk.of_size(9 * TIB) == replace(disk, size_bytes=9 * TIB, qcow2_cluster_size_bytes=8192)


def test_a_document_from_before_disks_had_urls_is_read() -> None:
    document = to_document(SNAPSHOT)
    del document["urls"]
    assert from_document(Snapshot, document) == replace(SNAPSHOT, urls=())


def test_a_document_from_before_there_were_checkpoints_is_read() -> None:
    document = to_document(replace(SNAPSHOT, since="monday"))
    assert document.pop("since") == "monday"
    assert document.pop("checkpoint") is None
    assert from_document(Snapshot, document) == SNAPSHOT


@pytest.mark.parametrize("key", [key for key in to_document(SNAPSHOT) if key not in ("urls", "since", "checkpoint")])
def test_a_document_that_lacks_a_fact_is_refused(key: str) -> None:
    document = to_document(SNAPSHOT)
    del document[key]
    with pytest.raises(DocumentError, match=f"^{key} is missing$"):
        from_document(Snapshot, document)


@pytest.mark.parametrize(
    "change", [{"created": "yesterday"}, {"created": None}, {"vm": "vm1"}, {"disks": [1]}], ids=str
)
def test_a_document_of_another_shape_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(DocumentError):
        from_document(Snapshot, to_document(SNAPSHOT) | change)


def test_a_document_of_a_version_before_says_nothing_of_what_the_images_took() -> None:
    document = to_document(SNAPSHOT)
    del document["disks"][0]["allocated_bytes"]
    (disk,) = from_document(Snapshot, document).disks
    assert disk == replace(SNAPSHOT.disks[0], allocated_bytes=None)


def test_the_moment_in_nanoseconds_is_exact_to_the_microsecond() -> None:
    moment = datetime(2026, 11, 23, 12, 5, 1, 999_999, tzinfo=UTC)
    assert replace(SNAPSHOT, created=moment).created_ns == 1795435501_999_999_000


@PROPERTY
@given(st.integers(min_value=0, max_value=10**16))
def test_no_moment_is_rounded(microseconds: int) -> None:
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)
    assert replace(SNAPSHOT, created=moment).created_ns == microseconds * 1000
