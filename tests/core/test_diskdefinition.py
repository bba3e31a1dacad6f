"""What a disk element may say is decided, each element and attribute of it; and a disk that lies in a network is named
by a URI.
"""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree import ElementTree

import pytest

from snapmount.boot import definition
from snapmount.boot.hardware import Source
from snapmount.core import diskdefinition
from snapmount.core.diskdefinition import DiskDefinition
from snapmount.errors import SnapmountError

from ..boot.test_definition import domain_with
from ..rig import schema

TARGET = "<target dev='sda' bus='scsi'/>"
ON_CONTROLLER_1 = "<address type='drive' controller='1'/>"
OTHERS = "<controller type='scsi' index='1'><driver iothread='1'/></controller>"
HOST = "<host name='h' port='1'/>"
NVME = "type='pci' namespace='1'"

# What a path of the schema stands for is that element or attribute, and all below it.

# Each is read: the disk is another one without it.
READ = {
    "@device": (f"<disk device='lun'>{TARGET}</disk>", f"<disk>{TARGET}</disk>"),
    "@type": (f"<disk type='block'>{TARGET}</disk>", f"<disk>{TARGET}</disk>"),
    "alias": (f"<disk>{TARGET}<alias name='ua-1'/></disk>", f"<disk>{TARGET}</disk>"),
    "address": (f"<disk>{TARGET}{ON_CONTROLLER_1}</disk>", f"<disk>{TARGET}</disk>"),
    "blockio": (f"<disk>{TARGET}<blockio logical_block_size='4096'/></disk>", f"<disk>{TARGET}</disk>"),
    "driver/@cache": (f"<disk>{TARGET}<driver cache='none'/></disk>", f"<disk>{TARGET}<driver/></disk>"),
    "driver/@iothread": (f"<disk>{TARGET}<driver iothread='1'/></disk>", f"<disk>{TARGET}<driver/></disk>"),
    "driver/@type": (f"<disk>{TARGET}<driver type='qcow2'/></disk>", f"<disk>{TARGET}<driver/></disk>"),
    "driver/iothreads": (f"<disk>{TARGET}<driver><iothreads/></driver></disk>", f"<disk>{TARGET}<driver/></disk>"),
    **{
        path: (f"<disk>{TARGET}<{path}/></disk>", f"<disk>{TARGET}</disk>")
        for path in ("auth", "backingStore", "encryption")
    },
    "readonly": (f"<disk>{TARGET}<readonly/></disk>", f"<disk>{TARGET}</disk>"),
    "shareable": (f"<disk>{TARGET}<shareable/></disk>", f"<disk>{TARGET}</disk>"),
    "target/@bus": (f"<disk>{TARGET}{ON_CONTROLLER_1}</disk>", f"<disk><target dev='sda'/>{ON_CONTROLLER_1}</disk>"),
    "target/@dev": (f"<disk>{TARGET}</disk>", "<disk><target/></disk>"),
    "transient": (f"<disk>{TARGET}<transient/></disk>", f"<disk>{TARGET}</disk>"),
    **{
        f"source/{path}": (f"<disk>{TARGET}{source}</disk>", f"<disk>{TARGET}{without}</disk>")
        for path, source, without in (
            ("@dev", "<source dev='/dev/x'/>", "<source/>"),
            ("@dir", "<source dir='/x'/>", "<source/>"),
            ("@file", "<source file='/x'/>", "<source/>"),
            ("@name", "<source protocol='nbd' name='x'/>", "<source protocol='nbd'/>"),
            ("@namespace", f"<source {NVME}><address/></source>", "<source type='pci'><address/></source>"),
            ("@path", "<source type='unix' path='/x'/>", "<source type='unix'/>"),
            ("@pool", "<source pool='p' volume='v'/>", "<source volume='v'/>"),
            ("@query", "<source protocol='http' query='x'/>", "<source protocol='http'/>"),
            ("@protocol", "<source protocol='nbd'/>", "<source/>"),
            ("@tls", "<source protocol='nbd' tls='yes'/>", "<source protocol='nbd'/>"),
            ("@volume", "<source pool='p' volume='v'/>", "<source pool='p'/>"),
            ("address", f"<source {NVME}><address bus='0x01'/></source>", f"<source {NVME}><address/></source>"),
            *((f"{each}", f"<source><{each}/></source>", "<source/>") for each in ("auth", "cookies", "encryption")),
            *((f"{each}", f"<source><{each}/></source>", "<source/>") for each in ("initiator", "slices")),
            ("config", "<source protocol='rbd'><config file='/x'/></source>", "<source protocol='rbd'/>"),
            ("dataStore", "<source><dataStore><source file='/y'/></dataStore></source>", "<source/>"),
            ("host", f"<source protocol='nbd'>{HOST}</source>", "<source protocol='nbd'/>"),
            ("snapshot", "<source protocol='rbd'><snapshot name='x'/></source>", "<source protocol='rbd'/>"),
        )
    },
}  # fmt: skip

