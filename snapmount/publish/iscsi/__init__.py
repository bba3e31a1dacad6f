"""Publishes files as iSCSI LUNs: what the server and the command line call.

Each call runs in a helper process (`control`), under a deadline: the target software opens files of our own mount,
and whoever does so hangs with it, in a state that not even SIGKILL ends.  Nothing here waits for such a process.
"""

from __future__ import annotations

import json
import logging
import secrets
import string
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import trio

from ... import errors
from ...core.document import from_document, to_document
from ...core.iscsi import Credentials, PortalRequest, Session, Target
from ...core.names import command
from ...core.publishing import SECRET_MAX
from ...errors import LeftoverError, MissingError, SnapmountError, StateError, UnreachableError

log = logging.getLogger(__name__)

BACKENDS = ("lio", "tgt")  # as preferred: the kernel's is faster
DEADLINE_S = 60.0
ANSWER_S = 10.0  # of what is read only
DEATH_S = 2.0


class PortalInUseError(StateError):
    """Something else listens at the portal."""


_left_behind: list[trio.Process] = []  # killed, but in D state; Popen warns of a process that it is to forget


def new_credentials(secret: str | None, *, mutual: bool) -> Credentials:
    """A user with that secret, or a random one; with `mutual` the target gets a random one too, as it must differ."""
    if not mutual:
        return Credentials("snapmount", secret or _random_secret())
    return Credentials("snapmount", secret or _random_secret(), "snapmount-target", _random_secret())


def _random_secret() -> str:
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(SECRET_MAX))


async def choose(backend: str) -> str:
    """The backend to use: `backend`, or for "auto" the first that works here.  Raises MissingError for none."""
    wanted = BACKENDS if backend == "auto" else (backend,)
    faults = []
    for name in wanted:
        fault = await missing(name)
        if fault is None:
            return name
        faults.append(fault)
    raise MissingError("; ".join(why for why, _ in faults), faults[-1][1])


async def missing(backend: str) -> tuple[str, str] | None:
    """Why the backend cannot be used on this host, and the command that mends it; None if it can be."""
    fault = await _ask(backend, "missing")
    return fault and from_document(tuple[str, str], fault)


async def free_ports(backend: str, requests: Iterable[PortalRequest]) -> list[int]:
    """Those of PORTS that are free at all addresses for which no port is asked for; see core.iscsi.choose_portals().

    Raises PortalInUseError for a port that is asked for and is not free, UsageError for an address that this host does
    not have, UnreachableError.
    """
    answer = await _ask(backend, "free_ports", requests=[to_document(request) for request in requests])
    return list(from_document(tuple[int, ...], answer))


async def publish(backend: str, directory: Path, target: Target, files: list[str], credentials: Credentials) -> None:
    """Publish the files as the target's LUNs, in their order.  Whatever happens, withdraw() undoes it.

    `directory` is private to the snapshot, and gone after a reboot.  Raises UsageError, StateError, MissingError or
    UnreachableError.
    """
    await _ask(
        backend,
        "publish",
        directory=str(directory),
        target=to_document(target),
        files=files,
        credentials=to_document(credentials),
    )


async def sessions(backend: str, directory: Path, target: Target) -> list[Session]:
    """Who is logged in.  Raises UnreachableError or StateError if the target software does not tell."""
    with trio.move_on_after(ANSWER_S):
        answer = await _ask(backend, "sessions", directory=str(directory), target=to_document(target))
        return list(from_document(tuple[Session, ...], answer))
    raise UnreachableError(f"{backend} has not told the sessions within {ANSWER_S:g} s")


async def withdraw(backend: str, directory: Path, target: Target) -> None:
    """Undo what publish() did or began, also with initiators logged in; nothing to undo is no error.

    Raises LeftoverError.
    """
    try:
        await _ask(backend, "withdraw", directory=str(directory), target=to_document(target))
    except UnreachableError as error:
        raise LeftoverError(error.message, error.remedy) from error


async def by_hand(backend: str, directory: Path, target: Target) -> list[str]:
    """The commands, for a shell, that undo what is left of what publish() did.  Raises UnreachableError or StateError.

    It waits for neither an initiator nor the mount.
    """
    with trio.move_on_after(ANSWER_S):
        answer = await _ask(backend, "by_hand", directory=str(directory), target=to_document(target))
        return [command(*words) for words in from_document(tuple[tuple[str, ...], ...], answer)]
    raise UnreachableError(f"{backend} has not told what is left within {ANSWER_S:g} s")


async def _ask(backend: str, do: str, **request: Any) -> Any:
    """What the helper process answers.  Raises UnreachableError at the deadline, else what the helper raised."""
    document = json.dumps({"do": do, "backend": backend, **request}).encode()
    process = await trio.lowlevel.open_process(
        [sys.executable, "-P", "-m", "snapmount.publish.iscsi.control"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        with trio.fail_after(DEADLINE_S):
            answer, complaints = await _converse(process, document)
            await process.wait()
    except trio.TooSlowError:
        raise UnreachableError(f"{backend}: {do} has not ended within {DEADLINE_S:g} s") from None
    finally:
        await _end(process)
    return _understood(answer, complaints.decode(errors="replace"))


async def _converse(process: trio.Process, document: bytes) -> tuple[bytes, bytes]:
    """Hand the document in; what the process then writes to its standard output and its standard error."""
    assert process.stdin
    assert process.stdout
    assert process.stderr
    async with process.stdin, process.stdout, process.stderr, trio.open_nursery() as nursery:
        complaints = bytearray()
        nursery.start_soon(_collect, process.stderr, complaints)
        try:
            await process.stdin.send_all(document)
        except trio.BrokenResourceError:
            log.debug("the helper has ended without reading its request")
        await process.stdin.aclose()
        answer = bytearray()
        await _collect(process.stdout, answer)
    return bytes(answer), bytes(complaints)


async def _collect(stream: trio.abc.ReceiveStream, into: bytearray) -> None:
    async for part in stream:
        into += part


async def _end(process: trio.Process) -> None:
    """Kill the process, if need be, and wait for its death no longer than a moment."""
    if process.returncode is not None:
        return
    process.kill()
    with trio.move_on_after(DEATH_S, shield=True) as scope:
        await process.wait()
    if scope.cancelled_caught:
        log.error("the helper process %d hangs in the kernel and is left behind", process.pid)
        _left_behind.append(process)


def _understood(answer: bytes, complaints: str) -> Any:
    for line in complaints.splitlines():
        log.warning("helper: %s", line)
    try:
        document = json.loads(answer)
    except ValueError:
        raise RuntimeError(f"the helper process failed: {complaints.strip()}") from None
    if "error" in document:
        is_of_portal = document["kind"] == PortalInUseError.__name__
        kind: type[SnapmountError] = PortalInUseError if is_of_portal else getattr(errors, document["kind"])
        raise kind(document["error"], document["remedy"])
    return document["ok"]
