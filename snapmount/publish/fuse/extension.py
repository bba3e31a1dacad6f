"""Loads the C extension that stands between pyfuse3 and libfuse; the package imports it before pyfuse3.

Without it (no compiler where snapmount was installed) everything works, but programs take a whole disk for data, and
reads are slower.
"""

from __future__ import annotations

import os
import sys
from array import array
from collections.abc import Callable
from importlib import import_module
from typing import Protocol, TypeAlias, cast

SeekHandler = Callable[[object, int, int, int], None]
# core.qcow2layout.Placement: start, cluster size, and of each run of clusters the first one and its rank
Placed: TypeAlias = "tuple[int, int, array[int], array[int]]"


class Extension(Protocol):
    """The module _native: the operation lseek, which pyfuse3 has not, and a thread that answers reads of disks.

    A read that the thread cannot answer reaches the operation read() as if there were no thread.
    """

    def set_seek_handler(self, handler: SeekHandler) -> None:
        """Call handler(request, inode, offset, whence) for each lseek; it returns at once and answers when it can."""

    def reply_seek(self, request: object, offset: int, errno: int) -> None:
        """Answer a request: with the offset, or with errno where that is not 0.

        A request that is dropped unanswered is answered with EIO.
        """

    def add_disk(
        self,
        inode: int,
        size: int,
        starts: array[int],
        flags: bytearray,
        placed: Placed | None,
        sockets: tuple[int, ...],
        deadline_s: float,
    ) -> None:
        """Answer reads of this file: `starts` and `flags` are all of its extents (ExtentMap.arrays()), `sockets`
        connections to its disk's export as core.image.NbdSockets describes them.  Unless the file is the disk byte for
        byte, `placed` tells where the disk's clusters lie in it.  Raises OSError if there are too many disks.
        """

    def add_file(
        self,
        inode: int,
        size: int,
        starts: array[int],
        flags: bytearray,
        placed: Placed | None,
        descriptor: int,
        file_bytes: int,
        deadline_s: float,
    ) -> None:
        """The same for a disk that is a file of so many bytes, as core.image.LocalFile describes it."""

    def drop(self, inode: int) -> None:
        """Leave the reads of this file to read() from now on, those under way too."""

    def cut(self) -> None:
        """Let all reads under way fail with EIO, and leave further ones to read()."""

    def stop(self) -> None:
        """End the thread, and forget the session, which is to be closed next; there may be another one later."""


def _load() -> Extension | None:
    before = sys.getdlopenflags()
    sys.setdlopenflags(before | os.RTLD_GLOBAL)  # its functions must be found before libfuse's of the same name
    try:
        return cast(Extension, import_module(f"{__package__}._native"))
    except ImportError:
        return None
    finally:
        sys.setdlopenflags(before)


extension: Extension | None = _load()
