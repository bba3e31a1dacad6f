"""libvirt's XML, in and out: the disks of a domain, QEMU's user, and the description of a backup job.

Formats: https://libvirt.org/formatdomain.html (hard drives, security label) and https://libvirt.org/formatbackup.html.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from xml.etree import ElementTree

from ..errors import SnapmountError, StateError
from . import diskdefinition, names
from .blocksize import DEFAULT_BLOCK_SIZE
from .diskdefinition import DiskDefinition
from .origin import of_source

XML_MAX = 4 << 20
DEPTH_MAX = 256
# virt-aa-helper writes a path as it is into a profile, where these have a meaning (apparmor.d(5), "Globbing").  So have
# * and ?, but what they match includes the path itself.
UNCONFINABLE = frozenset('[]{}\\"')


@dataclass(frozen=True)
class Owner:
    """The user that a domain's QEMU process runs as; names or '+NUMBER' as in a DAC security label."""

    user: str
    group: str


def parse(xml: str, what: str) -> ElementTree.Element:
    """The root of an XML document.

    Raises SnapmountError, which calls it `what`, if it is not well-formed, or larger or deeper than libvirt makes it
    (VIR_NET_MESSAGE_STRING_MAX; libxml2's own limit), or has a document type and so may have entities: libvirt never
    writes one.
    """
    if len(xml) > XML_MAX:
        raise SnapmountError(f"{what} has {len(xml)} characters; libvirt tells of no more than {XML_MAX}")
    parser = ElementTree.XMLParser(target=_Builder())
    try:
        parser.feed(xml)
        root: ElementTree.Element = parser.close()
        return root
    except (ElementTree.ParseError, ValueError) as error:  # the latter also for what is no Unicode
        raise SnapmountError(f"{what} is not well-formed XML: {error}") from error


class _Builder(ElementTree.TreeBuilder):
    """Builds the tree of what libvirt writes."""

    _depth = 0

    def doctype(self, name: str, _public: str | None, _system: str | None) -> None:
        raise ValueError(f"it has a document type ({name[:40]!r})")

    def start(self, tag: str, attrs: dict[str, str]) -> ElementTree.Element:
        self._depth += 1
        if self._depth > DEPTH_MAX:
            raise ValueError(f"its elements are nested more than {DEPTH_MAX} deep")
        return super().start(tag, attrs)

    def end(self, tag: str) -> ElementTree.Element:
        self._depth -= 1
        return super().end(tag)


def disks(domain_xml: str) -> tuple[DiskDefinition, ...]:
    """The disks of a domain in their order.  Raises SnapmountError if the XML is not well-formed."""
    return diskdefinition.disks(parse(domain_xml, "the domain's definition").find("devices"))


@dataclass(frozen=True)
class NvramDefinition:
    """Where the firmware of a domain keeps its variables: `<os><nvram>`, or `<os><varstore>` since libvirt 12.1."""

    kind: str  # <nvram type=...>: file, block, network
    format: str  # raw, qcow2, or that of QEMU's uefi-vars device: json
    origin: str  # a path, or what identifies the source otherwise; '' where libvirt tells none


def nvram(domain_xml: str) -> NvramDefinition | None:
    """The domain's, None if its firmware keeps no variables.  Raises SnapmountError if the XML is not
    well-formed.
    """
    domain = parse(domain_xml, "the domain's definition")
    element, store = domain.find("./os/nvram"), domain.find("./os/varstore")
    if element is None:
        return None if store is None else NvramDefinition("file", "json", store.get("path", ""))
    source = element.find("source")  # since libvirt 8.5; before, and where it is a file, the path alone
    return NvramDefinition(
        kind=element.get("type", "file"),
        format=element.get("format", "raw"),
        origin=(element.text or "").strip() if source is None else str(of_source(source)),
    )


def owner(domain_xml: str) -> Owner | None:
    """Whom QEMU runs as, by the DAC security label of a running domain; None if it has none (a user's session)."""
    return _owner(parse(domain_xml, "the domain's definition").findall("./seclabel[@model='dac']/label"))


def _owner(labels: Iterable[ElementTree.Element]) -> Owner | None:
    for label in labels:
        match = re.fullmatch(r"([^:]+):([^:]+)", label.text or "")
        if match:
            return Owner(*match.groups())
    return None


def label_models(domain: ElementTree.Element) -> list[str]:
    """The security drivers that label the files of a domain: dac, selinux, apparmor."""
    return [label.get("model", "") for label in domain.findall("seclabel") if label.get("type") != "none"]


