"""fusermount3's configuration, /etc/fuse.conf (mount.fuse3(8)), as text."""

from __future__ import annotations

import re


def permits_allow_other(fuse_conf: str) -> bool:
    """Whether the text of /etc/fuse.conf lets ordinary users admit others to their mounts."""
    return re.search(r"^[ \t]*user_allow_other[ \t]*$", fuse_conf, re.MULTILINE) is not None
