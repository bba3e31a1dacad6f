"""The mark in a domain's `<metadata>` that proves it a scratch VM (https://libvirt.org/formatdomain.html, "General
metadata").
"""

from __future__ import annotations

from xml.etree import ElementTree

from .domainxml import parse

URI = "http://snapmount.internal/xmlns/domain/1.0"  # its namespace


def element(snapshot: str) -> ElementTree.Element:
    """What proves that the VM is a scratch VM, since nobody else has reason to write it.

    Its namespace is declared by itself, not by the root, as ElementTree would: what lies in `<metadata>` is kept alone.
    """
    return ElementTree.Element("snapmount:scratch-vm", {"xmlns:snapmount": URI, "snapshot": snapshot})


def snapshot_of(metadata_xml: str) -> str | None:
    """The snapshot that the mark names, as libvirt tells it to who asks for that namespace, and without it
    (virDomainGetMetadata); None if it is another element.  Raises SnapmountError if that is not well-formed.
    """
    found = parse(metadata_xml, "the scratch VM's mark")
    return found.get("snapshot") if found.tag.rpartition("}")[2] == "scratch-vm" else None