def add_unlabelled_source(parent: ElementTree.Element, file: str, models: Collection[str]) -> None:
    """Add a `<source>`, a file of the view, which no security driver shall relabel: it is read-only, and QEMU's user's
    already.  (AppArmor's driver labels nothing: it lets the VM's profile read the file all the same.)

    Raises StateError where AppArmor's driver cannot do so.
    """
    check_confinable(file, models, "a snapshot with another MOUNTPOINT")
    source = ElementTree.SubElement(parent, "source", file=file)
    for model in models:
        ElementTree.SubElement(source, "seclabel", model=model, relabel="no")


def add_block_size(disk: ElementTree.Element, size_bytes: int) -> None:
    """Let the disk have logical blocks of that size, where it would not by itself.

    QEMU refuses logical blocks that are larger than physical ones; to who only reads, the latter do not matter.
    """
    if size_bytes != DEFAULT_BLOCK_SIZE:
        size = str(size_bytes)
        ElementTree.SubElement(disk, "blockio", logical_block_size=size, physical_block_size=size)


def check_confinable(path: str, models: Collection[str], remedy: str) -> None:
    """Raise StateError if AppArmor's driver is one of these and cannot let a VM's profile have the path."""
    found = "".join(sorted(UNCONFINABLE.intersection(path))) if "apparmor" in models else ""
    if found:
        raise StateError(
            f"{names.printable(path)} has {found} in its path: libvirt cannot let a VM's AppArmor profile have it",
            remedy,
        )


def check_scratch(domain_xml: str, directory: str) -> None:
    """Raise StateError if a running domain's AppArmor profile cannot have scratch files in the directory."""
    models = label_models(parse(domain_xml, "the domain's definition"))
    check_confinable(directory, models, "another --scratch-dir")


def has_device(domain_xml: str, alias: str) -> bool:
    """Whether the domain has a device of that alias."""
    aliases = parse(domain_xml, "the domain's definition").findall("./devices/*/alias")
    return any(each.get("name") == alias for each in aliases)


def security_models(capabilities_xml: str) -> dict[str, Owner | None]:
    """The security drivers of the hypervisor, with whom QEMU runs as by default, which 'dac' tells
    (https://libvirt.org/formatcaps.html).
    """
    models = parse(capabilities_xml, "the host's capabilities").findall("./host/secmodel")
    return {model.findtext("model", ""): _owner(model.findall("baselabel")) for model in models}


def supports_backup(capabilities_xml: str) -> bool:
    """Whether QEMU can run backup jobs, by the domain capabilities (https://libvirt.org/formatdomaincaps.html)."""
    backup = parse(capabilities_xml, "the domain capabilities").find("./features/backup")
    return backup is not None and backup.get("supported") == "yes"


def backup_job(
    socket: str,
    scratch_files: Mapping[str, str],
    left_out: Iterable[str],
    on_devices: Collection[str] = (),
    since: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """The XML of a pull-mode backup job.

    `scratch_files` maps each chosen disk's name to the path of its qcow2 scratch file, which is a block device for
    the disks of `on_devices`; the NBD export of a disk has the disk's name.  All chosen disks are of one moment.
    The disks of `left_out` are named as such: libvirt would take them otherwise.  `since` maps disks to the checkpoint
    from which on their exports tell what has changed, as a bitmap that is named as dirty_bitmap() says.
    """
    job = ElementTree.Element("domainbackup", mode="pull")
    ElementTree.SubElement(job, "server", transport="unix", socket=socket)
    listed = ElementTree.SubElement(job, "disks")
    for name, path in scratch_files.items():
        kind, attribute = ("block", "dev") if name in on_devices else ("file", "file")
        disk = ElementTree.SubElement(listed, "disk", name=name, backup="yes", type=kind, exportname=name)
        if name in since:
            disk.attrib |= {"backupmode": "incremental", "incremental": since[name], "exportbitmap": dirty_bitmap(name)}
        ElementTree.SubElement(disk, "driver", type="qcow2")
        ElementTree.SubElement(disk, "scratch", {attribute: path})
    for name in left_out:
        ElementTree.SubElement(listed, "disk", name=name, backup="no")
    return ElementTree.tostring(job, encoding="unicode")


def dirty_bitmap(disk: str) -> str:
    """What the export of a disk calls the bitmap of its changes: the one that libvirt would choose."""
    return f"backup-{disk}"


def backup_socket(job_xml: str) -> str | None:
    """The unix socket of a running backup job: what tells our job from another's."""
    server = parse(job_xml, "the backup job's description").find("server")
    return None if server is None else server.get("socket")


def scratch_indexes(job_xml: str) -> dict[str, int]:
    """The index of each disk's scratch in a running backup job: 'vda' with 3 is what libvirt calls 'vda[3]'."""
    disks = parse(job_xml, "the backup job's description").findall("./disks/disk[@index]")
    return {disk.get("name", ""): int(disk.get("index", "")) for disk in disks}
