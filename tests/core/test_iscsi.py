"""Portals, names and secrets of iSCSI: what users may write, and what initiators get to see."""

from __future__ import annotations

import ipaddress
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapmount.core.document import from_document, to_document
from snapmount.core.iscsi import PORT, PORTS, Credentials, Lun, Portal, PortalRequest, Target
from snapmount.core.publishing import (
    NAME_MAX,
    PRODUCT_MAX,
    check_initiator,
    check_secret,
    choose_portals,
    parse_portal,
    parse_portals,
    target_of,
)
from snapmount.core.snapshot import Snapshot
from snapmount.errors import StateError, UsageError

from ..strategies import PROPERTY, snapshots, text

LOOPBACK = Portal("127.0.0.1")


def is_mapped(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None


addresses = st.ip_addresses().filter(lambda it: not (it.is_multicast or it.is_link_local or is_mapped(it)))
portals = st.builds(Portal, address=addresses.map(str), port=st.integers(min_value=1, max_value=65535))
any_text = st.text(st.characters())


# -- portals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "portal"),
    [
        ("127.0.0.1", PortalRequest("127.0.0.1", None)),
        ("192.0.2.7:3261", PortalRequest("192.0.2.7", 3261)),
        ("0.0.0.0", PortalRequest("0.0.0.0", None)),
        ("::1", PortalRequest("::1", None)),
        ("[::1]", PortalRequest("::1", None)),
        ("[2001:DB8:0:0::7]:860", PortalRequest("2001:db8::7", 860)),
        ("::ffff:192.0.2.7", PortalRequest("192.0.2.7", None)),
    ],
)
def test_a_portal_is_an_address_with_or_without_a_port(text: str, portal: PortalRequest) -> None:
    assert parse_portal(text) == portal


@pytest.mark.parametrize(
    "text", ["", ":", ":3260", "[]", "localhost", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:x",
             "127.0.0.1:-1", "127.0.0.1 ", "127.1", "[::1", "::1]", "[::1]3260", "[127.0.0.1", "1.2.3.4:5:6", "\n",
             "127.0.0.1:" + "9" * 5000, "224.0.0.1", "ff02::1", "fe80::1", "fe80::1%lo", "::1%lo", "[fe80::1]:3260"]
)  # fmt: skip
def test_what_is_no_portal_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_portal(text)


@PROPERTY
@given(portals)
def test_a_portal_reads_as_it_is_written(portal: Portal) -> None:
    assert parse_portal(str(portal)).at(PORT) == portal


@PROPERTY
@given(any_text | st.from_regex(r"\[?[0-9a-f:.]*\]?(:[0-9]*)?"))
def test_any_text_is_a_portal_or_refused(text: str) -> None:
    try:
        portal = parse_portal(text)
    except UsageError:
        return
    assert str(ipaddress.ip_address(portal.address)) == portal.address
    assert portal.port is None or 0 < portal.port < 65536


def test_no_portal_means_the_loopback_address_and_one_that_is_named_twice_counts_once() -> None:
    assert parse_portals([]) == (PortalRequest("127.0.0.1"),)
    assert parse_portals(["::1", "[0::1]"]) == (PortalRequest("::1"),)


@pytest.mark.parametrize("pair", [("0.0.0.0", "127.0.0.1"), ("[::1]:860", "[::]:860")])
def test_an_address_beside_all_addresses_is_refused(pair: tuple[str, str]) -> None:
    with pytest.raises(UsageError, match="stands for all addresses"):
        parse_portals(pair)
    parse_portals(["0.0.0.0", "::", "127.0.0.1:860"])  # of other families, or at other ports


requests = st.builds(PortalRequest, st.sampled_from(["127.0.0.1", "192.0.2.7", "::1"]), st.none() | st.just(3261))
near = st.builds(Portal, st.sampled_from(["127.0.0.1", "0.0.0.0", "::1", "::"]), st.sampled_from(PORTS[:4]))


@PROPERTY
@given(st.lists(requests, min_size=1, unique=True), st.lists(st.sampled_from(PORTS[:4]), unique=True), st.lists(near))
def test_portals_without_a_port_share_the_first_one_that_is_free_and_that_no_other_snapshot_has(
    asked: list[PortalRequest], free: list[int], reserved: list[Portal]
) -> None:
    free.sort()
    portless = [request for request in asked if request.port is None]
    usable = [port for port in free if not any(r.at(port).overlaps(other) for r in portless for other in reserved)]
    if portless and not usable:
        with pytest.raises(StateError, match=r"3260 to 3359 of .* are all in use"):
            choose_portals(asked, free, reserved)
        return
    wanted = [request.at(usable[0] if portless else PORT) for request in asked]
    assert choose_portals(asked, free, reserved) == tuple(dict.fromkeys(wanted))


