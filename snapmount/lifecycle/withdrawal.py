"""Withdraws a snapshot's LUNs."""

from __future__ import annotations

import contextlib
import logging

from ..errors import StateError
from ..publish import iscsi
from ..records.store import Claim

log = logging.getLogger(__name__)


async def withdraw(claim: Claim) -> None:
    """Withdraw the LUNs.  Idempotent.  Raises LeftoverError or StateError."""
    publication = claim.record.publication
    if publication:
        log.info("withdrawing %s", publication.target.iqn)
        await iscsi.withdraw(publication.backend, claim.directory, publication.target)
        with contextlib.suppress(StateError):  # it is withdrawn, also where that cannot be written down
            claim.update(publication=None)