# The guest sees them: a scratch VM's disk has them as they are.
PASSED_ON = {
    "@model": "virtio",
    "address": "<address type='drive' controller='1'/>",
    "blockio": "<blockio logical_block_size='4096'/>",
    "boot": "<boot order='1'/>",
    "geometry": "<geometry cyls='1' heads='1' secs='1'/>",
    "product": "<product>x</product>",
    "readonly": "<readonly/>",
    "serial": "<serial>x</serial>",
    "target": "<target dev='sda' bus='scsi'/>",
    "vendor": "<vendor>x</vendor>",
    "wwn": "<wwn>5000c50015ea71ac</wwn>",
    **{
        f"driver/@{each}": f"<driver {each}='on'/>"
        for each in (
            *("ats", "detect_zeroes", "discard", "event_idx", "ioeventfd", "iommu", "iothread", "packed"),
            *("page_per_vq", "queue_size", "queues"),
        )
    },
}

# Of no concern to a snapshot, nor to a scratch VM, whose disk is a qcow2 file of its own over the view.
NEITHER = {
    "@rawio": "of device='lun', which is refused",
    "@sgio": "of device='lun', which is refused",
    "@snapshot": "which kind of snapshot libvirt itself would make of the disk",
    "acpi": "by which firmware numbers the slot: no guest names disks by it",
    "backenddomain": "Xen's alone",
    "driver/@copy_on_read": "what the guest reads is written to the origin, and copied to the scratch before; the view "
    "must not be copied into a scratch VM's overlay",
    "driver/@discard_no_unref": "of the origin's qcow2 file",
    "driver/@error_policy": "what the guest meets when scratch space fails, as the man page says; a scratch VM has one",
    "driver/@io": "how QEMU opens the origin",
    "driver/@name": "qemu",
    "driver/@rerror_policy": "what the guest meets when the origin fails; a scratch VM has one",
    "driver/metadata_cache": "of the origin's qcow2 file",
    "driver/statistics": "what whoever manages the VM wants to know",
    "mirror": "of a block job that runs: libvirt is asked for that, since not each has one",
    "iotune": "limits the guest, not who reads the snapshot",
    "privateData": "in libvirt's own files alone",
    "source/@fdgroup": "how QEMU was given the origin: the name beside it stays its name",
    "source/@index": "libvirt's number for the layer",
    "source/@managed": "who takes an NVMe device from the host",
    "source/@mode": "how libvirt reaches a volume of an iSCSI pool",
    "source/@startupPolicy": "what happens at the VM's next start",
    "source/@tlsHostname": "what the server's certificate is compared with",
    "source/@type": "pci or unix, as the disk's own type says",
    "source/identity": "as whom QEMU has logged in",
    "source/knownHosts": "how QEMU knows the server",
    "source/privateData": "in libvirt's own files alone",
    "source/readahead": "how QEMU reads the origin",
    "source/reconnect": "for how long QEMU tries to reach the server again: a read's own deadline comes first",
    "source/reservations": "of device='lun', which is refused",
    "source/seclabel": "how libvirt labels the origin; scratch has labels as libvirt gives them",
    "source/ssl": "how QEMU knows the server",
    "source/timeout": "when QEMU gives up the server: a read's own deadline comes first",
    "throttlefilters": "limit the guest, not who reads the snapshot",
}


def above(path: str) -> Iterator[str]:
    """The path and those that it is below."""
    steps = path.split("/")
    yield from ("/".join(steps[:length]) for length in range(1, len(steps) + 1))


def test_all_that_libvirt_s_schema_knows_of_a_disk_is_decided() -> None:
    if not schema.SCHEMAS.exists():
        pytest.skip(f"this host lacks {schema.SCHEMAS}: run contrib/setup")
    known = schema.paths("disk")
    assert {"readonly", "source/@file", "driver/@cache", "blockio/@logical_block_size"} <= known
    undecided = [path for path in sorted(known) if not {*READ, *PASSED_ON, *NEITHER}.intersection(above(path))]
    assert undecided == [], "decide: read it in diskdefinition.py, pass it on in hardware.py, or say why neither"


def test_what_is_read_or_passed_on_is_not_called_neither() -> None:
    assert not NEITHER.keys() & (READ.keys() | PASSED_ON.keys())


def disks(content: str) -> tuple[DiskDefinition, ...]:
    return diskdefinition.disks(ElementTree.fromstring(f"<devices>{OTHERS}{content}</devices>"))


@pytest.mark.parametrize("path", READ)
def test_what_is_read_makes_another_disk(path: str) -> None:
    with_it, without = READ[path]
    assert disks(with_it) != disks(without)


