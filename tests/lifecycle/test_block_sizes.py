"""Disks whose logical blocks are not of 512 bytes, or whose size is no whole number of them: they are to helpers,
initiators and programs what they are to their guest.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from ..rig import gpt, libiscsi, traces, vm
from ..rig.command import read_direct, refused, snapmount, snapmount_json

pytestmark = pytest.mark.vm
BLOCK = 4096
SIZE = 16 * vm.MIB
ODD = 1_000_001  # bytes; in whole sectors, as QEMU rounds it up, 1,000,448


def fill(image: Path) -> None:
    image.write_bytes(b"odd" * (ODD // 3) + b"!!")


@pytest.fixture
def original(clean: None) -> Iterator[vm.VM]:
    """A VM with a disk of 4096-byte blocks, with a partition table, and one of an odd size."""
    four_k = vm.Disk("vda", size=SIZE, block_bytes=BLOCK, fill=partial(gpt.write, block_bytes=BLOCK))
    with vm.running(f"{vm.PREFIX}-blocks", [four_k, vm.Disk("vdb", size=ODD, fill=fill)], paused=True) as running:
        yield running


def test_logical_blocks_are_told_and_kept_everywhere(original: vm.VM, helper: vm.VM, mountpoint: Path) -> None:
    portal = f"127.0.0.1:{libiscsi.free_port()}"
    taken = snapmount_json("--iscsi", "--target", "tgt", "--portal", portal, original.name, mountpoint)
    for told in (
        taken["disks"],
        taken["iscsi"]["luns"],
        json.loads((mountpoint / "snapshot.json").read_text())["disks"],
    ):
        assert [disk["logical_block_size_bytes"] for disk in told] == [BLOCK, 512]
    shown = snapmount("show", original.name).stdout
    assert re.search(r"^vda +16 MiB +4096 +raw ", shown, re.MULTILINE)
    assert re.search(r"^vdb +977 KiB +512 +raw ", shown, re.MULTILINE)

    # in a helper
    for bus, name in (("virtio", "vdb"), ("scsi", "sda")):
        snapmount("attach", "--disk", "vda", "--bus", bus, original.name, helper.name)
        if bus == "virtio":  # the test guest has no driver for the other
            block = Path("/sys/block", name)
            finds = f"until [ -e {block}/{name}1 ]; do sleep 0.1; done; cat {block}/queue/logical_block_size"
            assert helper.agent_runs(finds).strip() == str(BLOCK)
        [blockio] = re.findall(r"<blockio .*?/>", helper.virsh("dumpxml", helper.name))
        assert blockio == "<blockio logical_block_size='4096' physical_block_size='4096'/>"
        if bus == "virtio":
            snapmount("detach", original.name)
    # over iSCSI
    capacity = libiscsi.output("iscsi-readcapacity16", url(taken, 1))
    assert f"LOGICAL BLOCK LENGTH IN BYTES:{BLOCK}\n" in capacity
    assert f"Total size:{SIZE}\n" in capacity
    # and for a program on this host, as the man page says
    with ExitStack() as stack:
        loops = [
            vm.loop_device(mountpoint / "vda.raw", stack, "--read-only", "--sector-size", str(size))
            for size in (512, BLOCK)
        ]
        assert [partitions(loop) for loop in loops] == [[], ["1"]]
    snapmount("delete", "--force", original.name)
    assert traces.found() == []


def partitions(device: Path) -> list[str]:
    """The numbers of the device's partitions, as programs find them."""
    listed = subprocess.run(
        ["partx", "--show", "--noheadings", "--output", "NR", device], capture_output=True, text=True
    )
    return listed.stdout.split()


def url(taken: dict[str, dict[str, str]], lun: int) -> str:
    target = taken["iscsi"]
    return f"iscsi://{target['user']}%{target['secret']}@{target['portals'][0]}/{target['iqn']}/{lun}"


def test_a_disk_of_an_odd_size_ends_with_zeros_and_no_program_stumbles(original: vm.VM, mountpoint: Path) -> None:
    """QEMU's own aborted: with direct I/O, and over iSCSI."""
    portal = f"127.0.0.1:{libiscsi.free_port()}"
    taken = snapmount_json("--iscsi", "--target", "tgt", "--portal", portal, original.name, mountpoint)
    view = mountpoint / "vdb.raw"
    whole = taken["disks"][1]["size_bytes"]
    assert whole == 1_000_448
    assert read_direct(view) == (original.directory / "vdb.img").read_bytes() + bytes(whole - ODD)
    direct = f"driver=raw,file.driver=file,file.filename={view},file.cache.direct=on"
    libiscsi.output("qemu-img", "map", "--image-opts", direct)
    libiscsi.output("qemu-img", "compare", "-f", "raw", "-F", "raw", str(view), url(taken, 2))
    snapmount("delete", original.name)


def test_a_helper_without_a_free_slot_is_told_where_there_is_room(original: vm.VM, mountpoint: Path) -> None:
    """libvirt gives a machine of type q35 one free port."""
    scsi = "<controller type='scsi' model='virtio-scsi'/>"
    own = vm.running(f"{vm.HELPER}-q35", [vm.Disk("vda")], extra_devices=scsi, paused=True, efi=True)
    with own as helper:
        taken = snapmount_json(original.name, mountpoint)
        snapmount("attach", "--disk", "vda", original.name, helper.name)
        said = refused("attach", original.name, helper.name, "--disk", "vdb", code=4)
        assert "No more available PCI slots" in said
        assert f"try: snapmount attach {taken['id']} {helper.name} --disk vdb --bus scsi\n" in said
        snapmount("attach", taken["id"], helper.name, "--disk", "vdb", "--bus", "scsi")
        assert helper.targets() == ["vda", "vdb", "sda"]
    snapmount("delete", original.name)
