"""The sources there are."""

from __future__ import annotations

from collections.abc import Mapping

from ..hypervisor import Domain
from ..records.kept import HasSource
from .offline import source as offline
from .offline.state import KIND as OFFLINE
from .pull import source as pull
from .pull.state import KIND as PULL
from .source import Source
from .storage import source as storage
from .storage.state import KIND as STORAGE

SOURCES: Mapping[str, Source] = {PULL: pull, OFFLINE: offline, STORAGE: storage}


async def serving(domain: Domain, wanted: str | None) -> Source:
    """The source of the kind that is wanted, or else the first one that can take a snapshot of the VM in the state that
    this is in.  Raises StateError.
    """
    refusals = []
    for source in [SOURCES[wanted]] if wanted else SOURCES.values():
        why = await source.why_not(domain)
        if why is None:
            return source
        refusals.append(why)
    raise refusals[0]


def of(kept: HasSource) -> Source:
    """The source of a snapshot, by its record or its entry in the journal."""
    return SOURCES[kept.source["kind"]]
