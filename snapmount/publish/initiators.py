"""How initiators log in to a target, as text to paste: open-iscsi, QEMU, libvirt and Windows.

No secret becomes an argument of a program, which every user of that host could see: the shell writes it to files and
pipes with its own printf.  If that cannot be done, the text says so.  Names are those of iscsiadm(8), QEMU's
`BlockdevOptionsIscsi` (block-core.json), https://libvirt.org/formatdomain.html and formatsecret.html, and Windows'
iSCSI PowerShell module.
"""

from __future__ import annotations

import shlex
import string
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from xml.etree import ElementTree

from ..core.blocksize import DEFAULT_BLOCK_SIZE
from ..core.domainxml import add_block_size
from ..core.iscsi import Credentials, Lun, Portal, Target

PLACEHOLDER = "SECRET"
MUTUAL_PLACEHOLDER = "MUTUAL-SECRET"
ANY_ADDRESS = "ADDRESS-OF-THE-TARGET"  # stands for the target host's address where it listens at all it has

_LIBVIRT_SECRETS = uuid.UUID("0bb0e7a5-5d5e-5f0f-9a53-6d4f6c1f7c35")  # namespace of the secrets' uuids


@dataclass(frozen=True)
class Login:
    """What an initiator must know to log in."""

    target: Target
    credentials: Credentials

    def without_secrets(self) -> Login:
        """The same with placeholders for the secrets."""
        mutual = MUTUAL_PLACEHOLDER if self.credentials.mutual_secret is not None else None
        return replace(self, credentials=replace(self.credentials, secret=PLACEHOLDER, mutual_secret=mutual))

    @property
    def portal(self) -> Portal:
        """The portal to log in at, as an initiator names it: one that other hosts can reach, where there is one."""
        portal = next((each for each in self.target.portals if not each.is_loopback), self.target.portals[0])
        return replace(portal, address=ANY_ADDRESS) if portal.is_any else portal

    @property
    def is_local(self) -> bool:
        """Whether only initiators on the target's own host can log in."""
        return all(portal.is_loopback for portal in self.target.portals)

    @property
    def initiator(self) -> str | None:
        """The name that an initiator must give itself; None for any."""
        return self.target.initiators[0] if self.target.initiators else None

    @property
    def is_mutual(self) -> bool:
        """Whether the target proves itself too."""
        return self.credentials.mutual_secret is not None


@dataclass(frozen=True)
class Kind:
    """A kind of initiator."""

    word: str  # for it on the command line
    name: str  # of it in JSON
    title: str
    lines: Callable[[Login], Iterator[str]]
    is_elsewhere: bool = False  # it never runs on the target's host

    def text(self, login: Login) -> str | None:
        """How such an initiator logs in; None if it cannot, since the portals are loopback addresses."""
        return None if self.is_elsewhere and login.is_local else "\n".join(self.lines(login)) + "\n"


def commands(login: Login) -> dict[str, str | None]:
    """The text for each kind of initiator, by its name."""
    return {kind.name: kind.text(login) for kind in KINDS}


def _open_iscsi(login: Login) -> Iterator[str]:
    """iscsiadm takes the secret only as an argument: so it is appended to the node's record, where the last line of a
    name counts.  The records lie in /etc/iscsi, in newer releases in /var/lib/iscsi.
    """
    iqn, who = login.target.iqn, login.credentials
    node = 'iscsiadm -m node -T $iqn -p "$portal"'
    if login.initiator:
        yield f"# /etc/iscsi/initiatorname.iscsi must say InitiatorName={login.initiator}"
    yield f"iqn={iqn} portal={shlex.quote(str(login.portal))}"
    yield f"{node} -o new"
    yield "find /etc/iscsi/nodes/$iqn /var/lib/iscsi/nodes/$iqn -type f -exec tee -a {} + >/dev/null 2>&1 <<'END'"
    yield "node.session.auth.authmethod = CHAP"
    yield f"node.session.auth.username = {who.user}"
    yield f"node.session.auth.password = {who.secret}"
    if login.is_mutual:
        yield f"node.session.auth.username_in = {who.mutual_user}"
        yield f"node.session.auth.password_in = {who.mutual_secret}"
    yield "END"
    yield f"{node} --login"
    yield f"# its disks:  ls -l /dev/disk/by-path/*-iscsi-{iqn}-lun-*"
    yield f"# at the end: iscsiadm -m node -T {iqn} --logout"
    yield f"#             iscsiadm -m node -T {iqn} -o delete"


def _qemu(login: Login) -> Iterator[str]:
    """QEMU reads the secret from a file, to the last byte."""
    if login.is_mutual:
        yield "# QEMU cannot ask the target to prove itself (mutual CHAP): it logs in all the same"
    yield f"(umask 077; printf %s {shlex.quote(login.credentials.secret)} >iscsi-secret)"
    for lun in login.target.luns:
        if (size := lun.logical_block_size_bytes) != DEFAULT_BLOCK_SIZE:  # QEMU does not take the target's
            sizes = f"logical_block_size={size},physical_block_size={size}"
            yield f"# the -device of snapshot-{lun.disk} needs {sizes}"
    yield "qemu-system-x86_64 ... -object secret,id=iscsi-secret,file=iscsi-secret \\"
    for lun in login.target.luns:
        end = "" if lun is login.target.luns[-1] else " \\"
        yield f"  -blockdev {shlex.quote(_blockdev(login, lun))}{end}"


