"""Withdraws a snapshot's LUNs."""

from __future__ import annotations

import contextlib
import logging

from ..errors import StateError
from ..publish import iscsi
from ..records.store import Lease

log = logging.getLogger(__name__)


async def withdraw(lease: Lease) -> None:
    """Withdraw the LUNs.  Idempotent.  Raises LeftoverError or StateError."""
    publication = lease.record.publication
    if publication:
        log.info("withdrawing %s", publication.target.iqn)
        await iscsi.withdraw(publication.backend, lease.directory, publication.target)
        with contextlib.suppress(StateError):  # it is withdrawn, also where that cannot be written down
            lease.update(publication=None)
