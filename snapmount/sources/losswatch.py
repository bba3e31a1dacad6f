"""What watches of several sources have in common: they wait for a loss in many ways, and the first one counts."""

from __future__ import annotations

import trio

from .source import Loss


class LossWatch:
    """A Watch (see source.py), but for release()."""

    def __init__(self) -> None:
        self._loss: Loss | None = None
        self._is_lost = trio.Event()

    async def wait_lost(self) -> Loss:
        """See Watch."""
        await self._is_lost.wait()
        assert self._loss
        return self._loss

    def _lose(self, loss: Loss) -> None:
        """The first reason is the one."""
        self._loss = self._loss or loss
        self._is_lost.set()