def _blockdev(login: Login, lun: Lun) -> str:
    options = {
        "node-name": f"snapshot-{lun.disk}",
        "driver": "iscsi",
        "transport": "tcp",
        "portal": str(login.portal),
        "target": login.target.iqn,
        "lun": str(lun.number),
        "user": login.credentials.user,
        "password-secret": "iscsi-secret",
        **({"initiator-name": login.initiator} if login.initiator else {}),
        "read-only": "on",
    }
    return ",".join(f"{name}={value.replace(',', ',,')}" for name, value in options.items())


def _libvirt(login: Login) -> Iterator[str]:
    """libvirt stores the secret, and gives it to QEMU; the disks name it by its usage."""
    if login.is_mutual:
        yield "# QEMU cannot ask the target to prove itself (mutual CHAP): it logs in all the same"
    secret_id = str(uuid.uuid5(_LIBVIRT_SECRETS, login.target.iqn))
    yield from _pasted("virsh secret-define /dev/stdin", _secret_xml(login, secret_id))
    value = shlex.quote(login.credentials.secret)
    yield f"printf %s {value} | virsh secret-set-value {secret_id} --file /dev/stdin --plain"
    for index, lun in enumerate(login.target.luns):
        yield from _pasted(
            "virsh attach-device HELPER-VM /dev/stdin", _disk_xml(login, lun, f"vd{_letters(index + 1)}")
        )
    yield f"# at the end: virsh secret-undefine {secret_id}"


def _pasted(command: str, document: ElementTree.Element) -> Iterator[str]:
    """The command, with the document as its standard input."""
    ElementTree.indent(document)
    yield f"{command} <<'END'"
    yield ElementTree.tostring(document, encoding="unicode")
    yield "END"


def _secret_xml(login: Login, secret_id: str) -> ElementTree.Element:
    secret = ElementTree.Element("secret", ephemeral="no", private="yes")
    ElementTree.SubElement(secret, "uuid").text = secret_id
    usage = ElementTree.SubElement(secret, "usage", type="iscsi")
    ElementTree.SubElement(usage, "target").text = login.target.iqn
    return secret


def _disk_xml(login: Login, lun: Lun, device: str) -> ElementTree.Element:
    disk = ElementTree.Element("disk", type="network", device="disk")
    ElementTree.SubElement(disk, "driver", name="qemu", type="raw")
    source = ElementTree.SubElement(disk, "source", protocol="iscsi", name=f"{login.target.iqn}/{lun.number}")
    ElementTree.SubElement(source, "host", name=login.portal.address, port=str(login.portal.port))
    if login.initiator:
        ElementTree.SubElement(ElementTree.SubElement(source, "initiator"), "iqn", name=login.initiator)
    auth = ElementTree.SubElement(source, "auth", username=login.credentials.user)
    ElementTree.SubElement(auth, "secret", type="iscsi", usage=login.target.iqn)
    ElementTree.SubElement(disk, "target", dev=device, bus="virtio")
    add_block_size(disk, lun.logical_block_size_bytes)  # QEMU does not take the target's
    ElementTree.SubElement(disk, "readonly")
    return disk


def _letters(index: int) -> str:
    """Linux's naming of disks: a to z for 0 to 25, then aa, ab."""
    tens, ones = divmod(index, 26)
    return (_letters(tens - 1) if tens else "") + string.ascii_lowercase[ones]


def _windows(login: Login) -> Iterator[str]:
    """The cmdlets run within PowerShell: the secret is no argument of a program, but may be kept in its history."""
    who = login.credentials
    at = f"-TargetPortalAddress {_single_quoted(login.portal.address)} -TargetPortalPortNumber {login.portal.port}"
    yield "# PowerShell may keep what is typed in its history: Clear-History, (Get-PSReadLineOption).HistorySavePath"
    if login.initiator:
        yield f"# Get-InitiatorPort must show the name {login.initiator}"
    yield f"New-IscsiTargetPortal {at}"
    if login.is_mutual:
        yield f"Set-IscsiChapSecret -ChapSecret {_single_quoted(who.mutual_secret or '')}"
    yield (
        f"Connect-IscsiTarget -NodeAddress {_single_quoted(login.target.iqn)} {at}"
        f" -AuthenticationType {'MUTUALCHAP' if login.is_mutual else 'ONEWAYCHAP'}"
        f" -ChapUsername {_single_quoted(who.user)} -ChapSecret {_single_quoted(who.secret)}"
    )
    yield f"# at the end: Disconnect-IscsiTarget -NodeAddress {_single_quoted(login.target.iqn)}"


def _single_quoted(text: str) -> str:
    """As PowerShell quotes (about_Quoting_Rules)."""
    return "'" + text.replace("'", "''") + "'"


KINDS = (
    Kind("linux", "open-iscsi", "Linux: open-iscsi, as root", _open_iscsi),
    Kind("qemu", "QEMU", "QEMU", _qemu),
    Kind("libvirt", "libvirt", "libvirt: a VM that runs", _libvirt),
    Kind("windows", "Windows PowerShell", "Windows: PowerShell, as administrator", _windows, is_elsewhere=True),
)
