"""The LUNs of snapshots, as they are shown: who is logged in, how to log in.  Returns what to print; prints nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import trio

from ...core import names, units
from ...core.document import to_document
from ...core.iscsi import Credentials, Session
from ...errors import SnapmountError
from ...records.record import Publication, Record
from ...records.store import Store
from .. import iscsi
from . import initiators


async def sessions(records: Sequence[Record], store: Store) -> dict[str, list[Session] | None]:
    """Who is logged in to each snapshot's target, by the snapshot's id.

    None stands for no target, and for one that does not tell, as when the process that serves it is gone.
    """
    found: dict[str, list[Session] | None] = {}
    async with trio.open_nursery() as nursery:
        for record in records:
            nursery.start_soon(_ask, record, store, found)
    return found


async def _ask(record: Record, store: Store, found: dict[str, list[Session] | None]) -> None:
    found[record.id] = None
    if record.publication and store.is_served(record.id):
        try:
            found[record.id] = await iscsi.sessions(
                record.publication.backend, store.path(record.id), record.publication.target
            )
        except SnapmountError:
            pass  # it is being withdrawn, or its tgtd has died: `list` is no place for that


def document(
    publication: Publication, who: list[Session] | None, credentials: Credentials | None, with_secret: bool
) -> dict[str, Any]:
    """The JSON shape of a publication; see JSON in the man page."""
    target = publication.target
    shown = credentials if with_secret else None
    return {
        "target": publication.backend,
        "iqn": target.iqn,
        "portals": [str(portal) for portal in target.portals],
        "initiators": list(target.initiators),
        "luns": [to_document(lun) for lun in target.luns],
        "user": credentials and credentials.user,
        "secret": shown and shown.secret,
        "mutual_user": credentials and credentials.mutual_user,
        "mutual_secret": shown and shown.mutual_secret,
        "commands": initiators.commands(_login(publication, credentials, with_secret)) if credentials else None,
        "sessions": who if who is None else [to_document(session) for session in who],
    }


def summary(publication: Publication, who: list[Session] | None, is_active: bool) -> str:
    """A cell of `list`: '2 LUNs, 1 session, 1.5 GiB read'."""
    count = len(publication.target.luns)
    text = f"{count} LUN{'s' * (count != 1)}"
    if who is None and is_active:
        return f"{text}, {publication.backend} does not answer"
    if who:
        text += f", {len(who)} session{'s' * (len(who) != 1)}"
        read = [session.bytes_read for session in who if session.bytes_read is not None]
        text += f", {units.size(sum(read))} read" if read else ""
    return text


def facts(publication: Publication, credentials: Credentials | None, with_secret: bool) -> list[tuple[str, str]]:
    """What an initiator must know, as rows."""
    target = publication.target
    only_here = " (this host only)" if all(portal.is_loopback for portal in target.portals) else ""
    rows = [("target", target.iqn), ("portal", ", ".join(map(str, target.portals)) + only_here)]
    if target.initiators:
        rows.append(("initiators", ", ".join(target.initiators)))
    if credentials:
        hidden = "(shown with --show-secret)"
        rows += [("user", credentials.user), ("secret", credentials.secret if with_secret else hidden)]
        if credentials.mutual_secret:
            rows.append(("the target's user", credentials.mutual_user or ""))
            rows.append(("the target's secret", credentials.mutual_secret if with_secret else hidden))
    return rows


def lun_rows(publication: Publication) -> list[tuple[str, ...]]:
    """A row for each LUN."""
    return [
        (
            f"LUN {lun.number}",
            lun.disk,
            units.size(lun.size_bytes),
            f"{lun.vendor} {lun.product}",
            f"serial {lun.serial}",
        )
        for lun in publication.target.luns
    ]


def session_rows(who: list[Session]) -> list[tuple[str, ...]]:
    """A row for each initiator that is logged in."""
    return [
        (
            each.initiator,
            each.address or "",
            f"{units.size(each.bytes_read)} read" if each.bytes_read is not None else "",
        )
        for each in who
    ]


def recipes(record: Record, credentials: Credentials, with_secret: bool, word: str | None) -> list[str]:
    """How initiators of the kind that the word means log in, as lines to be pasted: not indented, since some have
    here-documents.
    """
    assert record.publication
    word = word or initiators.USUAL
    login = _login(record.publication, credentials, with_secret)
    lines: list[str] = []
    for kind in initiators.KINDS:
        if word in (kind.word, initiators.ALL):
            text = kind.text(login) or _unreachable(login)
            lines += ["", f"# {kind.title}", *text.splitlines()]
    if word == initiators.ALL:
        return lines
    others = [kind.title.partition(":")[0] for kind in initiators.KINDS if kind.word != word and kind.text(login)]
    command = names.command(
        "snapmount", "show", *(["--show-secret"] if with_secret else []), "--for", initiators.ALL, record.id
    )
    return [*lines, "", f"other initiators ({', '.join(others)}): {command}"]


def _unreachable(login: initiators.Login) -> str:
    return f"# none: {login.portal.address} is reached from this host only; take it with --portal ADDRESS"


def _login(publication: Publication, credentials: Credentials, with_secret: bool) -> initiators.Login:
    login = initiators.Login(publication.target, credentials)
    return login if with_secret else login.without_secrets()
