"""The definition of a scratch VM, derived from that of the VM whose snapshot it runs on.

What makes the guest boot unchanged stays: machine, firmware, direct kernel boot, CPU, disks with their bus, serial and
boot order, controllers, consoles.  What would tie the scratch VM to the original, to its host or to a network goes: the
devices that stay are listed here, all others are left out, and said so.  Format: https://libvirt.org/formatdomain.html
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from xml.etree import ElementTree

from ..core import mark
from ..core.domainxml import parse
from ..core.leftout import LeftOut
from . import hardware
from .hardware import Left, Source

KVM, TCG = "kvm", "qemu"  # <domain type=...>

# What belongs to this run of the original, to its tuning on this host, or to whoever manages it.
_NOT_INHERITED = frozenset(
    {
        "blkiotune", "cputune", "description", "genid", "idmap", "memoryBacking", "memtune", "metadata",
        "name", "numatune", "on_crash", "on_lockfailure", "on_poweroff", "on_reboot", "perf", "resource", "seclabel",
        "throttlegroups", "title", "uuid",
    }
)  # fmt: skip
_UNLABELLED = "none"  # <seclabel type=...>
_ON_KVM_ONLY = ("hyperv", "kvm", "pmu")  # <features>
_CLOCKS_OF_KVM = ("kvmclock", "hypervclock", "tsc")  # <clock><timer name=...>


@dataclass(frozen=True)
class CopyRequest:
    """What the scratch VM shall be."""

    name: str
    uuid: str
    description: str
    accelerator: str  # KVM or TCG
    disks: Mapping[str, Source]  # by target name; the VM's other disks are left out
    nvram: str  # where its firmware's variables lie
    console_log: str  # what the guest writes to its first console
    snapshot: str  # the id of the one that it runs on
    has_nvram: bool = False  # whether they are there, copied from the snapshot; else libvirt makes them anew
    network: str = hardware.NONE
    memory_kib: int | None = None
    vcpus: int | None = None

    @property
    def is_resized(self) -> bool:
        """Whether memory or processors are not the original's."""
        return self.memory_kib is not None or self.vcpus is not None


@dataclass(frozen=True)
class Derived:
    """A scratch VM's definition."""

    xml: str
    left_out: tuple[LeftOut, ...]  # devices of the original that it does not have
    notes: tuple[str, ...]  # what else is not as in the original
    has_console: bool
    has_agent_channel: bool


def accelerator(domain_xml: str) -> str:
    """What the domain runs with: KVM or TCG."""
    return parse(domain_xml, "the domain's definition").get("type", TCG)


def derive(domain_xml: str, asked: CopyRequest) -> Derived:
    """The scratch VM's definition, from that of the running original (`virsh dumpxml`).

    Raises SnapmountError if that is not well-formed.
    """
    original = parse(domain_xml, "the domain's definition")
    left: Left = []
    notes: list[str] = []
    domain = ElementTree.Element("domain", type=asked.accelerator)
    for tag, text in (("name", asked.name), ("uuid", asked.uuid), ("description", asked.description)):
        ElementTree.SubElement(domain, tag).text = text
    ElementTree.SubElement(domain, "metadata").append(mark.element(asked.snapshot))
    if original.find("genid") is not None:
        ElementTree.SubElement(domain, "genid")  # anew: the guest must learn that it is a copy
    for element in original:
        if element.tag.startswith("{") or element.tag == "launchSecurity":
            left.append(LeftOut(element.tag.rpartition("}")[2], "cannot be taken over from the original"))
        elif element.tag not in _NOT_INHERITED and element.tag != "devices":
            domain.append(element)
    for tag, action in (("on_poweroff", "destroy"), ("on_reboot", "restart"), ("on_crash", "destroy")):
        ElementTree.SubElement(domain, tag).text = action
    labels = _labels(original)
    domain.extend(labels)
    _take_over_firmware(domain, asked, notes)
    _renew_identity(domain, asked.uuid)
    _resize(domain, asked)
    if asked.accelerator != KVM and original.get("type") == KVM:
        _do_without_kvm(domain)
    devices = ElementTree.SubElement(domain, "devices")
    models = _label_models(original, labels)
    keeper = hardware.DeviceFilter(asked.disks, models, asked.network, asked.console_log, left, notes)
    devices.extend(keeper.keep(original.find("devices")))
    if asked.is_resized:
        _forget_nodes(devices, original.find("maxMemory") is not None, notes)
    return Derived(
        xml=ElementTree.tostring(domain, encoding="unicode"),
        left_out=tuple(left),
        notes=tuple(notes),
        has_console=keeper.has_console,
        has_agent_channel=keeper.has_agent_channel,
    )


