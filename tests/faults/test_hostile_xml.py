"""Definitions of VMs that are broken, enormous or meant to harm: a clear error, in bounded time and memory."""

from __future__ import annotations

import contextlib
import time
import tracemalloc
from xml.sax.saxutils import escape, quoteattr

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snapmount.boot import definition
from snapmount.boot.definition import KVM, CopyRequest
from snapmount.boot.hardware import Source
from snapmount.core import domainxml, plan
from snapmount.core.domainxml import DEPTH_MAX, XML_MAX
from snapmount.errors import SnapmountError, StateError

from ..boot.test_definition import DOMAIN
from ..strategies import xml_text

MIB = 1 << 20
BOUNDED = settings(deadline=None, derandomize=True, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
WISH = CopyRequest(
    "x", "0b7d2c39-3c5d-4b61-9cf4-0d9f1a6f8f11", "y", KVM, {"vda": Source("/o", "/f")}, "/nvram", "/log", "1"
)

LAUGHS = "".join(f'<!ENTITY a{n + 1} "{f"&a{n};" * 10}">' for n in range(9))
BILLION_LAUGHS = f'<!DOCTYPE domain [<!ENTITY a0 "ha">{LAUGHS}]><domain><name>&a9;</name></domain>'
QUADRATIC = f'<!DOCTYPE domain [<!ENTITY a "{"x" * 50_000}">]><domain>{"&a;" * 50_000}</domain>'
EXTERNAL = '<!DOCTYPE domain [<!ENTITY a SYSTEM "file:///etc/shadow">]><domain><name>&a;</name></domain>'
PARAMETER = (
    '<!DOCTYPE domain SYSTEM "http://127.0.0.1:1/x.dtd" [<!ENTITY % a SYSTEM "file:///etc/shadow">%a;]><domain/>'
)


def read_all(xml: str) -> None:
    """All that snapmount reads out of a definition."""
    domainxml.nvram(xml)
    domainxml.owner(xml)
    domainxml.backup_socket(xml)
    domainxml.security_models(xml)
    domainxml.supports_backup(xml)
    plan.select("vm1", domainxml.disks(xml), plan.Choice())
    definition.accelerator(xml)
    derived = definition.derive(xml, WISH)
    domainxml.parse(derived.xml, "what was derived")


@pytest.mark.parametrize("xml", [BILLION_LAUGHS, QUADRATIC, EXTERNAL, PARAMETER, "<!DOCTYPE domain><domain/>"])
def test_a_document_type_is_refused_before_its_entities_cost_anything(xml: str) -> None:
    tracemalloc.start()
    try:
        begun = time.process_time()
        with pytest.raises(SnapmountError, match=r"the domain's definition .* document type"):
            domainxml.disks(xml)
        assert time.process_time() - begun < 1
        assert tracemalloc.get_traced_memory()[1] < 16 * MIB
    finally:
        tracemalloc.stop()


def test_a_definition_that_is_larger_than_libvirt_tells_is_refused() -> None:
    large = f"<domain>{'<x/>' * (XML_MAX // 4)}</domain>"
    with pytest.raises(SnapmountError, match=f"has {len(large)} characters"):
        domainxml.disks(large)


def test_the_largest_definition_is_read_in_seconds() -> None:
    disk = "<disk type='file'><source file='/x'/><target dev='vd{}'/></disk>"
    many = "".join(disk.format(n) for n in range(40_000))
    xml = f"<domain><devices>{many}</devices></domain>"
    assert XML_MAX // 2 < len(xml) <= XML_MAX
    begun = time.process_time()
    assert len(domainxml.disks(xml)) == 40_000
    assert time.process_time() - begun < 10


@pytest.mark.parametrize("depth", [DEPTH_MAX + 1, 500_000])
def test_a_definition_that_is_nested_too_deeply_is_refused(depth: int) -> None:
    with pytest.raises(SnapmountError, match="nested more than"):
        domainxml.disks("<a>" * depth + "</a>" * depth)


def test_as_deep_as_is_admitted_it_can_be_read_and_derived_from() -> None:
    depth = DEPTH_MAX - 2
    domainxml.parse(definition.derive(f"<domain><os>{'<a>' * depth}{'</a>' * depth}</os></domain>", WISH).xml, "it")


NO_XML = ["", " ", "<", "domain", "<domain>", "<domain/><domain/>", "<domain a='1' a='2'/>", "<d\0/>", "\udcff"]
NO_XML += [
    "<d>\ud800</d>",
    "<x:domain/>",
    "<domain>&nbsp;</domain>",
    "<domain>&#0;</domain>",
    "\ufeff<domain",
    "<?xml?>",
]


@pytest.mark.parametrize("xml", NO_XML)
def test_what_is_no_xml_is_an_error_that_says_so(xml: str) -> None:
    with pytest.raises(SnapmountError, match="the domain's definition is not well-formed XML: "):
        domainxml.disks(xml)


def test_two_disks_of_one_name_are_refused() -> None:
    disk = "<disk><source file='/x'/><target dev='vda'/></disk>"
    xml = f"<domain><devices>{disk * 2}</devices></domain>"
    with pytest.raises(StateError, match="more than one disk is called vda"):
        plan.select("vm1", domainxml.disks(xml), plan.Choice())


# -- any ---------------------------------------------------------------------------------------------------------------

TAGS = ["domain", "devices", "disk", "source", "target", "driver", "seclabel", "label", "os", "nvram", "cpu", "numa"]
TAGS += ["cell", "vcpu", "clock", "timer", "features", "hyperv", "serial", "console", "channel", "graphics", "listen"]
TAGS += [
    "interface",
    "tpm",
    "backend",
    "video",
    "model",
    "rng",
    "memory",
    "audio",
    "sysinfo",
    "system",
    "entry",
    "host",
]
TAGS += ["secmodel", "baselabel", "backup", "server", "genid", "log", "protocol", "input", "hostdev", "boot", "address"]
KEYS = ["type", "device", "dev", "file", "name", "model", "mode", "port", "id", "socket", "index", "bus", "format"]
VALUES = [
    "",
    "file",
    "block",
    "lun",
    "vda",
    "../x",
    "dac",
    "static",
    "unix",
    "kvm",
    "qemu",
    "+0:+0",
    "x:y",
    "disk",
    "-1",
]
attributes = st.dictionaries(
    st.sampled_from(KEYS), st.sampled_from(VALUES) | xml_text.map(lambda t: t[:20]), max_size=3
)


def element(tag: str, of: dict[str, str], inner: str) -> str:
    quoted = "".join(f" {key}={quoteattr(value)}" for key, value in of.items())
    return f"<{tag}{quoted}>{inner}</{tag}>"


elements = st.recursive(
    st.builds(element, st.sampled_from(TAGS), attributes, st.sampled_from(VALUES).map(escape)),
    lambda inner: st.builds(element, st.sampled_from(TAGS), attributes, st.lists(inner, max_size=4).map("".join)),
    max_leaves=12,
)
domains = st.lists(elements, max_size=6).map(lambda inner: f"<domain><devices>{''.join(inner)}</devices></domain>")


@BOUNDED
@given(elements | domains)
def test_any_xml_is_read_or_refused(xml: str) -> None:
    with contextlib.suppress(SnapmountError):
        read_all(xml)


@BOUNDED
@given(st.integers(0, len(DOMAIN)), st.integers(0, 80), st.sampled_from(["", *TAGS, *VALUES, "<", "'", ">", "&"]))
def test_a_definition_of_which_a_part_is_missing_or_another_is_read_or_refused(at: int, gone: int, new: str) -> None:
    with contextlib.suppress(SnapmountError):
        read_all(DOMAIN[:at] + new + DOMAIN[at + gone :])
