"""The LUNs of snapshots, as they are shown.  Returns what to print; prints nothing."""

from __future__ import annotations

from ..core import units
from ..core.iscsi import Credentials, Session
from ..records.record import Publication


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