def _labels(original: ElementTree.Element) -> list[ElementTree.Element]:
    """The security labels that the scratch VM inherits: the user that QEMU runs as, since the view belongs to it, and
    that no file is to be given to that user, kernel and firmware for instance.

    Static labels of SELinux and AppArmor are what keeps the original apart from other VMs, and so are not inherited.
    """
    return [
        label for label in original.findall("seclabel[@model='dac']") if label.get("type") in ("static", _UNLABELLED)
    ]


def _label_models(original: ElementTree.Element, labels: Collection[ElementTree.Element]) -> list[str]:
    """The security drivers that label the scratch VM: all that the original names, but for those that its labels
    forbid.
    """
    forbidden = {"none", *(label.get("model") for label in labels if label.get("type") == _UNLABELLED)}
    models = (label.get("model") for label in original.findall("seclabel"))
    return [model for model in models if model and model not in forbidden]


def _without(parent: ElementTree.Element, *tags: str) -> int:
    """Remove the children of these tags; return how many there were."""
    gone = [child for child in parent if child.tag in tags]
    for child in gone:
        parent.remove(child)
    return len(gone)


def _take_over_firmware(domain: ElementTree.Element, asked: CopyRequest, notes: list[str]) -> None:
    """Let the same firmware keep its variables in a file of the scratch VM's own."""
    system = domain.find("os")
    if system is None:
        return
    if system.findtext("loader", "").strip():
        # libvirt has chosen it for the original, by these, and takes them amiss beside its choice (9.0 does)
        system.attrib.pop("firmware", None)
        _without(system, "firmware")
    nvram, store = system.find("nvram"), system.find("varstore")
    if store is not None:
        store.set("path", asked.nvram)
    if nvram is None and store is None:
        return
    if not asked.has_nvram:
        notes.append("the firmware's variables are new: the snapshot does not have those of the original")
    if nvram is not None:
        kept = {key: value for key, value in nvram.items() if key in ("template", "templateFormat", "format")}
        nvram.clear()
        nvram.attrib.update(kept)
        nvram.text = asked.nvram


def _renew_identity(domain: ElementTree.Element, uuid: str) -> None:
    """libvirt insists that the uuid of the SMBIOS tables is that of the domain."""
    domain.attrib.pop("id", None)
    for entry in domain.findall("./sysinfo/system/entry[@name='uuid']"):
        entry.text = uuid


def _resize(domain: ElementTree.Element, asked: CopyRequest) -> None:
    """Memory and processors as wished; what describes the original's in detail goes then, and with its NUMA nodes what
    can be plugged into them.
    """
    if asked.is_resized:
        _without(domain, "maxMemory")
    if asked.memory_kib is not None:
        _without(domain, "memory", "currentMemory")
        ElementTree.SubElement(domain, "memory", unit="KiB").text = str(asked.memory_kib)
    vcpu = domain.find("vcpu")
    if vcpu is not None:
        vcpu.attrib.pop("cpuset", None)
        vcpu.attrib.pop("placement", None)
    if asked.vcpus is not None:
        _without(domain, "vcpu", "vcpus")
        ElementTree.SubElement(domain, "vcpu").text = str(asked.vcpus)
    cpu = domain.find("cpu")
    if cpu is not None:
        if asked.vcpus is not None:
            _without(cpu, "topology")
        if asked.is_resized:
            _without(cpu, "numa")
        if "check" in cpu.attrib:
            # A running VM's says: all of this, and nothing else.  But since it was started, a new QEMU, kernel or
            # microcode may have come to offer more, or less; a guest that boots takes what there is.
            cpu.set("check", "none")
        for cell in cpu.findall("./numa/cell"):
            cell.attrib.pop("memAccess", None)  # which only vhost-user needs


def _forget_nodes(devices: ElementTree.Element, has_slots: bool, notes: list[str]) -> None:
    """Without NUMA nodes nothing can belong to one."""
    if _without(devices, "memory") or has_slots:
        notes.append("with other memory or processors it has no NUMA nodes, and so no memory modules or slots for them")
    for target in devices.findall("controller/target"):
        _without(target, "node")


def _do_without_kvm(domain: ElementTree.Element) -> None:
    """Drop what only KVM can do: the host's CPU model, and enlightenments of its making."""
    cpu = domain.find("cpu")
    if cpu is not None:
        kept = [child for child in cpu if child.tag in ("topology", "numa")]
        cpu.clear()
        cpu.set("mode", "maximum")
        cpu.extend(kept)
    for features in domain.findall("features"):
        _without(features, *_ON_KVM_ONLY)
    for clock in domain.findall("clock"):
        for timer in clock.findall("timer"):
            if timer.get("name") in _CLOCKS_OF_KVM:
                clock.remove(timer)
