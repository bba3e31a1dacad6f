"""libvirt's description of a checkpoint: https://libvirt.org/formatcheckpoint.html ."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from xml.etree import ElementTree

from . import domainxml


def definition(name: str, description: str, marked: Collection[str], unmarked: Collection[str]) -> str:
    """The XML of a checkpoint to be made: a bitmap of its name for each marked disk."""
    checkpoint = ElementTree.Element("domaincheckpoint")
    ElementTree.SubElement(checkpoint, "name").text = name
    ElementTree.SubElement(checkpoint, "description").text = description
    disks = ElementTree.SubElement(checkpoint, "disks")
    for disk in (*marked, *unmarked):
        kind = "bitmap" if disk in marked else "no"
        ElementTree.SubElement(disks, "disk", name=disk, checkpoint=kind)
    return ElementTree.tostring(checkpoint, encoding="unicode")


def description(definition: str, created: datetime, domain_xml: str) -> str:
    """What libvirt would make of a definition at that time, of a VM that runs: with that it can be told of a checkpoint
    that was made without it.  Raises SnapmountError if the XML is not well-formed.
    """
    checkpoint = domainxml.parse(definition, "the checkpoint's definition")
    ElementTree.SubElement(checkpoint, "creationTime").text = str(int(created.timestamp()))
    for disk in checkpoint.findall("./disks/disk[@checkpoint='bitmap']"):
        disk.set("bitmap", checkpoint.findtext("name", ""))
    checkpoint.append(domainxml.parse(domain_xml, "the domain's definition"))
    return ElementTree.tostring(checkpoint, encoding="unicode")


def marked_disks(checkpoint_xml: str) -> list[str]:
    """The disks that have a bitmap, by libvirt's description of a checkpoint.  Raises SnapmountError if that is not
    well-formed.
    """
    disks = domainxml.parse(checkpoint_xml, "the checkpoint's description").findall("./disks/disk")
    return [disk.get("name", "") for disk in disks if disk.get("checkpoint") == "bitmap"]


def only(checkpoint_xml: str, disks: Collection[str]) -> str:
    """The same checkpoint, but as if these disks alone had a bitmap; it has no parent, which may be gone."""
    checkpoint = domainxml.parse(checkpoint_xml, "the checkpoint's description")
    for disk in checkpoint.findall("./disks/disk"):
        if disk.get("name") not in disks:
            disk.set("checkpoint", "no")
            disk.attrib.pop("bitmap", None)
    for parent in checkpoint.findall("./parent"):
        checkpoint.remove(parent)
    return ElementTree.tostring(checkpoint, encoding="unicode")
