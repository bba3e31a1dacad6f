"""Loads the C extension that gives pyfuse3 the operation lseek; the package imports it before pyfuse3.

Without it (no compiler where snapmount was installed) everything works, but programs take a whole disk for data.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Protocol, cast

Handler = Callable[[object, int, int, int], None]


class Extension(Protocol):
    """The module _lseek."""

    def set_handler(self, handler: Handler) -> None:
        """Call handler(request, inode, offset, whence) for each lseek; it returns at once and answers when it can."""

    def reply(self, request: object, offset: int, errno: int) -> None:
        """Answer a request: with the offset, or with errno where that is not 0.

        A request that is dropped unanswered is answered with EIO.
        """


def _load() -> Extension | None:
    before = sys.getdlopenflags()
    sys.setdlopenflags(before | os.RTLD_GLOBAL)  # its fuse_session_new must be found before libfuse's
    try:
        return cast(Extension, import_module(f"{__package__}._lseek"))
    except ImportError:
        return None
    finally:
        sys.setdlopenflags(before)


extension: Extension | None = _load()
