"""A snapshot's disk as another VM's: its names there, its description, and the records of what is plugged in."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapmount.attach import attachments
from snapmount.attach.attachments import Attachment
from snapmount.core import domainxml, helperdisk, slots
from snapmount.core.document import from_document, to_document
from snapmount.errors import SnapmountError, StateError
from snapmount.host.processes import Process

from ..strategies import PROPERTY, confinable_text, disk_names, processes, text

SCHEMA = Path("/usr/share/libvirt/schemas/domain.rng")
DEAD = Process(1, 1, "")  # not the first process, which was started before that
BUSES = list(helperdisk.PREFIXES)

snapshot_ids = st.from_regex(r"[0-9a-f]{8}", fullmatch=True)
# As libvirt's schema has them (diskTarget)
targets = st.from_regex(r"(vd|sd|hd|fd)[a-z]{1,2}", fullmatch=True)
attached = st.builds(
    Attachment,
    snapshot=snapshot_ids,
    disk=disk_names,
    vm_name=text,
    vm_uuid=st.uuids().map(str),
    qemu=processes,
    bus=st.sampled_from(BUSES),
    target=targets,
    is_made=st.booleans(),
)


SCSI = "<controller type='scsi' index='{}' model='virtio-scsi'/>"
FULL = [f"sd{chr(ord('a') + number)}" for number in range(7)]  # all that the first SCSI controller has names for


def a_domain(names: Iterable[str] = (), devices: str = "") -> str:
    disks = "".join(f"<disk type='file' device='disk'><target dev={quoteattr(name)}/></disk>" for name in names)
    labels = "<seclabel type='dynamic' model='dac'/><seclabel type='dynamic' model='apparmor'/><seclabel type='none'/>"
    return f"<domain type='kvm'><devices>{disks}{devices}</devices>{labels}</domain>"


def an_attachment(**changes: object) -> Attachment:
    first = Attachment("84b8ec7e", "vda", "vm2", "0b7d2c39-3c5d-4b61-9cf4-0d9f1a6f8f11", DEAD, "virtio", "vdc")
    return replace(first, **changes)  # type: ignore[arg-type]


# -- names -------------------------------------------------------------------------------------------------------------


@PROPERTY
@given(st.sets(targets, max_size=40), st.sampled_from(BUSES), st.integers(min_value=1, max_value=30))
def test_target_names_are_free_distinct_and_the_first_such(taken: set[str], bus: str, count: int) -> None:
    controllers = "".join(SCSI.format(index) for index in range(11))
    found = slots.free_targets(a_domain(taken, controllers), bus, count)
    assert len(set(found)) == count
    assert not set(found) & taken
    assert found == sorted(found, key=lambda name: (len(name), name))
    assert all(name.startswith(helperdisk.PREFIXES[bus]) for name in found)
    before_the_last = slots.free_targets(a_domain(taken | set(found), controllers), bus, 1)
    assert (len(found[-1]), found[-1]) < (len(before_the_last[0]), before_the_last[0])


def test_after_z_come_two_letters() -> None:
    taken = {f"vd{chr(letter)}" for letter in range(ord("a"), ord("z"))}
    assert slots.free_targets(a_domain(taken), "virtio", 3) == ["vdz", "vdaa", "vdab"]


def test_on_scsi_only_names_are_free_for_which_libvirt_plugs_in_no_controller() -> None:
    assert slots.free_targets(a_domain(FULL[:-1], SCSI.format(1) + SCSI.format(0)), "scsi", 2) == ["sdg", "sdh"]
    with pytest.raises(StateError, match="the scsi controllers of the VM have names free for 1 disk, not for 2"):
        slots.free_targets(a_domain(FULL[:-1], SCSI.format(0) + SCSI.format(2)), "scsi", 2)


def test_on_scsi_the_place_that_libvirt_derives_from_the_name_must_be_free_too() -> None:
    address = "<address type='drive' controller='0' bus='0' target='0' unit='{}'/>"
    disk = f"<disk><target dev='sdx' bus='scsi'/>{address.format(0)}</disk>"
    elsewhere = f"<disk><target dev='sdy' bus='sata'/>{address.format(2)}</disk>"
    passed = f"<hostdev mode='subsystem' type='scsi'>{address.format(1)}</hostdev>"
    domain = a_domain(devices=SCSI.format(0) + disk + elsewhere + passed)
    assert slots.free_targets(domain, "scsi", 1) == ["sdc"]


@PROPERTY
@given(snapshot_ids, disk_names)
def test_a_serial_fits_into_virtio_s_field_and_begins_with_the_snapshot(snapshot: str, disk: str) -> None:
    serial = helperdisk.serial(snapshot, disk)
    assert len(serial.encode()) <= 20
    assert serial.startswith(f"{snapshot}-{disk[:11]}")


@PROPERTY
@given(snapshot_ids, disk_names)
def test_an_alias_tells_the_snapshot_and_one_that_is_not_ours_tells_none(snapshot: str, disk: str) -> None:
    assert helperdisk.snapshot_of(helperdisk.alias(snapshot, disk)) == snapshot
    assert helperdisk.snapshot_of(disk) is None


def test_the_device_file_is_told_as_udev_names_it() -> None:
    assert an_attachment().device == "/dev/disk/by-id/virtio-84b8ec7e-vda"
    assert an_attachment(bus="scsi").device == "/dev/disk/by-id/*_84b8ec7e-vda*"


# -- what libvirt is told ----------------------------------------------------------------------------------------------


def disk_xml(file: str, bus: str = "virtio", block_bytes: int = 512) -> str:
    it = an_attachment(bus=bus)
    own = {"alias": it.alias, "serial": it.serial, "bus": bus, "target": it.target}
    return slots.disk_xml(a_domain(), file, block_bytes=block_bytes, **own)


@PROPERTY
@given(confinable_text, st.sampled_from(BUSES))
def test_the_disk_is_raw_read_only_and_relabelled_by_nobody(file: str, bus: str) -> None:
    disk = ElementTree.fromstring(disk_xml(file, bus))
    source, driver = disk.find("source"), disk.find("driver")
    assert source is not None
    assert driver is not None
    assert disk.find("readonly") is not None
    assert driver.get("type") == "raw"
    labels = [(label.get("model"), label.get("relabel")) for label in source.findall("seclabel")]
    assert labels == [("dac", "no"), ("apparmor", "no")]
    assert source.get("file") == file


@pytest.mark.parametrize("path", ["/mnt/a[b]/vda.raw", "/mnt/{a,b}/vda.raw", "/mnt/a\\b/vda.raw", '/mnt/"a"/vda.raw'])
def test_a_path_that_a_profile_of_apparmor_would_misunderstand_is_refused(path: str) -> None:
    with pytest.raises(StateError, match="libvirt cannot let a VM's AppArmor profile have it") as caught:
        disk_xml(path)
    assert caught.value.remedy == "a snapshot with another MOUNTPOINT"
    unconfined = slots.disk_xml("<domain/>", path, alias="a", serial="s", bus="virtio", target="vdb")
    assert ElementTree.fromstring(unconfined).find("source").get("file") == path  # type: ignore[union-attr]


def test_the_disk_has_the_guest_s_logical_blocks() -> None:
    [blockio] = ElementTree.fromstring(disk_xml("/mnt/vda.raw", block_bytes=4096)).findall("blockio")
    sizes = {"logical_block_size": "4096", "physical_block_size": "4096"}
    assert blockio.attrib == sizes, "QEMU refuses logical blocks that are larger than physical ones"
    assert ElementTree.fromstring(disk_xml("/mnt/vda.raw")).find("blockio") is None


@pytest.mark.parametrize(
    ("sizes", "qemu", "buses"),
    [
        ([512, 512], None, ("virtio", "scsi", "usb")),
        ([512, 4096], (8, 2, 9), ("virtio", "scsi")),
        ([512, 4096], None, ("virtio", "scsi")),
        ([512, 4096], (9, 0, 0), ("virtio", "scsi", "usb")),
    ],
)
def test_block_sizes_are_kept_on_usb_by_newer_versions_of_qemu(
    sizes: list[int], qemu: tuple[int, ...] | None, buses: tuple[str, ...]
) -> None:
    assert slots.buses_for(sizes, qemu) == buses


def test_where_no_slot_is_free_another_bus_with_room_is_found() -> None:
    usb, scsi = "<controller type='usb' model='qemu-xhci'/>", SCSI.format(0)
    assert slots.bus_with_room(a_domain(devices=usb + scsi), BUSES, 2) == "scsi"
    assert slots.bus_with_room(a_domain(FULL, usb + scsi), BUSES, 1) == "usb"
    assert slots.bus_with_room(a_domain(FULL, usb + scsi), ["virtio", "scsi"], 1) is None
    assert slots.bus_with_room(a_domain(devices="<controller type='usb' model='none'/>"), BUSES, 1) is None


@pytest.mark.parametrize(("root", "port"), [("pcie-root", "pcie-root-port"), ("pci-root", "pci-bridge")])
def test_where_no_bus_has_room_a_port_is_added(root: str, port: str) -> None:
    domain = a_domain(devices=f"<controller type='pci' index='0' model='{root}'/>")
    domain = domain.replace("<devices>", "<name>vm 2</name><devices>")
    assert slots.more_slots(domain).startswith(f"virsh edit 'vm 2'   (add <controller type='pci' model='{port}'/>")


def test_the_device_is_found_by_its_alias() -> None:
    xml = a_domain(devices=disk_xml("/mnt/vda.raw"))
    assert domainxml.has_device(xml, "ua-snapmount-84b8ec7e-vda")
    assert [disk.alias for disk in domainxml.disks(xml)] == ["ua-snapmount-84b8ec7e-vda"]
    assert not domainxml.has_device(xml, "ua-snapmount-84b8ec7e-vdb")


@pytest.mark.parametrize("bus", BUSES)
def test_libvirt_s_schema_admits_the_disk(bus: str, tmp_path: Path) -> None:
    if not SCHEMA.exists() or not shutil.which("xmllint"):
        pytest.skip("this host lacks libvirt's schema or xmllint: run contrib/setup --test")
    path = tmp_path / "domain.xml"
    path.write_text(
        "<domain type='kvm'><name>vm2</name><memory>1</memory><os><type>hvm</type></os>"
        f"<devices>{disk_xml('/mnt/vda.raw', bus, 4096)}</devices></domain>"
    )
    done = subprocess.run(["xmllint", "--noout", "--relaxng", SCHEMA, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_controller_is_needed_for_every_bus_but_virtio() -> None:
    none = a_domain(devices="<controller type='usb' model='none'/>")
    assert [slots.has_controller(none, bus) for bus in BUSES] == [True, False, False]
    both = a_domain(devices="<controller type='usb'/><controller type='scsi' model='virtio-scsi'/>")
    assert all(slots.has_controller(both, bus) for bus in BUSES)


def test_a_definition_that_is_no_xml_is_an_error() -> None:
    with pytest.raises(SnapmountError, match="not well-formed"):
        slots.free_targets("<domain>", "virtio", 1)


# -- records -----------------------------------------------------------------------------------------------------------


@PROPERTY
@given(attached)
def test_a_record_is_read_as_it_was_written(each: Attachment) -> None:
    assert from_document(Attachment, to_document(each)) == each


def test_records_are_kept_by_vm_and_disk_and_shown_while_the_vm_runs(tmp_path: Path) -> None:
    own = Process.of_pid(os.getpid())
    first, second, gone = an_attachment(qemu=own), an_attachment(disk="vdb", target="vdb", qemu=own), an_attachment()
    for each in (first, second, replace(gone, vm_uuid="6695eb01-f6a4-8304-79aa-97f2502e193f")):
        attachments.RECORDS.write(tmp_path, each)
    assert attachments.current(tmp_path) == [second, first]
    attachments.RECORDS.write(tmp_path, replace(first, is_made=True))
    assert [each.state for each in attachments.current(tmp_path)] == ["attaching", "attached"]
    assert len(attachments.RECORDS.load_all(tmp_path)) == 3


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"qemu": 1}', "null"])
def test_a_record_that_cannot_be_read_is_an_error_that_names_it(tmp_path: Path, content: str) -> None:
    attachments.RECORDS.write(tmp_path, an_attachment())
    [path] = (tmp_path / "attached").iterdir()
    path.write_text(content)
    with pytest.raises(StateError, match=str(path)):
        attachments.RECORDS.load_all(tmp_path)
    assert attachments.current(tmp_path) == []
    assert str(path) in attachments.unreadable(tmp_path)[path.stem].message
