"""A tgtd that publishes LUNs, driven as the server drives it: through the helper process."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from snapmount.core.iscsi import Credentials, Lun, Portal, Session, Target
from snapmount.errors import SnapmountError
from snapmount.publish import iscsi

MIB = 1 << 20
SIZE = 16 * MIB
CREDENTIALS = Credentials("snapshot", "s3cret,=:with+it")
MUTUAL = replace(CREDENTIALS, mutual_user="target", mutual_secret="proof,of+target")
LUNS = (
    Lun(1, "vda", SIZE, "5eda" * 8, "vm1-vda"),
    Lun(2, "vdb", SIZE, "5edb" * 8, "vm1-vdb"),
)


@dataclass(frozen=True)
class Published:
    """A target with its LUNs published."""

    directory: Path
    target: Target
    files: list[str]
    credentials: Credentials

    def url(self, lun: int = 1, secret: str | None = None, portal: Portal | None = None, **options: str) -> str:
        """libiscsi's URL of a LUN, in which nothing can be quoted; an empty secret: without credentials."""
        secret = self.credentials.secret if secret is None else secret
        login = f"{self.credentials.user}%{secret}@" if secret else ""
        query = "&".join(f"{name}={value}" for name, value in options.items())
        return f"iscsi://{login}{portal or self.target.portals[0]}/{self.target.iqn}/{lun}" + (
            f"?{query}" if query else ""
        )

    def sessions(self) -> list[Session]:
        found: list[Session] = ask(iscsi.sessions, "tgt", self.directory, self.target)
        return found

    def withdraw(self) -> None:
        withdraw(self.directory, self.target)

    @property
    def tgtd(self) -> int:
        [pid] = tgtds(self.directory)
        return pid


@contextlib.contextmanager
def published(
    directory: Path, target: Target, files: list[str], credentials: Credentials = CREDENTIALS
) -> Iterator[Published]:
    try:
        ask(iscsi.publish, "tgt", directory, target, files, credentials)
        yield Published(directory, target, files, credentials)
    finally:
        withdraw(directory, target)


def ask(function: Callable[..., Any], *args: Any) -> Any:
    return trio.run(partial(function, *args))


def withdraw(directory: Path, target: Target) -> None:
    ask(iscsi.withdraw, "tgt", directory, target)


def refusal(kind: type[SnapmountError], *args: Any) -> SnapmountError:
    """The error of that kind with which publishing is refused."""
    with pytest.raises(kind) as refused:
        ask(iscsi.publish, "tgt", *args)
    return refused.value


def tgtds(directory: Path) -> list[int]:
    """The processes that have this directory in their environment as tgtd's."""
    wanted = f"TGT_IPC_SOCKET={directory}/tgtd".encode()
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if wanted in environment.read_bytes().split(b"\0"):
                found.append(int(environment.parent.name))
    return found


def listens_at(port: int) -> bool:
    return bool(subprocess.run(["ss", "-Htln", f"sport = :{port}"], capture_output=True, text=True).stdout)
