"""/etc/snapmount/storage.toml: which hook takes snapshots of what, so that nobody has to type it each time.

    [hooks]
    "/dev/zvol/tank" = "/etc/snapmount/hooks/zfs"
    "/srv/filer" = "/etc/snapmount/hooks/ontap"
    "rbd:vms" = "/etc/snapmount/hooks/rbd"

On the left stands where disks lie: a directory, file or block device, by any name that udev gives it, or the beginning
of a network disk's name as snapmount prints it.  Only whole parts of a name count: "/srv/a" is not for /srv/ab.  The
longest that fits wins.  Without the file there are no hooks but those that are named.

STORAGE HOOKS in the man page tells the same.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.document import DocumentError, from_document
from ..errors import StateError
from ..host import trust

PATH = "/etc/snapmount/storage.toml"
MAX_BYTES = 1 << 20

_NETWORK = re.compile(r"[a-z][a-z0-9+]*:\S+")


@dataclass(frozen=True)
class Settings:
    """What the file says."""

    hooks: Mapping[str, Any] = field(default_factory=dict)  # the hooks' paths, by what they serve

    def hook_of(self, *known: str) -> str | None:
        """The hook for an origin that is known by these names, if there is one."""
        fitting = [prefix for prefix in self.hooks if any(_fits(prefix, name) for name in known)]
        return str(self.hooks[max(fitting, key=lambda prefix: len(prefix.rstrip("/")))]) if fitting else None


def read(path: str = PATH) -> Settings:
    """The settings; empty ones if there is no such file.

    Raises StateError, with the file and the key, if it holds anything else or others than root and the calling user can
    have written it, and OSError.
    """
    try:
        if doubt := trust.doubt(Path(path)):
            raise StateError(f"{path} is not used, since it {doubt.why}", doubt.remedy)
        with Path(path).open("rb") as f:
            text = f.read(MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return Settings()
    if len(text) > MAX_BYTES:
        raise StateError(f"{path} is larger than {MAX_BYTES} bytes")
    try:
        settings = from_document(Settings, tomllib.loads(text.decode()))
        for prefix, hook in settings.hooks.items():
            _check(prefix, hook)
        resolved = {os.path.realpath(prefix): hook for prefix, hook in settings.hooks.items() if prefix.startswith("/")}
    except (ValueError, RecursionError) as error:  # a DocumentError, a TOMLDecodeError and a UnicodeDecodeError are
        raise StateError(f"{path} cannot be used: {error}") from error
    return Settings({**resolved, **settings.hooks})  # origins are without symbolic links


def _check(prefix: str, hook: object) -> None:
    where = f'hooks."{prefix}"'
    if prefix.startswith("/"):
        if os.path.normpath(prefix) != (prefix.rstrip("/") or "/"):
            raise DocumentError(f"{where} is a path with '.', '..' or '//' in it")
    elif not _NETWORK.fullmatch(prefix):
        raise DocumentError(f"{where} is neither an absolute path nor the name of a network disk, such as rbd:pool")
    if not isinstance(hook, str) or not hook.startswith("/"):
        raise DocumentError(f"{where} is {hook!r}, not the absolute path of a hook")


def _fits(prefix: str, name: str) -> bool:
    whole = prefix.rstrip("/")
    if not name.startswith(whole):
        return False
    rest = name[len(whole) :]
    return not rest or rest[0] in ("/" if name.startswith("/") else "/:@")
