"""What others have named steers no terminal, splits no command and leaves no directory, wherever snapmount tells it.

VMs' and disks' names, origins, reasons and error messages come from guests' owners, libvirt, QEMU and initiators.
"""

from __future__ import annotations

import io
import json
import logging
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snapmount.boot import scratchvm
from snapmount.boot.scratchvm import ScratchVm
from snapmount.cli import output, present
from snapmount.core import domainxml, iscsi, names, publishing
from snapmount.core.iscsi import Credentials, Session
from snapmount.core.leftout import LeftOut
from snapmount.core.lifecycle import State
from snapmount.core.snapshot import Disk, Nvram, Snapshot
from snapmount.errors import SnapmountError
from snapmount.host import logs
from snapmount.host.processes import Process
from snapmount.publish import luns
from snapmount.records.record import Publication
from snapmount.records.store import Store

from ..rig.records import UUID, a_record, a_snapshot, by_pull
from ..strategies import disk_names

FEW = settings(
    deadline=None,
    derandomize=True,
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
_NASTY = ["\x1b]0;owned\x07", "\x1b[2J", "\x9b2J", "\u202e", "\u2066", "\n", "\r", "\t", "\0", "../", "-rf", "'", '"']
_NASTY += ["$(reboot)", "`reboot`", ";", "&&", "|", "\\", "%s", "{0}", "[red]", ":smile:", "\u2028", "\ud800", "\udcff"]
_NASTY += ["x" * 300, "\u200b", "\ufeff", "\x7f", "\x85", "</name>", "&amp;"]
nasty = st.lists(st.sampled_from(_NASTY) | st.text(st.characters(), max_size=5), max_size=6).map("".join)

# what a record can hold: no zero character, and of surrogates those of PEP 383 alone
held = nasty.map(lambda text: re.sub("[\0\ud800-\udc7f\udd00-\udfff]", "", text))


def assert_harmless(text: str) -> None:
    """Lines of printable characters, which any terminal can be sent."""
    assert text.encode()
    for line in text.split("\n"):
        assert line.isprintable(), ascii(line)


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@FEW
@given(vm=nasty, path=nasty, origin=nasty, why=held, reason=nasty, scratch_name=held)
def test_what_is_shown_of_a_snapshot(
    runtime: Path, vm: str, path: str, origin: str, why: str, reason: str, scratch_name: str
) -> None:
    store = Store(runtime / "snapmount")
    disks = (Disk("vda", 1 << 30, "raw", origin),)
    snapshot = replace(a_snapshot(vm=vm), disks=disks, left_out=(LeftOut(why, why),), nvram=Nvram(1, why, origin))
    record = replace(a_record(snapshot, f"/mnt/{path}"), state=State.LEFTOVER, reason=reason)
    record = by_pull(record, scratch="/x", socket=f"/x/{why}")
    record = replace(record, connect=f"qemu:///system?{reason}", publication=_published(snapshot))
    vm_of = ScratchVm(scratch_name, UUID, "kvm", "/y", True, Process(1, 1, "boot"), left_out=snapshot.left_out)
    vm_of = replace(vm_of, notes=(why,))
    lease = store.lease(record)
    try:
        lease.write_credentials(Credentials("snapmount", "secret-secret"))
        scratchvm.write(lease.directory, vm_of)
        session = Session(f"iqn.{reason}", why, 5)
        shown = present.Shown(record, store, [session], with_secret=True)
        for text in (shown.taken(), shown.details(), present.listing([shown]), present.booted(vm_of, record)):
            assert_harmless(text)
        assert_harmless(json.dumps(shown.document()))
        # each is on one line still
        assert len(present.listing([shown]).splitlines()) == 3
    finally:
        lease.forget()
        lease.release()


def _published(snapshot: Snapshot) -> Publication:
    return Publication("tgt", publishing.target_of(snapshot, (iscsi.Portal("127.0.0.1"),), ()))


@FEW
@given(message=nasty, remedy=nasty)
def test_what_an_error_says(message: str, remedy: str) -> None:
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", said)
        output.complain(SnapmountError(message, names.command("virsh", remedy)))
        output.tell(message)
    assert_harmless(said.getvalue())
    assert len(said.getvalue().splitlines()) == 3


@FEW
@given(text=nasty)
def test_what_is_logged(text: str) -> None:
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(logs.PrintableFormatter("%(asctime)s %(name)s: %(message)s"))
    logger = logging.Logger("snapmount")
    logger.addHandler(handler)
    try:
        raise ValueError(text)
    except ValueError:
        logger.exception("it has failed: %s", text)
    assert_harmless(written.getvalue())
    assert written.getvalue().splitlines()[1] == "Traceback (most recent call last):"


@FEW
@given(vm=nasty, disk=disk_names)
def test_names_of_a_target_keep_to_their_alphabet(vm: str, disk: str) -> None:
    snapshot = replace(a_snapshot(vm=vm), disks=(Disk(disk, 512, "raw", "/x"),))
    publication = _published(snapshot)
    assert set(publication.target.iqn) <= set("abcdefghijklmnopqrstuvwxyz0123456789.:-")
    assert len(publication.target.iqn) <= 223
    lun = publication.target.luns[0]
    assert lun.product.isascii()
    assert lun.product.isprintable()
    assert len(lun.product) <= 16
    assert not set(lun.product + lun.vendor + lun.serial) & set(",='\"\\")
    for row in luns.lun_rows(
        replace(publication, target=replace(publication.target, luns=(replace(lun, disk="vda"),)))
    ):
        assert_harmless("".join(row))


@FEW
@given(vm=nasty)
def test_a_mount_s_source_fits_into_the_page_of_its_options(vm: str) -> None:
    source = names.mount_source(vm, "3f2a91bc")
    assert len(source) < 300
    assert not set(source) & set(" ,\\\n'\"")


@FEW
@given(word=nasty)
def test_a_command_to_paste_is_one_word_still(word: str) -> None:
    command = names.command("virsh", "start", word)
    assert shlex.split(command) == ["virsh", "start", word]
    assert shlex.split(names.printable(command))[:2] == ["virsh", "start"]
    assert len(shlex.split(names.printable(command))) == 3, "also as it is shown"


@FEW
@given(path=nasty.filter(lambda text: text.isprintable()), disk=st.sampled_from(["vda", "sdb1"]))
def test_a_path_stays_one_in_a_backup_job(path: str, disk: str) -> None:
    job = domainxml.parse(domainxml.backup_job(path, {disk: path}, [path]), "the job")
    assert [each.tag for each in job] == ["server", "disks"]
    assert job.find("server").get("socket") == path  # type: ignore[union-attr]
    assert [each.get("name") for each in job.findall("./disks/disk")] == [disk, path]
