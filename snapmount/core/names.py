"""Names: which may become those of files and sockets, how they are shown, what else a mistyped one may have meant."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterable, Sequence

from ..errors import UsageError

# libvirt's schema for <target dev=...> (basictypes.rng, diskTarget) allows these characters only.
_DISK_NAME = re.compile(r"[A-Za-z0-9_]{1,64}")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
MOUNT_SOURCE_VM_MAX = 255  # characters
SOCKET_PATH_MAX = 107  # bytes; sun_path in unix(7), less its final zero
_SNAPSHOT_ID = re.compile(r"[0-9a-f]{8}")
_SHORT_ID = re.compile(r"[0-9a-f]{4,8}")  # as git(1) does, with fewer it is too easily another


def is_disk_name(name: str) -> bool:
    """Whether a disk's target name can be a file name and an NBD export name as it is."""
    return _DISK_NAME.fullmatch(name) is not None


def is_snapshot_id(text: str) -> bool:
    """Whether the text has the form of a snapshot's id: eight hexadecimal digits."""
    return _SNAPSHOT_ID.fullmatch(text) is not None


def may_begin_snapshot_id(text: str) -> bool:
    """Whether the text is long enough to stand for a snapshot whose id begins so."""
    return _SHORT_ID.fullmatch(text) is not None


def is_uuid(text: str) -> bool:
    """Whether the text is a uuid as libvirt writes it."""
    return _UUID.fullmatch(text) is not None


def directory(snapshot_id: str) -> str:
    """The name of a directory for QEMU, wherever it is, that belongs to the snapshot."""
    return f"snapmount-{snapshot_id}"


def mount_source(vm_name: str, snapshot_id: str) -> str:
    """What mount(8) and df(1) show as the source of a snapshot's mount: `snapmount:vm1:3f2a91bc`.

    Characters that would need escaping in mount options or /proc/self/mountinfo become '_', and a long name is cut: all
    options of a mount share a page.  The id makes it unique.
    """
    return f"snapmount:{re.sub(r'[^A-Za-z0-9._+-]', '_', vm_name[:MOUNT_SOURCE_VM_MAX])}:{snapshot_id}"


def printable(text: str) -> str:
    """The text with control characters and other unprintable ones escaped, so that it cannot steer a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def command(*words: str) -> str:
    """A command line to paste into a shell, each word quoted where it needs to be."""
    return shlex.join(words)


def listed(words: Sequence[str]) -> str:
    """The words as part of a sentence: 'vda', 'vda and vdb', 'vda, vdb and vdc'."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def near(wanted: str, known: Iterable[str]) -> list[str]:
    """Up to three known names that `wanted` may have meant, best first."""
    by_folded = {name.casefold(): name for name in known}
    return [by_folded[match] for match in difflib.get_close_matches(wanted.casefold(), by_folded, n=3, cutoff=0.6)]


def check_utf_8(path: str, what: str) -> None:
    """Raise UsageError for a path that libvirt cannot be told."""
    try:
        path.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{what} {path} has a name that is not UTF-8, which libvirt insists on") from None
