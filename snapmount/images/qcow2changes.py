"""What may differ of a disk between two states of its qcow2 image, both of which are files or block devices here."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from ..core import qcow2changes
from ..core.extents import Extent
from ..core.qcow2changes import CannotCompareError, State
from ..errors import StateError
from ..host import blocking

COMPARE_S = 600.0


@dataclass(frozen=True)
class Images:
    """Two states of an image, to which nobody writes."""

    older: str  # paths
    newer: str
    is_alone: bool  # whether it rests on no other; if it does, on the same one in both

    async def differing(self, file: Sequence[Extent]) -> Sequence[Extent]:
        """The parts of the disk that may differ, if those of the file do.  Raises StateError if that cannot be told."""
        try:
            return await blocking.on_path(self.newer, COMPARE_S, self._differing, file)
        except CannotCompareError as error:
            raise StateError(f"its image {error}, so what has changed cannot be told from its clones") from error

    def _differing(self, file: Sequence[Extent]) -> Sequence[Extent]:
        older = os.open(self.older, os.O_RDONLY | os.O_CLOEXEC)
        try:
            newer = os.open(self.newer, os.O_RDONLY | os.O_CLOEXEC)
            try:
                before, now = (State.of(partial(_read, descriptor)) for descriptor in (older, newer))
                size_bytes = os.lseek(newer, 0, os.SEEK_END)  # of a block device too
                return qcow2changes.differing(before, now, file, size_bytes, is_alone=self.is_alone)
            finally:
                os.close(newer)
        finally:
            os.close(older)


def _read(descriptor: int, offset: int, length: int) -> bytes:
    return os.pread(descriptor, length, offset)