@pytest.mark.parametrize("path", PASSED_ON)
def test_what_the_guest_sees_of_a_disk_a_scratch_vm_has_too(path: str) -> None:
    what = PASSED_ON[path]
    attribute, child = (f" {path[1:]}='{what}'", "") if path.startswith("@") else ("", what)
    target = "" if path == "target" else "<target dev='sda'/>"
    disk = f"<disk device='disk'{attribute}><source file='/x'/>{child}{target}</disk>"
    wish = definition.CopyRequest("copy", "u", "", "qemu", {"sda": Source("/overlay", "/view")}, "", "", "00c0ffee")
    [derived] = ElementTree.fromstring(definition.derive(domain_with(disk), wish).xml).findall("devices/disk")
    [original] = ElementTree.fromstring(f"<devices>{disk}</devices>")
    element, _, name = path.partition("@")
    old, new = (each.find(element.rstrip("/") or ".") for each in (original, derived))
    assert old is not None
    assert new is not None
    if name:
        assert new.attrib[name] == old.attrib[name]
    else:
        assert ElementTree.tostring(new) == ElementTree.tostring(old)


@pytest.mark.parametrize(
    ("told", "size"), [("", 512), ("logical_block_size='0'", 512), ("logical_block_size='4096'", 4096)]
)
def test_the_guest_s_block_size_is_known(told: str, size: int) -> None:
    [disk] = disks(f"<disk>{TARGET}<blockio physical_block_size='4096' {told}/></disk>")
    assert disk.logical_block_size == size


@pytest.mark.parametrize("told", ["-1", "4k", "", "٤"])
def test_a_block_size_that_is_no_number_is_an_error(told: str) -> None:
    with pytest.raises(SnapmountError, match="logical_block_size is no number"):
        disks(f"<disk>{TARGET}<blockio logical_block_size='{told}'/></disk>")


SOCKET = "<host transport='unix' socket='/run/a b.sock'/>"
CEPH = "<host name='ceph1' port='6789'/><host name='::1'/>"


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("<source file='/x'/>", "/x"),
        ("<source dev='/dev/x' index='1'/>", "/dev/x"),
        ("<source dir='/x'/>", "/x"),
        ("<source pool='p' volume='v' mode='host' index='1'/>", "p/v"),
        ("<source type='unix' path='/run/x.sock'><reconnect enabled='yes'/></source>", "/run/x.sock"),
        (f"<source {NVME}><address domain='0x0000' bus='0x01' slot='0x00' function='0x0'/></source>",
         "nvme://0000:01:00.0/1"),
        ("<source startupPolicy='optional' index='1'/>", ""),
        ("<source of='another' kind='x'/>", "another/x"),
        (f"<source protocol='nbd' name='exp' tls='no'>{HOST}</source>", "nbd://h:1/exp"),
        ("<source protocol='nbd' name='exp'><host name='h'/></source>", "nbd://h/exp"),
        ("<source protocol='nbd'><host name='2001:db8::1' port='10809'/></source>", "nbd://[2001:db8::1]:10809/"),
        (f"<source protocol='nbd' name='a b?'>{SOCKET}</source>", "nbd+unix:///a%20b%3F?socket=/run/a%20b.sock"),
        (f"<source protocol='nbd' name='exp' tls='yes' tlsHostname='x'>{HOST}</source>", "nbds://h:1/exp"),
        ("<source protocol='rbd' name='pool/image'/>", "rbd:pool/image"),
        (f"<source protocol='rbd' name='pool/image'>{CEPH}<snapshot name='s'/><config file='/etc/c'/></source>",
         r"rbd:pool/image@s:mon_host=ceph1\:6789\;[\:\:1]:conf=/etc/c"),
        (f"<source protocol='iscsi' name='iqn.2001-04.com.example:x/1'>{HOST}</source>",
         "iscsi://h:1/iqn.2001-04.com.example:x/1"),
        (f"<source protocol='gluster' name='vol/a/b'>{HOST}<host name='i'/></source>", "gluster://h:1,i/vol/a/b"),
        ("<source protocol='gluster' name='vol/a'><host transport='rdma' name='h'/></source>", "gluster+rdma://h/vol/a"),
        (f"<source protocol='https' name='/a/b' query='token=secret'>{HOST}</source>", "https://h:1/a/b"),
        ("<source protocol='nfs' name='/a/b'><host name='h'/><identity user='u'/></source>", "nfs://h/a/b"),
        ("<source protocol='ssh' name='/a/b'><host name='h'/></source>", "ssh://h/a/b"),
    ],
)  # fmt: skip
def test_an_origin_is_named_as_qemu_names_it(source: str, text: str) -> None:
    [disk] = disks(f"<disk>{source}{TARGET}</disk>")
    assert str(disk.origin) == text
