"""The management protocol of tgtd, spoken on its unix socket.

tgtadm(8) would do, but takes passwords as arguments, which everyone on the host can see.  The protocol is that of
usr/tgtadm.h and usr/mgmt.c in https://github.com/fujita/tgt (releases 1.0.85 to 1.0.97): one request
and one reply for each connection, in the host's byte order, each a header and text.  tgtd answers its own user only.
"""

from __future__ import annotations

import socket
import struct
from enum import IntEnum
from pathlib import Path

TIMEOUT_S = 10.0

# struct tgtadm_req: mode, op, lld, len, tid, sid, lun, cid, host_no, device_type, ac_dir, pack, force
_REQUEST = struct.Struct("@II64sIiQQIIIIII")
_REPLY = struct.Struct("@II")  # struct tgtadm_rsp: err, len


class Op(IntEnum):
    """enum tgtadm_op"""

    NEW, DELETE, SHOW, BIND, UNBIND, UPDATE, STATS, START, STOP = range(9)


class Mode(IntEnum):
    """enum tgtadm_mode"""

    SYSTEM, TARGET, DEVICE, PORTAL, DRIVER, SESSION, CONNECTION, ACCOUNT = range(8)


class Direction(IntEnum):
    """enum tgtadm_account_dir: whether the initiator proves itself with the account, or the target."""

    INCOMING, OUTGOING = range(2)


class RefusedError(Exception):
    """tgtd has refused a request."""

    def __init__(self, code: int) -> None:
        super().__init__(f"refused with error {code} of tgtadm_error.h")
        self.code = code


class Tgtd:
    """The tgtd that listens at a socket."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def ask(
        self,
        mode: Mode,
        op: Op,
        text: str = "",
        *,
        tid: int = 0,
        lun: int = 0,
        direction: Direction = Direction.INCOMING,
        driver: str = "iscsi",
    ) -> str:
        """What tgtd replies to the request, whose parameters are `text`.

        Raises RefusedError, and OSError (TimeoutError among them) where tgtd does not answer.
        """
        parameters = text.encode() + b"\0" if text else b""
        length = _REQUEST.size + len(parameters)
        header = _REQUEST.pack(mode, op, driver.encode(), length, tid, 0, lun, 0, 0, 0, direction, 0, 0)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(TIMEOUT_S)
            connection.connect(str(self.path))
            connection.sendall(header + parameters)
            error, length = _REPLY.unpack(_received(connection, _REPLY.size))
            if error:
                raise RefusedError(error)
            return _received(connection, length - _REPLY.size).rstrip(b"\0").decode(errors="replace")


def _received(connection: socket.socket, length: int) -> bytes:
    received = b""
    while len(received) < length:
        part = connection.recv(length - len(received))
        if not part:
            raise ConnectionAbortedError("tgtd has closed the connection")
        received += part
    return received
