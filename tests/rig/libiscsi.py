"""libiscsi's tools as initiators: they run in processes of their own, and need nothing of the kernel."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import re
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

ME = "iqn.2024-08.internal.snapmount.tests:me"
ALSO_ME = "iqn.2024-08.internal.snapmount.tests:also-me"
NEEDS = {"tgtd": "tgt", "iscsi-inq": "libiscsi-bin", "iscsi-test-cu": "libiscsi-bin", "qemu-img": "qemu-utils"}
TOOL_S = 60
READ_S = 8

# What must pass on a LUN that is read-only.
SUITES = (
    *("ALL.ReadOnly", "ALL.Inquiry", "ALL.Mandatory", "ALL.ModeSense6", "ALL.Read6", "ALL.Read10", "ALL.Read12"),
    *("ALL.Read16", "ALL.ReadCapacity10", "ALL.ReadCapacity16", "ALL.TestUnitReady", "ALL.ReportSupportedOpcodes"),
    *("ALL.StartStopUnit", "ALL.PreventAllow", "iSCSI.iSCSIcmdsn", "iSCSI.iSCSIdatasn"),
)
# Where a suite leaves out some of its tests on a LUN of tgtd, the reason it gives.
TGTD_LACKS = {
    "ALL.ReadOnly": {"COMPAREANDWRITE is not implemented"},
    "ALL.ReportSupportedOpcodes": {"REPORT_SUPPORTED_OPCODES is not implemented"},
    "ALL.StartStopUnit": {"Media is not removable"},
    "ALL.PreventAllow": {"Logical unit is not removable"},
}
# The same on a LUN of LIO, whose kernels differ in what they lack: nothing that reading needs.
LIO_MAY_LACK = {
    *("COMPAREANDWRITE is not implemented", "WRITESAME10 is not implemented", "WRITESAME16 is not implemented"),
    *("REPORT_SUPPORTED_OPCODES is not implemented", "Media is not removable", "Logical unit is not removable"),
}


def skip_where_missing() -> None:
    """Skip the test where this host lacks a tool."""
    for program, package in NEEDS.items():
        if not shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin"):
            pytest.skip(f"this host lacks {program} ({package}): run contrib/setup --test")


def free_port(address: str = "127.0.0.1") -> int:
    """A port that nobody listens at, below those that the kernel gives to clients meanwhile."""
    while True:
        port = random.randrange(20000, 32768)
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with contextlib.suppress(OSError), socket.socket(family) as probe:
            probe.bind((address, port))
            return port


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=TOOL_S, stdin=subprocess.DEVNULL)


def output(*command: str) -> str:
    """What the program prints; it must succeed."""
    done = run(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def logs_in(url: str, initiator: str = ME) -> bool:
    done = run("iscsi-inq", "-i", initiator, url)
    assert (done.returncode == 0) == ("CONNECTED" in done.stdout)
    assert done.returncode == 0 or "Log" in done.stdout + done.stderr, done
    return done.returncode == 0


def conforms(suite: str, url: str) -> set[str]:
    """The suite passes on that LUN; return why it has left tests out.

    Exit code 0 also means skipped, so what it prints counts.
    """
    printed = output("iscsi-test-cu", "-d", "-n", "-i", ME, "-I", ALSO_ME, "-t", suite, url)
    counts = re.search(r"^ +tests +(\d+) +(\d+) +(\d+) +(\d+) ", printed, re.MULTILINE)
    assert counts, printed
    total, ran, passed, failed = map(int, counts.groups())
    assert total == ran == passed > failed == 0, printed
    skipped = [line for line in printed.splitlines() if "[SKIPPED]" in line]
    known = {line: {reason for reason in LIO_MAY_LACK if reason in line} for line in skipped}
    assert all(known.values()), printed
    return set().union(*known.values())


def read(url: str, block: int, blocks: int, block_bytes: int) -> bytes:
    """So many blocks of a LUN from that one on, as QEMU's initiator reads them.

    Raises OSError (EIO) if it cannot, or tries to reach a target that has gone, which it does for ever.
    """
    with tempfile.NamedTemporaryFile() as copy:
        part = [f"bs={block_bytes}", f"skip={block}", f"count={block + blocks}"]  # it counts what it skips
        command = ["qemu-img", "dd", "-f", "raw", "-O", "raw", *part, f"if={url}", f"of={copy.name}"]
        try:
            subprocess.run(command, capture_output=True, text=True, timeout=READ_S, check=True)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            raise OSError(errno.EIO, f"{error}: {error.stderr!r}") from None
        return Path(copy.name).read_bytes()[: blocks * block_bytes]


def read_luns(taken: dict[str, Any]) -> list[bytes]:
    """All bytes of each LUN of a snapshot, of which `take --json` has told."""
    told = taken["iscsi"]
    at = f"iscsi://{told['user']}%{told['secret']}@{told['portals'][0]}/{told['iqn']}"
    with tempfile.NamedTemporaryFile() as copy:
        found = []
        for lun in told["luns"]:
            output("qemu-img", "convert", "-f", "raw", "-O", "raw", f"{at}/{lun['number']}", copy.name)
            found.append(Path(copy.name).read_bytes())
        return found
