"""libiscsi's tools as initiators: they run in processes of their own, and need nothing of the kernel."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import socket
import subprocess

import pytest

ME = "iqn.2024-08.internal.snapmount.tests:me"
ALSO_ME = "iqn.2024-08.internal.snapmount.tests:also-me"
NEEDS = {"tgtd": "tgt", "iscsi-inq": "libiscsi-bin", "iscsi-test-cu": "libiscsi-bin", "qemu-img": "qemu-utils"}
TOOL_S = 60

# What must pass on a LUN that is read-only, and, where the suite leaves out some of its tests, the reason it gives.
SUITES = {
    "ALL.ReadOnly": "COMPAREANDWRITE is not implemented",
    "ALL.Inquiry": None,
    "ALL.Mandatory": None,
    "ALL.ModeSense6": None,
    "ALL.Read6": None,
    "ALL.Read10": None,
    "ALL.Read12": None,
    "ALL.Read16": None,
    "ALL.ReadCapacity10": None,
    "ALL.ReadCapacity16": None,
    "ALL.TestUnitReady": None,
    "ALL.ReportSupportedOpcodes": "REPORT_SUPPORTED_OPCODES is not implemented",
    "ALL.StartStopUnit": "Media is not removable",
    "ALL.PreventAllow": "Logical unit is not removable",
    "iSCSI.iSCSIcmdsn": None,
    "iSCSI.iSCSIdatasn": None,
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


def conforms(suite: str, url: str) -> None:
    """The suite passes on that LUN.  Exit code 0 also means skipped, so what it prints counts."""
    printed = output("iscsi-test-cu", "-d", "-n", "-i", ME, "-I", ALSO_ME, "-t", suite, url)
    counts = re.search(r"^ +tests +(\d+) +(\d+) +(\d+) +(\d+) ", printed, re.MULTILINE)
    assert counts, printed
    total, ran, passed, failed = map(int, counts.groups())
    assert total == ran == passed > failed == 0, printed
    skipped = [line for line in printed.splitlines() if "[SKIPPED]" in line]
    assert bool(skipped) == (SUITES[suite] is not None)
    assert all(str(SUITES[suite]) in line for line in skipped)
