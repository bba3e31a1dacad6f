"""A scratch VM's definition: what makes the guest boot unchanged stays, what ties it to others goes, and is told."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapmount.boot import definition
from snapmount.boot.definition import KVM, TCG, CopyRequest, Derived
from snapmount.boot.hardware import Source
from snapmount.core import mark
from snapmount.errors import SnapmountError, StateError

from ..strategies import PROPERTY, confinable_text, disk_names, xml_text

SCHEMA = Path("/usr/share/libvirt/schemas/domain.rng")
ORIGINAL_UUID = "6695eb01-f6a4-8304-79aa-97f2502e193f"
DOMAIN = f"""\
<domain type='kvm' id='3' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>vm1</name>
  <uuid>{ORIGINAL_UUID}</uuid>
  <genid>2f9d1c4e-41d3-4be4-b3a5-0c4b60c33e35</genid>
  <title>the mail server</title>
  <metadata><app xmlns='urn:app'>vm1</app></metadata>
  <memory unit='KiB'>4194304</memory>
  <currentMemory unit='KiB'>4194304</currentMemory>
  <memoryBacking><hugepages/><source type='memfd'/><access mode='shared'/></memoryBacking>
  <vcpu placement='static' cpuset='0-3'>4</vcpu>
  <cputune><vcpupin vcpu='0' cpuset='0'/></cputune>
  <numatune><memory mode='strict' nodeset='0'/></numatune>
  <resource><partition>/machine/vm1</partition></resource>
  <sysinfo type='smbios'><system>
    <entry name='manufacturer'>me</entry><entry name='uuid'>{ORIGINAL_UUID}</entry>
  </system></sysinfo>
  <os>
    <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE.fd</loader>
    <nvram template='/usr/share/OVMF/OVMF_VARS.fd'>/var/lib/libvirt/qemu/nvram/vm1_VARS.fd</nvram>
    <kernel>/boot/vmlinuz</kernel>
    <cmdline>root=/dev/vda</cmdline>
  </os>
  <features><acpi/><hyperv mode='custom'><relaxed state='on'/></hyperv><kvm><hidden state='on'/></kvm></features>
  <cpu mode='custom' match='exact'>
    <model>Skylake</model>
    <topology sockets='1' cores='4' threads='1'/>
    <numa><cell id='0' cpus='0-3' memory='4194304' unit='KiB' memAccess='shared'/></numa>
  </cpu>
  <clock offset='utc'><timer name='rtc'/><timer name='kvmclock' present='yes'/></clock>
  <on_poweroff>restart</on_poweroff>
  <on_reboot>destroy</on_reboot>
  <on_crash>coredump-restart</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='block' device='disk'>
      <driver name='qemu' type='qcow2' cache='none' io='native' discard='unmap' iothread='1'/>
      <source dev='/dev/vg/vm1' index='2'/>
      <backingStore type='file'><format type='raw'/><source file='/base.img'/></backingStore>
      <target dev='vda' bus='virtio'/>
      <iotune><total_bytes_sec>1000</total_bytes_sec></iotune>
      <serial>S1</serial>
      <boot order='2'/>
      <alias name='virtio-disk0'/>
      <address type='pci' domain='0x0000' bus='0x04' slot='0x00' function='0x0'/>
    </disk>
    <disk type='network' device='disk'>
      <driver name='qemu' type='raw'/>
      <auth username='me'><secret type='ceph' uuid='{ORIGINAL_UUID}'/></auth>
      <source protocol='rbd' name='pool/image'><host name='ceph1'/></source>
      <target dev='sdb' bus='scsi'/>
      <shareable/>
      <wwn>5000c50015ea71ac</wwn>
    </disk>
    <disk type='file' device='disk'><source file='/excluded.img'/><target dev='vdc' bus='virtio'/></disk>
    <disk type='file' device='cdrom'>
      <driver name='qemu' type='raw'/><source file='/iso/install.iso'/>
      <target dev='sda' bus='sata'/><readonly/><boot order='1'/>
    </disk>
    <controller type='scsi' index='0' model='virtio-scsi'><alias name='scsi0'/></controller>
    <filesystem type='mount'><source dir='/srv'/><target dir='srv'/></filesystem>
    <interface type='bridge'>
      <mac address='52:54:00:11:22:33'/><source bridge='br0'/><target dev='vnet3'/><model type='virtio'/>
      <filterref filter='clean'/><boot order='3'/>
    </interface>
    <interface type='hostdev' managed='yes'><source><address type='pci' bus='0x1'/></source></interface>
    <serial type='tcp'><source mode='bind' host='0.0.0.0' service='4555'/><target type='isa-serial' port='0'/></serial>
    <serial type='dev'><source path='/dev/ttyS1'/><target type='isa-serial' port='1'/></serial>
    <console type='tcp'><source mode='bind' host='0.0.0.0' service='4555'/><target type='serial' port='0'/></console>
    <channel type='unix'>
      <source mode='bind' path='/run/libvirt/qemu/channel/3-vm1/org.qemu.guest_agent.0'/>
      <target type='virtio' name='org.qemu.guest_agent.0' state='connected'/>
      <address type='virtio-serial' controller='0' bus='0' port='1'/>
    </channel>
    <channel type='tcp'>
      <source mode='connect' host='10.0.0.1' service='1'/><target type='virtio' name='org.example.0'/>
    </channel>
    <channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0'/></channel>
    <input type='tablet' bus='usb'/>
    <input type='evdev'><source dev='/dev/input/event1'/></input>
    <tpm model='tpm-crb'><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>
    <graphics type='spice' port='5900' autoport='no' listen='0.0.0.0' keymap='de'>
      <listen type='address' address='0.0.0.0'/><gl enable='yes'/>
    </graphics>
    <graphics type='sdl' display=':0'/>
    <sound model='ich9'><audio id='1'/></sound>
    <audio id='1' type='pulseaudio' serverName='/run/user/1000/pulse/native'/>
    <video><model type='virtio'><acceleration accel3d='yes'/></model></video>
    <hostdev mode='subsystem' type='usb'><source><vendor id='0x1234'/></source></hostdev>
    <redirdev bus='usb' type='spicevmc'/>
    <smartcard mode='host'/>
    <shmem name='shared'/>
    <vsock model='virtio'><cid auto='no' address='3'/></vsock>
    <rng model='virtio'><backend model='egd' type='tcp'><source mode='connect' host='1.2.3.4'/></backend></rng>
    <memory model='nvdimm'><source><path>/nvdimm</path></source></memory>
    <watchdog model='i6300esb' action='dump'/>
    <memballoon model='virtio'/>
  </devices>
  <seclabel type='dynamic' model='apparmor' relabel='yes'><label>libvirt-{ORIGINAL_UUID}</label></seclabel>
  <seclabel type='dynamic' model='dac' relabel='yes'><label>+64055:+64055</label></seclabel>
  <qemu:commandline><qemu:arg value='-chardev'/><qemu:arg value='socket,path=/run/other.sock'/></qemu:commandline>
