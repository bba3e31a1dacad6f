"""The helper process that controls the target software: one JSON request on stdin, one JSON answer on stdout.

Request: {"do": "missing"|"free_ports"|"publish"|"sessions"|"withdraw"|"by_hand", "backend": NAME} and, for
"free_ports", {"requests": [PortalRequest]}, for those after it {"directory": PATH, "target": Target}, for "publish"
also {"files": [PATH], "credentials": Credentials}; the values are documents of core/document.py.
Answer: {"ok": RESULT} or {"error": MESSAGE, "remedy": COMMAND or null, "kind": name of the SnapmountError's class}.
Secrets come in through the pipe, since argv and the environment can be seen by others.
"""

from __future__ import annotations

import importlib
import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

from ...core.document import from_document, to_document
from ...core.iscsi import Credentials, Portal, PortalRequest, Session, Target
from ...errors import SnapmountError
from . import portals


class Backend(Protocol):
    """What each module of a target software offers.  All of it may block, and is called in this process only."""

    NAME: str

    def missing(self) -> tuple[str, str] | None:
        """Why it cannot be used on this host, and the command that mends it."""

    def shares(self, portal: Portal) -> bool:
        """Whether a target of ours listens there already that another one of ours can join."""

    def check_free(self, portal: Portal) -> None:
        """Raise PortalInUseError if one more target of ours cannot listen at the portal now."""

    def publish(self, directory: Path, target: Target, files: list[str], credentials: Credentials) -> None:
        """Publish the files as the target's LUNs, in their order; write down in `directory` what is made, before."""

    def sessions(self, directory: Path, target: Target) -> list[Session]:
        """Who is logged in."""

    def withdraw(self, directory: Path, target: Target) -> None:
        """Undo all that publish() may have done in any process, also where it died half-way; may be repeated."""

    def by_hand(self, directory: Path, target: Target) -> list[list[str]]:
        """The words of the commands that withdraw what is there."""


MODULES = {"lio": "snapmount.publish.iscsi.lio", "tgt": "snapmount.publish.iscsi.tgt"}


def backend(name: str) -> Backend:
    """The backend of that name, imported only now: one may need what the host lacks, and the other does not."""
    return cast(Backend, importlib.import_module(MODULES[name]))


def answer(request: Mapping[str, Any]) -> Any:
    """The result of a request, as JSON has it.  Raises SnapmountError."""
    chosen = backend(request["backend"])
    if request["do"] == "missing":
        return chosen.missing()
    if request["do"] == "free_ports":
        requests = from_document(tuple[PortalRequest, ...], request["requests"], "requests")
        return portals.free_ports(requests, chosen.shares, chosen.check_free)
    directory, target = Path(request["directory"]), from_document(Target, request["target"], "target")
    match request["do"]:
        case "publish":
            credentials = from_document(Credentials, request["credentials"], "credentials")
            return chosen.publish(directory, target, request["files"], credentials)
        case "sessions":
            return [to_document(session) for session in chosen.sessions(directory, target)]
        case "withdraw":
            return chosen.withdraw(directory, target)
        case "by_hand":
            return chosen.by_hand(directory, target)
        case unknown:
            raise ValueError(f"{unknown!r} is not a request")


def main() -> None:
    """Answer the request on standard input."""
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    try:
        document = {"ok": answer(json.load(sys.stdin))}
    except SnapmountError as error:
        document = {"error": error.message, "remedy": error.remedy, "kind": type(error).__name__}
    json.dump(document, sys.stdout)


if __name__ == "__main__":
    main()
