"""The facts of a snapshot survive the way through snapshot.json, whose shape is documented."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapmount.core.plan import LeftOut
from snapmount.core.snapshot import Disk, Nvram, Snapshot, dump, format_time

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
    assert SNAPSHOT.document() == {
        "id": "3f2a91bc",
        "vm": {"name": "vm1", "uuid": "6695eb01-f6a4-8304-79aa-97f2502e193f"},
        "created": "2026-11-23T12:05:01.000123Z",
        "source": "pull",
        "quiesced": False,
        "disks": [
            {
                "name": "vda",
                "size_bytes": 1073741824,
                "format": "qcow2",
                "origin": "/images/vda.qcow2",
                "allocated_bytes": 1 << 29,
                "logical_block_size_bytes": 512,
                "file": "vda.raw",
            }
        ],
        "nvram": {"size_bytes": 540672, "format": "raw", "origin": "/nvram/vm1_VARS.fd", "file": "nvram"},
        "left_out": [{"name": "sda", "why": "CD-ROM"}],
    }


@PROPERTY
@given(snapshots)
def test_a_snapshot_is_read_back_from_its_document(snapshot: Snapshot) -> None:
    assert Snapshot.from_document(snapshot.document()) == snapshot


@PROPERTY
@given(snapshots)
def test_a_snapshot_is_read_back_from_the_bytes_of_its_file(snapshot: Snapshot) -> None:
    assert Snapshot.from_document(json.loads(dump(snapshot.document()))) == snapshot


def test_a_document_from_before_block_sizes_were_told_is_read() -> None:
    document = SNAPSHOT.document()
    for disk in document["disks"]:
        del disk["logical_block_size_bytes"]
    assert Snapshot.from_document(document) == SNAPSHOT


@pytest.mark.parametrize("key", SNAPSHOT.document())
def test_a_document_that_lacks_a_fact_is_refused(key: str) -> None:
    document = SNAPSHOT.document()
    del document[key]
    with pytest.raises(KeyError):
        Snapshot.from_document(document)


@pytest.mark.parametrize(
    "change", [{"created": "yesterday"}, {"created": None}, {"vm": "vm1"}, {"disks": [1]}], ids=str
)
def test_a_document_of_another_shape_is_refused(change: dict[str, object]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        Snapshot.from_document(SNAPSHOT.document() | change)


def test_a_document_of_a_version_before_says_nothing_of_what_the_images_took() -> None:
    document = SNAPSHOT.document()
    del document["disks"][0]["allocated_bytes"]
    (disk,) = Snapshot.from_document(document).disks
    assert disk == replace(SNAPSHOT.disks[0], allocated_bytes=None)


def test_a_time_is_written_in_utc_with_microseconds() -> None:
    east = timezone(timedelta(hours=2))
    assert format_time(datetime(2026, 1, 1, 1, 30, tzinfo=east)) == "2025-12-31T23:30:00.000000Z"


def test_the_moment_in_nanoseconds_is_exact_to_the_microsecond() -> None:
    moment = datetime(2026, 11, 23, 12, 5, 1, 999_999, tzinfo=UTC)
    assert replace(SNAPSHOT, created=moment).created_ns == 1795435501_999_999_000


@PROPERTY
@given(st.integers(min_value=0, max_value=10**16))
def test_no_moment_is_rounded(microseconds: int) -> None:
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)
    assert replace(SNAPSHOT, created=moment).created_ns == microseconds * 1000


def test_a_document_is_written_as_lines_for_people_and_programs() -> None:
    assert dump({"vm": "vm1", "disks": []}) == b'{\n  "vm": "vm1",\n  "disks": []\n}\n'


def test_names_in_any_encoding_stay_valid_json() -> None:
    document = {"vm": "Grüße 🙂", "origin": b"/caf\xe9.img".decode("utf-8", "surrogateescape")}
    assert json.loads(dump(document).decode("ascii")) == document