def test_a_portal_without_a_port_keeps_out_of_the_way_of_one_with_it() -> None:
    asked = parse_portals(["0.0.0.0", "127.0.0.1:3260"])
    assert choose_portals(asked, PORTS, []) == (Portal("0.0.0.0", 3261), Portal("127.0.0.1", 3260))


# -- initiators and secrets --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "compared"),
    [
        ("iqn.1993-08.org.debian:01:abc", "iqn.1993-08.org.debian:01:abc"),
        ("iqn.1991-05.com.microsoft:Backup-Server.EXAMPLE.org", "iqn.1991-05.com.microsoft:backup-server.example.org"),
        ("iqn.2001-04.com.example", "iqn.2001-04.com.example"),
        ("eui.02004567A425678D", "eui.02004567A425678D"),
        ("naa.52004567BA64678D", "naa.52004567BA64678D"),
    ],
)
def test_an_initiator_s_name_is_compared_in_one_form(name: str, compared: str) -> None:
    assert check_initiator(name) == compared
    assert check_initiator(compared) == compared


@pytest.mark.parametrize(
    "name", ["", "ALL", "192.0.2.7", "iqn.2001-13.com.example", "iqn.2001-4.com.example", "iqn.2001-04.com.example:a_b",
             "iqn.2001-04.com.example:a b", "iqn.2001-04.com.example:a,b", "iqn.2001-04.com.example:a\n", "eui.0200",
             "iqn.2001-04." + "a" * NAME_MAX]
)  # fmt: skip
def test_what_is_no_initiator_s_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        check_initiator(name)


@pytest.mark.parametrize("secret", ["a" * 12, "a" * 16, "!~[]{}'\"$`\\,=#&"])
def test_a_secret_has_12_to_16_printable_characters(secret: str) -> None:
    assert check_secret(secret) == secret


@pytest.mark.parametrize(
    "secret", ["", "a" * 11, "a" * 17, "with a space", "with-a-tab\tx", "twelve\nchars", "geheimnißvoll"]
)
def test_other_secrets_are_refused_and_not_told(secret: str) -> None:
    with pytest.raises(UsageError) as refusal:
        check_secret(secret)
    assert not secret or secret not in refusal.value.message


def test_credentials_do_not_show_their_secrets() -> None:
    shown = repr(Credentials("user", "of-the-initiator", "target", "of-the-target"))
    assert "user" in shown
    assert "of-the-initiator" not in shown
    assert "of-the-target" not in shown


# -- targets -----------------------------------------------------------------------------------------------------------


@PROPERTY
@given(snapshots, st.lists(portals, min_size=1).map(tuple))
def test_the_target_of_any_snapshot_has_a_name_that_each_initiator_takes(
    snapshot: Snapshot, at: tuple[Portal, ...]
) -> None:
    iqn = target_of(snapshot, at, ()).iqn
    assert check_initiator(iqn) == iqn
    assert iqn.endswith(snapshot.id)


@PROPERTY
@given(snapshots)
def test_each_disk_is_a_lun_in_the_disks_order_that_initiators_can_tell_apart(snapshot: Snapshot) -> None:
    luns = target_of(snapshot, (LOOPBACK,), ()).luns
    assert [(lun.number, lun.disk, lun.size_bytes, lun.logical_block_size_bytes) for lun in luns] == [
        (number, disk.name, disk.size_bytes, disk.logical_block_size_bytes)
        for number, disk in enumerate(snapshot.disks, 1)
    ]
    assert len({lun.serial for lun in luns}) == len({disk.name for disk in snapshot.disks})
    for lun in luns:
        assert re.fullmatch(r"[0-9a-f]{32}", lun.serial)
        assert re.fullmatch(rf"[A-Za-z0-9._+-]{{1,{PRODUCT_MAX}}}", lun.product)
        assert len(lun.vendor) <= 8


@PROPERTY
@given(snapshots)
def test_a_disk_keeps_its_identity_however_it_is_published(snapshot: Snapshot) -> None:
    once = target_of(snapshot, (LOOPBACK,), ())
    again = target_of(snapshot, (Portal("::1", 860),), ("iqn.1993-08.org.debian:01:abc",))
    assert (once.iqn, once.luns) == (again.iqn, again.luns)


@PROPERTY
@given(snapshots, st.lists(portals).map(tuple), st.lists(text).map(tuple))
def test_a_target_survives_json(snapshot: Snapshot, at: tuple[Portal, ...], initiators: tuple[str, ...]) -> None:
    target = target_of(snapshot, at, initiators)
    assert from_document(Target, json.loads(json.dumps(to_document(target)))) == target


def test_a_target_from_before_block_sizes_were_told_is_read() -> None:
    target = Target("iqn.2024-08.internal.snapmount:vm1.0123abcd", (LOOPBACK,), (Lun(1, "vda", 512, "0", "vda"),), ())
    document = to_document(target)
    for lun in document["luns"]:
        del lun["logical_block_size_bytes"]
    assert from_document(Target, document) == target
