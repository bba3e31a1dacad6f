"""libvirt's XML is read as libvirt writes it, and what we write is read back as it was meant, whatever the names."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapmount.core import domainxml
from snapmount.core.diskdefinition import DiskDefinition
from snapmount.core.domainxml import NvramDefinition, Owner
from snapmount.core.imagechain import Layer
from snapmount.core.origin import Host, NetworkOrigin
from snapmount.errors import SnapmountError, StateError

from ..strategies import PROPERTY, disk_names, xml_text

DOMAIN = """\
<domain type='kvm' id='3' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>vm1</name>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' discard='unmap'/>
      <source file='/images/a &amp; b.qcow2' index='2'/>
      <backingStore type='file' index='3'>
        <format type='raw'/>
        <source file='/images/base.img'/>
        <backingStore/>
      </backingStore>
      <target dev='vda' bus='virtio'/>
    </disk>
    <disk type='block' device='lun'>
      <driver name='qemu' type='raw'/>
      <source dev='/dev/sdb' index='1'/>
      <target dev='sda' bus='scsi'/>
    </disk>
    <disk type='network' device='disk'>
      <driver name='qemu' type='raw'/>
      <source protocol='rbd' name='pool/image' index='4'><host name='ceph1' port='6789'/></source>
      <target dev='vdb' bus='virtio'/>
    </disk>
    <disk type='volume' device='disk'>
      <source pool='default' volume='vm1.img' startupPolicy='optional'/>
      <target dev='vdc' bus='virtio'/>
    </disk>
    <disk type='file' device='cdrom'>
      <target dev='sdb' bus='sata'/>
      <readonly/>
    </disk>
    <disk type='dir' device='floppy'>
      <source dir='/floppy'/>
      <target dev='fda' bus='fdc'/>
    </disk>
    <controller type='usb' model='none'/>
  </devices>
  <seclabel type='dynamic' model='apparmor' relabel='yes'><label>libvirt-1</label></seclabel>
  <seclabel type='dynamic' model='dac' relabel='yes'>
    <label>+64055:+103</label>
    <imagelabel>+64055:+103</imagelabel>
  </seclabel>
