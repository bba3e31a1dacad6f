"""What pytest-xdist asks of a plugin where there are shards: what to prepare, and how to hand out the tests."""

from __future__ import annotations

import pytest
from xdist.scheduler import LoadScopeScheduling

from . import guest, shards, stock_kernel


class Scheduling(LoadScopeScheduling):  # type: ignore[misc]  # it has no types
    """Modules in the order in which they were collected; all checks are one piece of work, as one VM runs them."""

    def _split_scope(self, nodeid: str) -> str:
        module, _, name = nodeid.partition("::")
        return shards.CHECK if name.startswith(shards.CHECK) else module


def pytest_xdist_setupnodes() -> None:
    """Shards have no network: what is downloaded on first use is fetched before."""
    guest.build()
    stock_kernel.lacking()


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> Scheduling:
    return Scheduling(config, log)
