"""Tells this host from others: directories of ours may be shared, homes on a file server for instance."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
from dataclasses import dataclass
from pathlib import Path

MACHINE_ID = Path("/etc/machine-id")


@dataclass(frozen=True)
class Host:
    """A host, as it can be told from others also after a restart."""

    id: str
    name: str  # for people

    @classmethod
    def this(cls) -> Host:
        """The host that we run on, be it a container.

        Its name is part of the id: machines and containers that were copied, or share an image, often have the same
        machine-id.  If there is none (machine-id(5): empty, or "uninitialized") the name must do.  The machine-id
        itself goes nowhere, as that page asks.
        """
        name = os.uname().nodename  # as gethostname(2), without the module socket, for which `list` would wait
        what = f"snapmount {name}".encode("utf-8", "surrogateescape")
        return cls(hmac.new(_machine_id().encode(), what, hashlib.sha256).hexdigest()[:16], name)


def _machine_id() -> str:
    with contextlib.suppress(OSError):
        found = MACHINE_ID.read_text(errors="replace").strip()
        return "" if found == "uninitialized" else found
    return ""