</domain>
"""


def domain(content: str) -> str:
    return f"<domain>{content}</domain>"


def test_the_disks_of_a_domain_are_read_in_their_order() -> None:
    assert domainxml.disks(DOMAIN) == (
        DiskDefinition(
            *("vda", "disk", "file", "qcow2", "/images/a & b.qcow2"),
            backing=(Layer("raw", "/images/base.img"),),
            is_chain_whole=True,
        ),
        DiskDefinition("sda", "lun", "block", "raw", "/dev/sdb"),
        DiskDefinition("vdb", "disk", "network", "raw", NetworkOrigin("rbd", "pool/image", (Host("ceph1", "6789"),))),
        DiskDefinition("vdc", "disk", "volume", "raw", "default/vm1.img"),
        DiskDefinition("sdb", "cdrom", "file", "raw", "", is_readonly=True),
        DiskDefinition("fda", "floppy", "dir", "raw", "/floppy"),
    )


def test_a_disk_has_libvirt_s_defaults() -> None:
    (disk,) = domainxml.disks(domain("<devices><disk><source file='/x'/><target dev='hda'/></disk></devices>"))
    assert disk == DiskDefinition("hda", "disk", "file", "raw", "/x")


VIRTIO = "<disk><driver{}</driver><target dev='vda' bus='virtio'/></disk>"
CONTROLLERS = "<controller type='scsi' index='0'/><controller type='scsi' index='1'><driver iothread='1'/></controller>"
ON_CONTROLLER = CONTROLLERS + "<disk><target dev='sda' bus='{}'/><address type='drive' controller='{}'/></disk>"


@pytest.mark.parametrize(
    ("devices", "has_iothread"),
    [
        (VIRTIO.format(" iothread='1'>"), True),
        (VIRTIO.format("><iothreads><iothread id='1'/></iothreads>"), True),
        (VIRTIO.format(" name='qemu'>"), False),
        (ON_CONTROLLER.format("scsi", 1), True),
        (ON_CONTROLLER.format("scsi", 0), False),
        (ON_CONTROLLER.format("sata", 1), False),
    ],
)
def test_a_disk_has_an_iothread_by_itself_or_by_its_controller(devices: str, has_iothread: bool) -> None:
    (disk,) = domainxml.disks(domain(f"<devices>{devices}</devices>"))
    assert disk.has_iothread == has_iothread


def test_only_the_top_layer_of_a_disk_is_its_origin() -> None:
    layers = "<mirror><source file='/copy'/></mirror><backingStore><source file='/base'/></backingStore>"
    for source, origin in (("<source file='/top'/>", "/top"), ("", "")):
        (disk,) = domainxml.disks(domain(f"<devices><disk>{layers}{source}<target dev='vda'/></disk></devices>"))
        assert disk.origin == origin


def test_a_domain_without_disks_has_none() -> None:
    assert domainxml.disks(domain("")) == ()
    assert domainxml.disks(domain("<devices/>")) == ()


@pytest.mark.parametrize(
    ("nvram", "definition"),
    [
        ("<nvram template='/t.fd'>/nvram/vm1.fd</nvram>", NvramDefinition("file", "raw", "/nvram/vm1.fd")),
        ("<nvram format='qcow2'>\n/vm1.qcow2\n</nvram>", NvramDefinition("file", "qcow2", "/vm1.qcow2")),
        ("<nvram type='file'><source file='/a &amp; b'/></nvram>", NvramDefinition("file", "raw", "/a & b")),
        ("<nvram type='block'><source dev='/dev/vg/v'/></nvram>", NvramDefinition("block", "raw", "/dev/vg/v")),
        ("<nvram type='network'><source protocol='nbd'/></nvram>", NvramDefinition("network", "raw", "nbd:///")),
        ("<varstore template='/t.json' path='/vm1.json'/>", NvramDefinition("file", "json", "/vm1.json")),
        ("<nvram/>", NvramDefinition("file", "raw", "")),
        ("<loader/>", None),
    ],
)
def test_where_the_firmware_keeps_its_variables_is_read(nvram: str, definition: NvramDefinition | None) -> None:
    assert domainxml.nvram(domain(f"<os>{nvram}</os>")) == definition


@pytest.mark.parametrize("xml", ["", "<domain>", "no XML", "<domain><name>\x01</name></domain>"])
def test_a_definition_that_is_not_well_formed_is_an_error_that_says_so(xml: str) -> None:
    for read in (domainxml.disks, domainxml.nvram, domainxml.owner):
        with pytest.raises(SnapmountError, match="the domain's definition is not well-formed XML"):
            read(xml)
    with pytest.raises(SnapmountError, match="the backup job's description is not well-formed XML"):
        domainxml.backup_socket(xml)


def test_qemu_s_user_is_that_of_the_dac_label() -> None:
    assert domainxml.owner(DOMAIN) == Owner("+64055", "+103")
    label = "<seclabel model='dac'><label>libvirt-qemu:kvm</label></seclabel>"
    assert domainxml.owner(domain(label)) == Owner("libvirt-qemu", "kvm")


@pytest.mark.parametrize(
    "labels",
    [
        "",
        "<seclabel model='apparmor'><label>a:b</label></seclabel>",
        "<seclabel type='none' model='dac'/>",
        "<seclabel model='dac'><label/></seclabel>",
        "<seclabel model='dac'><label>root</label></seclabel>",
        "<seclabel model='dac'><label>:kvm</label></seclabel>",
    ],
)
def test_a_domain_without_a_dac_label_has_no_owner(labels: str) -> None:
    assert domainxml.owner(domain(labels)) is None


def test_scratch_whose_path_a_profile_of_apparmor_would_misunderstand_is_refused() -> None:
    confined, plain = DOMAIN, domain("<seclabel model='dac'><label>a:b</label></seclabel>")
    domainxml.check_scratch(confined, "/srv/a (b), c/snapmount-00c0ffee")
    domainxml.check_scratch(plain, "/srv/[b]/snapmount-00c0ffee")
    with pytest.raises(StateError, match=r"^/srv/\[b\]/snapmount-00c0ffee has \[\] in its path: .* AppArmor") as caught:
        domainxml.check_scratch(confined, "/srv/[b]/snapmount-00c0ffee")
    assert caught.value.remedy == "another --scratch-dir"


def test_a_backup_job_lists_the_chosen_disks_and_those_left_out() -> None:
    job = domainxml.backup_job("/run/vm1.sock", {"vda": "/scratch/vda.qcow2"}, ["sda", "fda"])
    assert job == (
        '<domainbackup mode="pull"><server transport="unix" socket="/run/vm1.sock" /><disks>'
        '<disk name="vda" backup="yes" type="file" exportname="vda">'
        '<driver type="qcow2" /><scratch file="/scratch/vda.qcow2" /></disk>'
        '<disk name="sda" backup="no" /><disk name="fda" backup="no" />'
        "</disks></domainbackup>"
    )


@PROPERTY
@given(xml_text, st.dictionaries(disk_names, xml_text), st.lists(xml_text))
def test_a_backup_job_is_read_back_as_it_was_meant(socket: str, files: dict[str, str], left_out: list[str]) -> None:
    xml = domainxml.backup_job(socket, files, left_out)
    assert domainxml.backup_socket(xml) == socket
    listed = ElementTree.fromstring(xml).findall("./disks/disk")
    chosen = [disk for disk in listed if disk.get("backup") == "yes"]
    assert [disk.get("name") for disk in chosen] == [disk.get("exportname") for disk in chosen] == list(files)
    assert [scratch.get("file") for disk in chosen for scratch in disk.findall("scratch")] == list(files.values())
    assert [disk.get("name") for disk in listed if disk.get("backup") == "no"] == left_out
    assert len(listed) == len(files) + len(left_out)


def test_the_socket_of_a_job_as_libvirt_describes_it() -> None:
    described = """
        <domainbackup mode='pull' id='1'>
          <server transport='unix' socket='/run/other.sock'/>
          <disks><disk name='vda' backup='yes' type='file' index='7'><scratch file='/x'/></disk></disks>
        </domainbackup>"""
    assert domainxml.backup_socket(described) == "/run/other.sock"
    assert domainxml.backup_socket("<domainbackup mode='push'/>") is None
    tcp = "<domainbackup mode='pull'><server transport='tcp' name='localhost' port='10809'/></domainbackup>"
    assert domainxml.backup_socket(tcp) is None


def test_scratch_may_lie_on_block_devices() -> None:
    files = {"vda": "/dev/vg0/scratch", "vdb": "/scratch/vdb.qcow2"}
    job = ElementTree.fromstring(domainxml.backup_job("/run/s.sock", files, (), {"vda"}))
    found = [(disk.get("name"), disk.get("type"), disk.find("scratch").attrib) for disk in job.iter("disk")]  # type: ignore[union-attr]
    assert found == [("vda", "block", {"dev": "/dev/vg0/scratch"}), ("vdb", "file", {"file": "/scratch/vdb.qcow2"})]


def test_the_scratch_of_a_running_job_is_known_by_its_index() -> None:
    job = (
        "<domainbackup mode='pull'><disks><disk name='vda' backup='yes' index='3'/><disk name='vdb' backup='no'/>"
        "<disk name='vdc' backup='yes' index='12'/></disks></domainbackup>"
    )
    assert domainxml.scratch_indexes(job) == {"vda": 3, "vdc": 12}