</domain>
"""
DISKS = {name: Source(f"/overlays/{name}.qcow2", f"/view/{name}.raw") for name in ("vda", "sdb")}
WISH = CopyRequest(
    name="vm1-scratch",
    uuid="0b7d2c39-3c5d-4b61-9cf4-0d9f1a6f8f11",
    description="a scratch VM",
    accelerator=KVM,
    disks=DISKS,
    nvram="/overlays/nvram.fd",
    console_log="/overlays/console.log",
    snapshot="84b8ec7e",
)


def derived(domain: str = DOMAIN, **changes: object) -> tuple[ElementTree.Element, Derived]:
    result = definition.derive(domain, replace(WISH, **changes))  # type: ignore[arg-type]
    return ElementTree.fromstring(result.xml), result


def domain_with(devices: str = "", rest: str = "") -> str:
    return f"<domain type='qemu'><name>vm1</name>{rest}<devices>{devices}</devices></domain>"


def text(domain: ElementTree.Element, path: str) -> str | None:
    return domain.findtext(path)


def test_it_is_a_vm_of_its_own() -> None:
    domain, _ = derived()
    assert (domain.get("type"), domain.get("id")) == ("kvm", None)
    assert text(domain, "name") == "vm1-scratch"
    assert text(domain, "uuid") == WISH.uuid
    assert text(domain, "sysinfo/system/entry[@name='uuid']") == WISH.uuid, "libvirt insists on that"
    assert text(domain, "sysinfo/system/entry[@name='manufacturer']") == "me"
    assert text(domain, "genid") == "", "the guest learns that it is a copy"
    assert [each.tag for each in domain.findall("metadata/*")] == [f"{{{mark.URI}}}scratch-vm"]
    for gone in ("title", "cputune", "numatune", "memoryBacking", "resource", "seclabel"):
        assert domain.find(gone) is None, gone


def test_nothing_names_the_original_or_its_things() -> None:
    xml = definition.derive(DOMAIN, WISH).xml
    hosts = ("ceph1", "10.0.0.1", "1.2.3.4", "0.0.0.0", "br0")
    paths = ("/dev/vg", "/srv", "/run/", "/dev/tty", "/dev/tpm0", "/nvdimm", "/base.img", "install.iso", "excluded")
    for word in (ORIGINAL_UUID, "52:54:00:11:22:33", *hosts, *paths):
        assert word not in xml, word


def test_what_the_guest_boots_with_stays() -> None:
    domain, _ = derived()
    assert text(domain, "os/kernel") == "/boot/vmlinuz"
    assert text(domain, "os/cmdline") == "root=/dev/vda"
    assert text(domain, "os/loader") == "/usr/share/OVMF/OVMF_CODE.fd"
    assert text(domain, "os/nvram") == "/overlays/nvram.fd"
    assert text(domain, "cpu/model") == "Skylake"
    assert domain.find("features/hyperv/relaxed") is not None
    assert domain.find("devices/controller[@model='virtio-scsi']") is not None
    assert [text(domain, tag) for tag in ("on_poweroff", "on_reboot", "on_crash")] == ["destroy", "restart", "destroy"]


@pytest.mark.parametrize(
    ("nvram", "kept"),
    [
        ("<nvram template='/t.fd'>/vars.fd</nvram>", {"template": "/t.fd"}),
        ("<nvram type='file' format='qcow2'><source file='/vars.qcow2'/></nvram>", {"format": "qcow2"}),
        ("<nvram type='block' templateFormat='raw'><source dev='/dev/vg/vars'/></nvram>", {"templateFormat": "raw"}),
        ("<nvram type='network'><source protocol='nbd' name='vars'><host name='h'/></source></nvram>", {}),
    ],
)
def test_the_firmware_has_a_file_of_its_own_whatever_the_original_has(nvram: str, kept: dict[str, str]) -> None:
    domain, result = derived(domain_with(rest=f"<os>{nvram}</os>"), has_nvram=True)
    [own] = domain.findall("os/nvram")
    assert (own.text, list(own), own.attrib) == ("/overlays/nvram.fd", [], kept)
    assert result.notes == ()


def test_so_it_has_where_qemu_keeps_the_variables_in_a_device() -> None:
    store = "<os><varstore template='/t.json' path='/vm1.json'/></os>"
    domain, result = derived(domain_with(rest=store), has_nvram=True)
    [own] = domain.findall("os/varstore")
    assert own.attrib == {"template": "/t.json", "path": "/overlays/nvram.fd"}
    assert result.notes == ()
    assert derived(domain_with(rest=store))[1].notes != ()


def test_variables_that_the_snapshot_does_not_have_are_new_and_said_so() -> None:
    _, result = derived(domain_with(rest="<os><nvram>/vars.fd</nvram></os>"))
    assert result.notes == ("the firmware's variables are new: the snapshot does not have those of the original",)
    assert derived(domain_with(rest="<os/>"))[1].notes == (), "a BIOS has none"


def test_the_firmware_that_libvirt_has_chosen_is_not_chosen_again() -> None:
    chosen = "<firmware><feature enabled='no' name='secure-boot'/></firmware>"
    loader = "<loader readonly='yes' type='pflash'>/OVMF_CODE.fd</loader>"
    domain, _ = derived(domain_with(rest=f"<os firmware='efi'>{chosen}{loader}</os>"))
    [system] = domain.findall("os")
    assert (system.attrib, [each.tag for each in system]) == ({}, ["loader"])
    domain, _ = derived(domain_with(rest=f"<os firmware='efi'>{chosen}</os>"))
    assert domain.find("os[@firmware='efi']/firmware/feature") is not None, "else there would be none"


def test_the_disks_are_overlays_that_the_guest_cannot_tell_from_its_own() -> None:
    domain, result = derived()
    vda, sdb, cdrom = domain.findall("devices/disk")
    assert [each.find("target").attrib for each in (vda, sdb, cdrom)] == [  # type: ignore[union-attr]
        {"dev": "vda", "bus": "virtio"},
        {"dev": "sdb", "bus": "scsi"},
        {"dev": "sda", "bus": "sata"},
    ]
    assert vda.get("type") == sdb.get("type") == "file"
    assert [each.find("source").attrib for each in (vda, sdb)] == [  # type: ignore[union-attr]
        {"file": "/overlays/vda.qcow2"},
        {"file": "/overlays/sdb.qcow2"},
    ]
    assert vda.find("backingStore/source").get("file") == "/view/vda.raw"  # type: ignore[union-attr]
    assert vda.find("backingStore/format").get("type") == "raw"  # type: ignore[union-attr]
    assert vda.find("driver").attrib == {  # type: ignore[union-attr]
        "name": "qemu", "type": "qcow2", "cache": "unsafe", "discard": "unmap", "iothread": "1",
        "error_policy": "enospace", "rerror_policy": "report",
    }  # fmt: skip
    assert (text(vda, "serial"), text(sdb, "wwn")) == ("S1", "5000c50015ea71ac")
    assert vda.find("boot").get("order") == "2"  # type: ignore[union-attr]
    assert vda.find("address") is not None
    for gone in ("iotune", "auth", "shareable", "alias"):
        assert domain.find(f"devices/disk/{gone}") is None, gone
    assert (cdrom.find("source"), cdrom.find("driver")) == (None, None), "the drive is empty"
    assert ("vdc", "not part of the snapshot") in [(each.name, each.why) for each in result.left_out]


def test_how_the_original_meets_errors_and_reads_is_not_inherited() -> None:
    driver = "<driver name='qemu' type='qcow2' error_policy='stop' rerror_policy='stop' copy_on_read='on'/>"
    domain, _ = derived(domain_with(f"<disk device='disk'>{driver}<source file='/x'/><target dev='vda'/></disk>"))
    [own] = domain.findall("devices/disk/driver")
    assert (own.get("error_policy"), own.get("rerror_policy")) == ("enospace", "report"), "the view may be lost"
    assert own.get("copy_on_read") is None, "it would copy the view into the overlay"


def test_a_disk_keeps_its_block_sizes() -> None:
    blockio = "<blockio logical_block_size='4096' physical_block_size='4096'/>"
    domain, _ = derived(domain_with(f"<disk device='disk'><source file='/x'/><target dev='vda'/>{blockio}</disk>"))
    [own] = domain.findall("devices/disk/blockio")
    assert own.attrib == {"logical_block_size": "4096", "physical_block_size": "4096"}


def test_what_is_encrypted_is_plain_in_the_view_and_transient_disks_are_as_others() -> None:
    encryption = "<encryption format='luks'><secret type='passphrase' usage='x'/></encryption>"
    source = f"<source file='/x'>{encryption}</source><transient/>"
    domain, _ = derived(domain_with(f"<disk device='disk'>{source}<target dev='vda'/></disk>"))
    assert (domain.find(".//encryption"), domain.find(".//transient")) == (None, None)


def test_no_security_driver_relabels_the_view() -> None:
    domain, _ = derived()
    labels = [each.attrib for each in domain.findall("devices/disk[1]/backingStore/source/seclabel")]
    assert labels == [{"model": "apparmor", "relabel": "no"}, {"model": "dac", "relabel": "no"}]
    assert domain.find("devices/disk[1]/source/seclabel") is None, "libvirt gives the overlays to QEMU"


def test_overlays_whose_path_a_profile_of_apparmor_would_misunderstand_are_refused() -> None:
    with pytest.raises(StateError, match="AppArmor") as caught:
        derived(disks={"vda": Source("/srv/{a}/vda.qcow2", "/mnt/vda.raw")})
    assert caught.value.remedy == "another --overlay-dir"


def test_of_static_labels_only_the_user_is_inherited() -> None:
    static = "".join(
        f"<seclabel type='static' model='{model}'><label>{label}</label></seclabel>"
        for model, label in (("dac", "+1000:+1000"), ("selinux", "system_u:system_r:svirt_t:s0:c1,c2"))
    )
    domain, _ = derived(domain_with(rest=static))
    assert [each.get("model") for each in domain.findall("seclabel")] == ["dac"], "the view is that user's"


def test_what_libvirt_gives_to_nobody_it_does_not_give_away_for_the_copy() -> None:
    labels = "<seclabel type='none' model='dac'/><seclabel type='none' model='selinux'/>"
    disk = "<disk device='disk'><source file='/x'/><target dev='vda'/></disk>"
    domain, _ = derived(domain_with(disk, labels))
    assert [each.attrib for each in domain.findall("seclabel")] == [{"type": "none", "model": "dac"}]
    [label] = domain.findall("devices/disk/backingStore/source/seclabel")
    assert label.attrib == {"model": "selinux", "relabel": "no"}, "the copy has a label of its own"


def test_what_is_left_out_is_told() -> None:
    left = {each.name for each in definition.derive(DOMAIN, WISH).left_out}
    assert left == {
        *("vdc", "srv", "vnet3", "interface", "org.example.0", "input", "graphics", "hostdev", "redirdev"),
        *("smartcard", "shmem", "vsock", "memory", "commandline"),
    }


def test_consoles_become_ptys_and_the_first_is_logged() -> None:
    domain, result = derived()
    first, second = domain.findall("devices/serial")
    assert first.get("type") == second.get("type") == "pty"
    assert first.find("log").attrib == {"file": "/overlays/console.log", "append": "off"}  # type: ignore[union-attr]
    assert second.find("log") is None
    assert second.find("target").attrib == {"type": "isa-serial", "port": "1"}  # type: ignore[union-attr]
    assert domain.find("devices/console") is None, "libvirt makes it of the first serial port"
    assert result.has_console


def test_the_port_of_a_firmware_s_debugging_is_no_console() -> None:
    debug = "<serial type='file'><source path='/x'/><target type='isa-debug' port='0'/></serial>"
    serial = "<serial type='pty'><target type='isa-serial' port='1'/></serial>"
    domain, result = derived(domain_with(debug + serial))
    assert [each.find("log") is not None for each in domain.findall("devices/serial")] == [False, True]
    assert result.has_console
    assert not derived(domain_with(debug))[1].has_console


def test_a_virtio_console_is_a_console() -> None:
    console = "<console type='pty'><source path='/dev/pts/1'/><target type='virtio' port='0'/></console>"
    domain, result = derived(domain_with(console))
    assert domain.find("devices/console/log") is not None
    assert result.has_console
    assert not derived(domain_with())[1].has_console


def test_channels_get_sockets_of_their_own() -> None:
    domain, result = derived()
    agent, spice = domain.findall("devices/channel")
    assert agent.find("source") is None
    assert agent.find("target").attrib == {"type": "virtio", "name": "org.qemu.guest_agent.0"}  # type: ignore[union-attr]
    assert spice.get("type") == "spicevmc"
    assert result.has_agent_channel


def test_a_pty_channel_is_another_pty() -> None:
    pty = "<channel type='pty'><source path='/dev/pts/9'/><target type='virtio' name='org.example.1'/></channel>"
    domain, result = derived(domain_with(pty))
    [channel] = domain.findall("devices/channel")
    assert (channel.get("type"), [each.tag for each in channel]) == ("pty", ["target"])
    assert result.left_out == ()


def test_the_video_card_needs_no_shared_memory() -> None:
    domain, _ = derived(domain_with("<video><model type='virtio' heads='1' blob='on'/></video>"))
    assert [each.attrib for each in domain.findall("devices/video/model")] == [{"type": "virtio", "heads": "1"}]


def test_graphics_listen_at_the_loopback_at_a_free_port() -> None:
    [graphics] = derived()[0].findall("devices/graphics")
    assert graphics.attrib == {"type": "spice", "autoport": "yes", "listen": "127.0.0.1", "keymap": "de"}
    assert [each.attrib for each in graphics] == [{"type": "address", "address": "127.0.0.1"}]


def test_the_tpm_is_another_one() -> None:
    domain, result = derived()
    assert domain.find("devices/tpm/backend").attrib == {"type": "emulator", "version": "2.0"}  # type: ignore[union-attr]
    assert "the TPM is emulated anew, and empty" in result.notes


def test_by_default_there_is_no_network() -> None:
    assert derived()[0].find("devices/interface") is None


@pytest.mark.parametrize(
    ("network", "kind", "child", "attributes"),
    [("isolated", "user", "link", {"state": "down"}), ("lab", "network", "source", {"network": "lab"})],
)
def test_interfaces_are_as_before_in_another_network(
    network: str, kind: str, child: str, attributes: dict[str, str]
) -> None:
    [interface] = derived(network=network)[0].findall("devices/interface")
    assert interface.get("type") == kind
    assert interface.find(child).attrib == attributes  # type: ignore[union-attr]
    assert [each.tag for each in interface] == [child, "model", "boot"], "libvirt makes up a new address"


def test_interfaces_keep_their_names_in_the_guest_and_their_mtu_where_libvirt_can_set_it() -> None:
    bridged = "<interface type='bridge'><source bridge='br0'/><mtu size='9000'/><acpi index='1'/></interface>"
    for network, tags in (("isolated", {"link", "acpi"}), ("lab", {"source", "mtu", "acpi"})):
        [interface] = derived(domain_with(bridged), network=network)[0].findall("devices/interface")
        assert {each.tag for each in interface} == tags


def test_memory_and_processors_can_be_others() -> None:
    domain, _ = derived(memory_kib=524288, vcpus=2)
    assert [(each.text, each.attrib) for each in domain.findall("memory")] == [("524288", {"unit": "KiB"})]
    assert domain.find("currentMemory") is None
    assert [(each.text, each.attrib) for each in domain.findall("vcpu")] == [("2", {})]
    assert [each.tag for each in domain.findall("cpu/*")] == ["model"]
    domain, _ = derived()
    assert text(domain, "memory") == "4194304"
    assert [(each.text, each.attrib) for each in domain.findall("vcpu")] == [("4", {})]
    assert "memAccess" not in domain.find("cpu/numa/cell").attrib  # type: ignore[union-attr]


MODULES = """\
<memory model='dimm' access='shared'>
  <source><nodemask>1</nodemask><pagesize unit='MiB'>2</pagesize></source>
  <target><size unit='MiB'>64</size><node>0</node></target>
