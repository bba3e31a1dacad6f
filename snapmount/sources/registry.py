"""The sources there are."""

from __future__ import annotations

from collections.abc import Mapping

from ..records.documents import HasSource
from .pull import source as pull
from .pull.state import KIND as PULL
from .source import Source

SOURCES: Mapping[str, Source] = {PULL: pull}


def of(kept: HasSource) -> Source:
    """The source of a snapshot, by its record or its entry in the journal."""
    return SOURCES[kept.source["kind"]]
