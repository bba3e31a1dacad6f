"""What is told of a snapshot that has ended, and of disks that were detached."""

from __future__ import annotations

from dataclasses import replace

import pytest

from snapmount.attach.attachments import Attachment
from snapmount.cli import outcomes
from snapmount.host.processes import Process
from snapmount.lifecycle.ends import Ended, Hidden, Reader, listed

from ..rig.records import ID, OTHER_UUID, a_record

RECORD = a_record()
QEMU = Process(1, 1, "boot")
VDA = Attachment(ID, "vda", "vm2", OTHER_UUID, QEMU, "virtio", "vdc", is_made=True)
VDB, ELSEWHERE = replace(VDA, disk="vdb", target="vdd"), replace(VDA, vm_name="vm3")
UNPLUGGED = "; disk vda has been unplugged from vm2; disk vda has been unplugged from vm3"
READERS = tuple(Reader(number, "less") for number in range(1, 8))


@pytest.mark.parametrize(
    ("ended", "told"),
    [
        (Ended(RECORD), ""),
        (Ended(RECORD, ("a",)), "; scratch VM a has been destroyed"),
        (Ended(RECORD, ("a", "b", "c")), "; scratch VMs a, b and c have been destroyed"),
        (Ended(RECORD, ("a", "b", "c", "d")), "; 4 scratch VMs have been destroyed"),
        (Ended(RECORD, luns=1), "; 1 LUN has been withdrawn"),
        (Ended(RECORD, luns=2), "; 2 LUNs have been withdrawn"),
        (
            Ended(RECORD, ("a",), (VDA, ELSEWHERE)),
            "; scratch VM a has been destroyed" + UNPLUGGED,
        ),
    ],
)
def test_a_line_tells_what_has_gone_with_a_snapshot(ended: Ended, told: str) -> None:
    assert outcomes.ended_text(ended) == f"snapshot {ID} of vm1 is ended{told}\n"


def test_a_line_tells_for_whom_a_snapshot_is_still_there() -> None:
    assert outcomes.ended_text(Hidden(RECORD, READERS[:2])) == (
        f"snapshot {ID} of vm1 is no longer mounted at /mnt/snap; it ends when its files have been closed by "
        "less (process 1) and less (process 2)\n"
    )


def test_few_readers_are_named_and_more_are_counted() -> None:
    assert listed(READERS[:1]) == "less (process 1)"
    assert listed(READERS).endswith(", less (process 5) and 2 more")


def test_detach_tells_of_each_helper() -> None:
    assert outcomes.detached_text([VDA, VDB, ELSEWHERE], RECORD).splitlines() == [
        f"snapshot {ID} of vm1: disks vda and vdb have been detached from vm2",
        f"snapshot {ID} of vm1: disk vda has been detached from vm3",
    ]
    assert outcomes.detached_text([], RECORD) == f"snapshot {ID} of vm1: no disk of it was attached\n"


def test_the_documents_have_one_shape() -> None:
    found = [
        outcomes.ended_document(Ended(RECORD, ("a",), (VDA,), 2)),
        outcomes.ended_document(Hidden(RECORD, READERS[:1])),
        outcomes.ended_document(RECORD),
    ]
    assert len({tuple(document) for document in found}) == 1
    assert [document["deleted"] for document in found] == [True, False, False]
    assert [document["id"] for document in found] == [ID] * 3
    assert (found[0]["scratch_vms"], found[0]["attachments"], found[0]["luns"]) == (["a"], [VDA.document()], 2)
    assert found[1]["readers"] == [{"pid": 1, "command": "less"}]
