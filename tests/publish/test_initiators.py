"""The commands with which initiators log in are complete, right where they can be tried, and show no secret to others.

QEMU's are tried against a real target in tgt/test_luns.py.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapmount.core.iscsi import INITIATORS, Credentials, Lun, Portal, Target
from snapmount.publish.initiators import ANY_ADDRESS, KINDS, Login, commands

from ..strategies import PROPERTY

ONE_WAY = Credentials("snapshot", "it's$e`cret,\"1")
MUTUAL = replace(ONE_WAY, mutual_user="target", mutual_secret="o'ther\\se=ret")
LUNS = tuple(
    Lun(number, disk, 1 << 30, f"{number:032x}", f"vm1-{disk}") for number, disk in enumerate(("vda", "vdb"), 1)
)
TARGET = Target("iqn.2024-08.internal.snapmount:vm1.0123abcd", (Portal("192.0.2.7", 3261),), LUNS, ())
ADMITTED = replace(TARGET, initiators=("iqn.1993-08.org.debian:01:abc",))
secrets = st.from_regex(r"[!-~]{12,16}", fullmatch=True)


def text_for(initiator: str, login: Login) -> str:
    text = commands(login)[initiator]
    assert text is not None
    return text


def texts_for(login: Login) -> list[str]:
    """The texts for all kinds of initiators, each of which can log in."""
    return [text_for(initiator, login) for initiator in commands(login)]


def test_there_are_commands_for_each_initiator() -> None:
    assert tuple(kind.word for kind in KINDS) == INITIATORS
    login = Login(ADMITTED, ONE_WAY)
    assert list(commands(login)) == ["open-iscsi", "QEMU", "libvirt", "Windows PowerShell"]
    for text in texts_for(login):
        assert TARGET.iqn in text
        assert "192.0.2.7" in text
        assert "3261" in text
        assert "snapshot" in text
        assert ADMITTED.initiators[0] in text


@PROPERTY
@given(secrets, secrets)
def test_without_secrets_none_is_told(secret: str, mutual: str) -> None:
    login = Login(TARGET, Credentials("user", f"<{secret}>", "target", f"<{mutual}>"))
    hidden = "".join(texts_for(login.without_secrets()))
    assert f"<{secret}>" not in hidden
    assert f"<{mutual}>" not in hidden
    assert "SECRET" in hidden


@PROPERTY
@given(secrets)
def test_no_program_gets_the_secret_as_an_argument(secret: str) -> None:
    login = Login(TARGET, Credentials("user", secret))
    for initiator in ("open-iscsi", "QEMU", "libvirt"):
        text = text_for(initiator, login)
        for line in text.splitlines():
            if secret in line or shlex.quote(secret) in line:
                assert line.startswith(("node.session.auth.password = ", "printf ", "(umask 077; printf "))


def test_a_target_that_listens_at_all_addresses_is_not_logged_in_to_at_none() -> None:
    for any_address in ("0.0.0.0", "::"):
        for text in texts_for(Login(replace(TARGET, portals=(Portal(any_address),)), ONE_WAY)):
            assert ANY_ADDRESS in text


@pytest.mark.parametrize("address", ["127.0.0.1", "127.1.2.3", "::1"])
def test_windows_is_told_nothing_of_a_target_that_it_cannot_reach(address: str) -> None:
    local = replace(TARGET, portals=(Portal(address),))
    told = commands(Login(local, ONE_WAY))
    assert [name for name, text in told.items() if text is None] == ["Windows PowerShell"]
    both = replace(TARGET, portals=(Portal(address), *TARGET.portals))
    for text in texts_for(Login(both, ONE_WAY)):
        assert "192.0.2.7" in text
        assert address not in text


def test_mutual_chap_is_set_where_the_initiator_can_do_it_and_else_said() -> None:
    login = Login(TARGET, MUTUAL)
    assert "node.session.auth.password_in = o'ther\\se=ret" in text_for("open-iscsi", login).splitlines()
    assert "MUTUALCHAP" in text_for("Windows PowerShell", login)
    assert "-ChapSecret 'o''ther\\se=ret'" in text_for("Windows PowerShell", login)
    for initiator in ("QEMU", "libvirt"):
        assert "mutual CHAP" in text_for(initiator, login)
    for text in texts_for(Login(TARGET, ONE_WAY)):
        assert "mutual" not in text.lower()


def test_windows_quotes_the_secret() -> None:
    text = text_for("Windows PowerShell", Login(TARGET, ONE_WAY))
    assert "-AuthenticationType ONEWAYCHAP -ChapUsername 'snapshot' -ChapSecret 'it''s$e`cret,\"1'" in text


@pytest.mark.parametrize(
    "target", [TARGET, ADMITTED, replace(TARGET, luns=(replace(LUNS[0], logical_block_size_bytes=4096),))]
)
def test_libvirt_s_documents_are_valid(target: Target, tmp_path: Path) -> None:
    if not (shutil.which("virt-xml-validate") and shutil.which("xmllint")):
        pytest.skip("this host lacks virt-xml-validate or xmllint: run contrib/setup --test")
    documents = re.findall(r"<<'END'\n(.*?)\nEND\n", text_for("libvirt", Login(target, ONE_WAY)), re.DOTALL)
    secret, *disks = map(ElementTree.fromstring, documents)
    assert len(disks) == len(target.luns)
    domain = ElementTree.fromstring(
        "<domain type='qemu'><name>helper</name><memory>1</memory><os><type>hvm</type></os><devices/></domain>"
    )
    devices = domain.find("devices")
    assert devices is not None
    devices.extend(disks)
    for schema, document in (("secret", secret), ("domain", domain)):
        path = tmp_path / f"{schema}.xml"
        path.write_text(ElementTree.tostring(document, encoding="unicode"))
        done = subprocess.run(["virt-xml-validate", path, schema], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_machines_get_disks_with_the_lun_s_logical_blocks() -> None:
    first, second = TARGET.luns
    login = Login(replace(TARGET, luns=(first, replace(second, logical_block_size_bytes=4096))), ONE_WAY)
    assert text_for("libvirt", login).count("<blockio") == 1
    assert '<blockio logical_block_size="4096" physical_block_size="4096" />' in text_for("libvirt", login)
    device = "# the -device of snapshot-vdb needs logical_block_size=4096,physical_block_size=4096"
    assert device in text_for("QEMU", login).splitlines()
    assert "block_size" not in text_for("QEMU", Login(TARGET, ONE_WAY))


def test_libvirt_and_qemu_get_the_secret_to_the_last_byte(tmp_path: Path) -> None:
    """What the shell makes of the text, without the programs."""
    login = Login(TARGET, ONE_WAY)
    for initiator in ("QEMU", "libvirt"):
        [printf] = re.findall(r"printf %s .*?(?= \||\s*>)", text_for(initiator, login))
        assert subprocess.run(["sh", "-c", printf], capture_output=True, text=True).stdout == ONE_WAY.secret


@pytest.mark.vm
def test_open_iscsi_s_record_has_the_secrets() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: open-iscsi's records are root's")
    if not shutil.which("iscsiadm"):
        pytest.skip("this host lacks iscsiadm: run contrib/setup --test")
    text = text_for("open-iscsi", Login(TARGET, MUTUAL))
    before_login = text[: text.rindex("iscsiadm", 0, text.index("--login"))]
    record = ["iscsiadm", "-m", "node", "-T", TARGET.iqn]
    try:
        subprocess.run(["bash", "-c", before_login], capture_output=True)
        shown = subprocess.run([*record, "-S"], capture_output=True, text=True).stdout.splitlines()
    finally:
        subprocess.run([*record, "-o", "delete"], capture_output=True)
    assert f"node.session.auth.password = {MUTUAL.secret}" in shown
    assert f"node.session.auth.password_in = {MUTUAL.mutual_secret}" in shown
    assert "node.session.auth.username_in = target" in shown
    assert "node.conn[0].address = 192.0.2.7" in shown
    assert "node.conn[0].port = 3261" in shown
