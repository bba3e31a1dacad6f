"""QEMU's locks of image files: what it says when another process has one (docs/system/qemu-block-drivers.rst.inc, "Disk
image file locking"; raw_check_lock_bytes() and bdrv_open_file_common() in QEMU's block layer).
"""

from __future__ import annotations

import re

_REFUSED = re.compile(
    r'Failed to (?:get (?:shared )?"[a-z ]+" lock|lock byte \d+)'
    r"(?:\s+Is another process using the image \[(?P<path>.+)\]\?)?"  # a hint, which is not told to libvirt by QMP
)


def refused(message: str) -> str | None:
    """The image that another process has locked, by an error of QEMU as libvirt hands it on, '' where it does not say
    which; None for another error.
    """
    found = _REFUSED.search(message)
    return None if found is None else found["path"] or ""