</memory>
<memory model='virtio-mem'>
  <target>
    <size unit='MiB'>64</size><node>0</node><block unit='MiB'>2</block><requested unit='MiB'>64</requested>
  </target>
</memory>"""
NODES = """\
<maxMemory slots='4' unit='MiB'>1024</maxMemory><memory unit='MiB'>192</memory><vcpu>2</vcpu>
<cpu mode='custom' match='exact' check='full'>
  <model fallback='forbid'>qemu64</model>
  <numa><cell id='0' cpus='0-1' memory='64' unit='MiB'/></numa>
</cpu>"""
SLOTLESS = "with other memory or processors it has no NUMA nodes, and so no memory modules or slots for them"


def test_plugged_in_memory_stays_but_not_what_the_host_makes_it_of() -> None:
    domain, result = derived(domain_with(MODULES, NODES))
    modules = domain.findall("devices/memory")
    assert [(each.get("model"), [child.tag for child in each]) for each in modules] == [
        ("dimm", ["target"]),
        ("virtio-mem", ["target"]),
    ]
    assert modules[0].get("access") is None
    assert domain.find("maxMemory") is not None
    assert (result.left_out, result.notes) == ((), ())


@pytest.mark.parametrize("asked", [{"vcpus": 1}, {"memory_kib": 131072}])
def test_with_other_memory_or_processors_nothing_belongs_to_a_node(asked: dict[str, int]) -> None:
    expander = (
        "<controller type='pci' model='pcie-expander-bus'><target busNr='180'><node>0</node></target></controller>"
    )
    domain, result = derived(domain_with(MODULES + expander, NODES), **asked)
    for gone in ("maxMemory", "devices/memory", "cpu/numa", ".//node"):
        assert domain.find(gone) is None, gone
    assert result.notes == (SLOTLESS,)
    assert derived(domain_with(), **asked)[1].notes == ()


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ("nvdimm", "memory in a file of the host"),
        ("virtio-pmem", "memory in a file of the host"),
        ("sgx-epc", "memory of the host's for enclaves"),
        ("another", "not taken over"),
    ],
)
def test_what_is_not_plain_memory_is_left_out_for_its_own_reason(model: str, why: str) -> None:
    assert [each.why for each in derived(domain_with(f"<memory model='{model}'/>"))[1].left_out] == [why]


def test_the_processor_may_have_come_to_have_more_or_fewer_features() -> None:
    domain, _ = derived(domain_with(rest=NODES))
    assert domain.find("cpu[@check='none']") is not None
    domain, _ = derived(domain_with(rest="<cpu mode='host-passthrough' migratable='on'/>"))
    assert domain.find("cpu").attrib == {"mode": "host-passthrough", "migratable": "on"}  # type: ignore[union-attr]


def test_without_kvm_nothing_asks_for_it() -> None:
    assert definition.accelerator(DOMAIN) == KVM
    domain, _ = derived(accelerator=TCG)
    assert domain.get("type") == "qemu"
    assert domain.find("cpu").attrib == {"mode": "maximum"}  # type: ignore[union-attr]
    assert [each.tag for each in domain.findall("cpu/*")] == ["topology", "numa"]
    assert [each.tag for each in domain.findall("features/*")] == ["acpi"]
    assert [each.get("name") for each in domain.findall("clock/timer")] == ["rtc"]


@pytest.mark.parametrize("network", ["none", "isolated", "lab"])
@pytest.mark.parametrize("accelerator", [KVM, TCG])
def test_libvirt_s_schema_admits_it(network: str, accelerator: str, tmp_path: Path) -> None:
    if not SCHEMA.exists() or not shutil.which("xmllint"):
        pytest.skip(f"this host lacks {SCHEMA} or xmllint")
    _, result = derived(network=network, accelerator=accelerator)
    (tmp_path / "domain.xml").write_text(result.xml)
    command = ["xmllint", "--noout", "--relaxng", str(SCHEMA), str(tmp_path / "domain.xml")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_definition_that_is_no_xml_is_an_error() -> None:
    with pytest.raises(SnapmountError, match="the domain's definition is not well-formed XML"):
        definition.derive("<domain>", WISH)


@PROPERTY
@given(xml_text, confinable_text, st.lists(disk_names, unique=True, max_size=5), st.integers(min_value=0, max_value=5))
def test_names_come_through_and_only_disks_of_the_snapshot_stay(
    name: str, path: str, disks: list[str], chosen: int
) -> None:
    elements = "".join(f"<disk device='disk'><source file='/x'/><target dev='{disk}'/></disk>" for disk in disks)
    sources = {disk: Source(f"{path}/{disk}.qcow2", f"{path}/{disk}.raw") for disk in disks[:chosen]}
    domain, result = derived(domain_with(elements), name=name, disks=sources)
    carriage = {ord("\r"): "\n"}  # as XML reads line ends
    assert (text(domain, "name") or "").translate(carriage) == name.translate(carriage) or "\r\n" in name
    assert [each.get("dev") for each in domain.findall("devices/disk/target")] == disks[:chosen]
    assert [each.name for each in result.left_out] == disks[chosen:]
