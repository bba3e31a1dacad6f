"""The helper process that controls target software: its failures become errors, and nobody waits for it for ever."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from snapmount.core.iscsi import PORT, PORTS, Portal, PortalRequest, Session, Target
from snapmount.errors import LeftoverError, UnreachableError, UsageError
from snapmount.publish import iscsi
from snapmount.publish.iscsi import portals
from snapmount.publish.iscsi.tgt import sessions_of

TARGET = Target("iqn.2024-08.internal.snapmount:x", (Portal("127.0.0.1"),), (), ())

CONNECTIONS = """\
Session: 12
    Connection: 0
        Initiator: iqn.1993-08.org.debian:01:abc
        IP Address: 127.0.0.1
Session: 3
    Connection: 1
        Initiator: iqn.1991-05.com.microsoft:host
        IP Address: 2001:db8::7
Session: 4
    Connection: 0
        Initiator: eui.02004567A425678D
        \n"""
STATISTICS = """\
tgt lun sid rd_subm(bytes,cmds) rd_done(bytes,cmds) wr_subm(bytes,cmds) wr_done(bytes,cmds) errs
  7   0  12          100      1           36      1            0      0            0      0    0
  7   1  12      1048576      4      1048576      4            0      0            0      0    0
  7   0   3            0      0            0      0            0      0            0      0    0
  7   1   3            0      0            0      0            0      0            0      0    0
"""


async def test_a_failure_that_nobody_foresaw_is_raised_with_its_traceback() -> None:
    with pytest.raises(RuntimeError, match="KeyError: 'nonsense'"):
        await iscsi.missing("nonsense")


async def test_a_helper_that_does_not_answer_in_time_is_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(iscsi, "DEADLINE_S", 0.001)
    with pytest.raises(UnreachableError, match="tgt: sessions has not ended"):
        await iscsi.sessions("tgt", tmp_path, TARGET)
    with pytest.raises(LeftoverError, match="tgt: withdraw has not ended"):
        await iscsi.withdraw("tgt", tmp_path, TARGET)
    assert iscsi._left_behind == []


async def test_there_is_nothing_to_withdraw_where_nothing_was_published(tmp_path: Path) -> None:
    await iscsi.withdraw("tgt", tmp_path, TARGET)


@pytest.mark.parametrize(
    ("listener", "wanted"),
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("127.0.0.1", "0.0.0.0"), ("::1", "::1")],
)
def test_who_listens_at_a_portal_is_named(listener: str, wanted: str) -> None:
    with socket.socket(socket.AF_INET6 if ":" in listener else socket.AF_INET) as server:
        server.bind((listener, 0))
        server.listen()
        error = portals.refusal(Portal(wanted, server.getsockname()[1]))
    assert f"(pid {os.getpid()})" in error.message


def test_only_this_host_s_addresses_are_listened_at() -> None:
    portals.check_addresses((Portal("127.0.0.1"), Portal("127.1.2.3"), Portal("0.0.0.0"), Portal("::1"), Portal("::")))
    for address in ("192.0.2.1", "2001:db8::1"):
        with pytest.raises(UsageError, match=address):
            portals.check_addresses((Portal(address),))


@pytest.mark.parametrize("address", ["127.255.255.255", "255.255.255.255", "fe80::1"])
def test_an_address_that_no_initiator_can_reach_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match=address):
        portals.check_addresses((Portal(address),))


def never(portal: Portal) -> bool:
    return False


def test_the_ports_that_are_free_at_all_addresses_are_told() -> None:
    asked = [PortalRequest("127.9.8.7"), PortalRequest("127.9.8.8")]
    with socket.create_server(("127.9.8.7", PORT)), socket.create_server(("127.9.8.8", PORT + 2)):
        assert portals.free_ports(asked, never, portals.check_free) == [PORTS[1], *PORTS[3:]]
        shared = PortalRequest("127.9.8.7").at(PORT)
        assert portals.free_ports(asked[:1], shared.__eq__, portals.check_free) == list(PORTS)


async def test_a_port_that_is_asked_for_and_is_not_free_is_told_with_the_way_out() -> None:
    with socket.create_server(("127.9.8.7", PORT)), pytest.raises(iscsi.PortalInUseError) as refused:
        await iscsi.free_ports("tgt", [PortalRequest("127.9.8.7", PORT)])
    assert f"127.9.8.7:{PORT} is in use by" in refused.value.message
    assert (refused.value.remedy or "").startswith("snapmount --iscsi --portal 127.9.8.7 VM ")
    assert await iscsi.free_ports("tgt", [PortalRequest("127.9.8.7", PORT)]) == []


def test_tgtd_s_sessions_are_read_with_the_bytes_of_all_their_luns() -> None:
    assert sessions_of(CONNECTIONS, STATISTICS) == [
        Session("iqn.1993-08.org.debian:01:abc", "127.0.0.1", 36 + 1048576),
        Session("iqn.1991-05.com.microsoft:host", "2001:db8::7", 0),
        Session("eui.02004567A425678D", None, None),
    ]
    assert sessions_of("", STATISTICS) == []
    assert sessions_of("", "") == []
