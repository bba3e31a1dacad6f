"""LUNs of a real tgtd: who may log in, what initiators read, and that none can write.

The initiators are libiscsi's and QEMU's, over loopback.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from snapmount.core.iscsi import Portal, Target
from snapmount.errors import StateError, UsageError
from snapmount.publish import iscsi
from snapmount.publish.initiators import Login, commands

from ....rig import filesystems
from ....rig.libiscsi import ALSO_ME, ME, SUITES, TGTD_LACKS, conforms, free_port, logs_in, output, run
from ....rig.tgtd import CREDENTIALS, LUNS, MIB, MUTUAL, Published, ask, listens_at, published, refusal, tgtds, withdraw

pytestmark = pytest.mark.vm
STRANGER = "iqn.2024-08.internal.snapmount.tests:stranger"


# -- what initiators see -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suite", SUITES)
def test_the_conformance_suite_passes(view: Published, suite: str) -> None:
    assert conforms(suite, view.url()) == TGTD_LACKS.get(suite, set())


@pytest.mark.sample
def test_each_lun_has_the_bytes_of_its_disk(view: Published, tmp_path: Path) -> None:
    for lun, file in zip(LUNS, view.files, strict=True):
        output("qemu-img", "compare", "-f", "raw", "-F", "raw", file, view.url(lun.number))
    copy = tmp_path / "copy"
    output("qemu-img", "convert", "-f", "raw", "-O", "raw", view.url(2), str(copy))
    assert copy.read_bytes() == Path(view.files[1]).read_bytes()


def test_qemu_s_commands_work_as_they_are_shown(view: Published, tmp_path: Path) -> None:
    text = commands(Login(view.target, view.credentials))["QEMU"]
    assert text
    secret = next(line for line in text.splitlines() if "printf" in line)
    subprocess.run(["bash", "-c", secret], cwd=tmp_path, check=True)
    assert (tmp_path / "iscsi-secret").stat().st_mode & 0o777 == 0o600
    for blockdev, file in zip(re.findall(r"-blockdev (\S+)", text), view.files, strict=True):
        original = f"driver=raw,file.filename={file.replace(',', ',,')}"
        compare = ["qemu-img", "compare", "--object", "secret,id=iscsi-secret,file=iscsi-secret", "--image-opts"]
        done = subprocess.run([*compare, original, blockdev], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_disk_is_recognised_by_serial_vendor_and_product_each_time(
    directory: Path, target: Target, files: list[str]
) -> None:
    seen = []
    for at in (target, replace(target, portals=(Portal("127.0.0.1", free_port()),))):
        with published(directory, at, files) as view:
            for lun in LUNS:
                printed = output("iscsi-inq", "-i", ME, view.url(lun.number))
                assert re.search(r"^Vendor:(.*?) *$", printed, re.MULTILINE).group(1) == lun.vendor  # type: ignore[union-attr]
                assert re.search(r"^Product:(.*?) *$", printed, re.MULTILINE).group(1) == lun.product  # type: ignore[union-attr]
                assert lun.serial in output("iscsi-inq", "-i", ME, "-e", "1", "-c", "128", view.url(lun.number))
                seen.append(identification(view.url(lun.number)))
    assert seen[:2] == seen[2:]
    assert seen[0] != seen[1]


def identification(url: str) -> bytes:
    """VPD page 83h, by which Linux and Windows tell disks apart."""
    return subprocess.run(["iscsi-inq", "-i", ME, "-e", "1", "-c", "131", url], capture_output=True, check=True).stdout


def test_disks_of_two_snapshots_have_no_designator_in_common(directory: Path, target: Target, files: list[str]) -> None:
    """A multipath initiator would take them for two ways to one disk."""
    other = replace(
        target,
        iqn=f"{target.iqn}0",
        portals=(Portal("127.0.0.1", free_port()),),
        luns=tuple(replace(lun, serial=f"{lun.number + 6:032x}"[::-1]) for lun in LUNS),
    )
    with published(directory, target, files) as view:
        one = set(re.findall(rb"^Designator:\[(.*?)\]$", identification(view.url()), re.MULTILINE | re.DOTALL))
    with published(directory, other, files) as view:
        two = set(re.findall(rb"^Designator:\[(.*?)\]$", identification(view.url()), re.MULTILINE | re.DOTALL))
    assert len(one) == len(two) == 3
    assert not one & two


def test_a_lun_has_the_logical_blocks_of_its_disk(directory: Path, target: Target, files: list[str]) -> None:
    four_k = [replace(lun, logical_block_size_bytes=4096) for lun in LUNS]
    with published(directory, replace(target, luns=tuple(four_k)), files) as view:
        for lun, file in zip(four_k, view.files, strict=True):
            told = output("iscsi-readcapacity16", "-i", ME, view.url(lun.number))
            assert "LOGICAL BLOCK LENGTH IN BYTES:4096\n" in told
            assert "LOGICAL BLOCKS PER PHYSICAL BLOCK EXPONENT:0\n" in told
            assert f"Total size:{lun.size_bytes}\n" in told
            output("qemu-img", "compare", "-f", "raw", "-F", "raw", file, view.url(lun.number))
        for suite in ("ALL.ReadCapacity16", "ALL.Read16", "ALL.Mandatory"):
            assert conforms(suite, view.url()) == set()


# -- who may log in ----------------------------------------------------------------------------------------------------


def test_only_the_secret_opens_the_target(view: Published) -> None:
    assert logs_in(view.url())
    assert not logs_in(view.url(secret="s3cret,=:with+iT"))
    assert not logs_in(view.url(secret=""))


def test_only_admitted_initiators_see_the_target_and_log_in(directory: Path, target: Target, files: list[str]) -> None:
    with published(directory, replace(target, initiators=(ME, ALSO_ME)), files) as view:
        assert logs_in(view.url(), ME)
        assert logs_in(view.url(), ALSO_ME)
        assert not logs_in(view.url(), STRANGER)
        portal = f"iscsi://{target.portals[0]}"
        assert target.iqn in run("iscsi-ls", "-i", ME, portal).stdout
        assert target.iqn not in run("iscsi-ls", "-i", STRANGER, portal).stdout


def test_with_mutual_chap_the_target_proves_itself(directory: Path, target: Target, files: list[str]) -> None:
    with published(directory, target, files, MUTUAL) as view:
        assert logs_in(view.url(target_user="target", target_password="proof,of+target"))
        assert not logs_in(view.url(target_user="target", target_password="proof,of+targeT"))
        assert not logs_in(view.url(secret="", target_user="target", target_password="proof,of+target"))


def test_no_secret_can_be_seen_on_the_host(directory: Path, target: Target, files: list[str]) -> None:
    with published(directory, target, files, MUTUAL) as view:
        assert logs_in(view.url())
        assert not logs_in(view.url(secret="wrong"))
        process = Path(f"/proc/{view.tgtd}")
        shown = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        shown += (directory / "tgtd.log").read_bytes()
    assert CREDENTIALS.secret.encode() not in shown
    assert b"proof" not in shown
    assert b"--control-port" in shown


@pytest.mark.parametrize("pages", range(5))
def test_a_full_runtime_directory_is_told_and_leaves_nothing(
    directory: Path, target: Target, files: list[str], pages: int
) -> None:
    """Whatever it is that finds no room: the log, the record, or tgtd, which says nothing then."""
    full = directory / "full"
    with filesystems.small_at(full, 64), filesystems.filled(full, leave=pages * 4096):
        try:
            ask(iscsi.publish, "tgt", full, target, files, CREDENTIALS)
        except StateError as error:
            assert os.strerror(errno.ENOSPC) in error.message  # noqa: PT017  # with room enough there is none
        withdraw(full, target)
        assert not list(full.glob("tgtd*"))
        assert tgtds(full) == []


def test_tgtd_stands_on_its_own(view: Published) -> None:
    assert os.getsid(view.tgtd) == view.tgtd
    opened = [os.readlink(fd) for fd in Path(f"/proc/{view.tgtd}/fd").iterdir()]
    assert not [name for name in opened if "pipe:" in name or "/dev/pts" in name]
    assert (view.directory / "tgtd.log").stat().st_mode & 0o777 == 0o600


def test_a_lun_cannot_be_written_and_its_file_is_open_for_reading_only(view: Published) -> None:
    refused = run("qemu-io", "-f", "raw", "-c", "write 0 512", view.url())
    assert "write protected" in refused.stderr
    opened = {os.readlink(fd): fd.name for fd in Path(f"/proc/{view.tgtd}/fd").iterdir()}
    for file in view.files:
        flags = Path(f"/proc/{view.tgtd}/fdinfo/{opened[file]}").read_text().split("flags:")[1].split()[0]
        assert int(flags, 8) & os.O_ACCMODE == os.O_RDONLY


def test_a_file_that_tgtd_could_write_is_not_published(directory: Path, target: Target, tmp_path: Path) -> None:
    disk = tmp_path / "vda.raw"
    disk.write_bytes(bytes(MIB))
    disk.chmod(0o400)  # root may write it all the same
    one = replace(target, luns=LUNS[:1])
    assert "read-only" in refusal(StateError, directory, one, [str(disk)], CREDENTIALS).message
    assert not listens_at(target.portals[0].port)
    withdraw(directory, one)


# -- portals -----------------------------------------------------------------------------------------------------------


def test_tgtd_listens_at_its_portals_and_nowhere_else(directory: Path, target: Target, files: list[str]) -> None:
    ipv6 = Portal("::1", free_port("::1"))
    with published(directory, replace(target, portals=(*target.portals, ipv6)), files) as view:
        for portal in view.target.portals:
            output("qemu-img", "compare", "-f", "raw", "-F", "raw", files[0], view.url(portal=portal))
        listening = run("ss", "-Htlnp").stdout.splitlines()
        assert sorted(line.split()[3] for line in listening if f"pid={view.tgtd}," in line) == sorted(
            map(str, view.target.portals)
        )


def test_a_port_in_use_is_refused_with_the_name_of_its_user(directory: Path, target: Target, files: list[str]) -> None:
    with socket.socket() as server:
        server.bind(("0.0.0.0", target.portals[0].port))
        server.listen()
        error = refusal(StateError, directory, target, files, CREDENTIALS)
        assert f"(pid {os.getpid()})" in error.message
        assert str(target.portals[0]) in error.message
        [tgtd] = tgtds(directory)
        assert f"pid={tgtd}," not in run("ss", "-Htlnp").stdout  # and it does not listen elsewhere instead
        withdraw(directory, target)


def test_an_address_that_the_host_does_not_have_is_refused(directory: Path, target: Target, files: list[str]) -> None:
    for address in ("192.0.2.1", "2001:db8::1"):
        elsewhere = replace(target, portals=(*target.portals, Portal(address)))
        assert address in refusal(UsageError, directory, elsewhere, files, CREDENTIALS).message
    assert tgtds(directory) == []
