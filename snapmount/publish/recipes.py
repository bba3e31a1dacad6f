"""How initiators log in to the target of a snapshot, with or without the secrets: text to paste, and JSON."""

from __future__ import annotations

from typing import Any

from ..core import names
from ..core.document import to_document
from ..core.iscsi import ALL_INITIATORS, INITIATORS, Credentials, Session
from ..records.record import Publication, Record
from . import initiators


def of(record: Record, credentials: Credentials, with_secret: bool, word: str | None) -> list[str]:
    """How initiators of the kind that the word means log in, as lines to be pasted: not indented, since some have
    here-documents.
    """
    assert record.publication
    word = word or INITIATORS[0]
    login = _login(record.publication, credentials, with_secret)
    lines: list[str] = []
    for kind in initiators.KINDS:
        if word in (kind.word, ALL_INITIATORS):
            text = kind.text(login) or _unreachable(login)
            lines += ["", f"# {kind.title}", *text.splitlines()]
    if word == ALL_INITIATORS:
        return lines
    others = [kind.title.partition(":")[0] for kind in initiators.KINDS if kind.word != word and kind.text(login)]
    command = names.command(
        "snapmount", "show", *(["--show-secret"] if with_secret else []), "--for", ALL_INITIATORS, record.id
    )
    return [*lines, "", f"other initiators ({', '.join(others)}): {command}"]


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


def _unreachable(login: initiators.Login) -> str:
    return f"# none: {login.portal.address} is reached from this host only; take it with --portal ADDRESS"


def _login(publication: Publication, credentials: Credentials, with_secret: bool) -> initiators.Login:
    login = initiators.Login(publication.target, credentials)
    return login if with_secret else login.without_secrets()
