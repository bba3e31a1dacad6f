"""Runs a program as QEMU's user that may read what root may, and nothing more.

libvirt gives the images of a VM that is shut off back to whom they belonged before, root as a rule, and closes them to
QEMU's user.  A program that reads images that others have made has no need to be root for it.
"""

from __future__ import annotations

import os

from ..core.user import User

_READ_ALL = "-all,+dac_read_search"  # CAP_DAC_READ_SEARCH in capabilities(7)


def as_reader(user: User, *, dies_with_us: bool = False) -> list[str]:
    """What precedes a command, setpriv(1): it runs as this user, and may read all files.  An ordinary user's has no
    rights but the user's own.

    One that dies with us is killed when the thread that starts it ends (PR_SET_PDEATHSIG(2const)): start it from the
    main thread.
    """
    death = ["--pdeathsig", "KILL"] if dies_with_us else []
    if os.geteuid() != 0:
        return ["setpriv", "--no-new-privs", *death]
    groups = ["--groups", ",".join(map(str, user.groups))] if user.groups else ["--clear-groups"]
    capabilities = [f"--{each}={_READ_ALL}" for each in ("inh-caps", "ambient-caps", "bounding-set")]
    return ["setpriv", f"--reuid={user.uid}", f"--regid={user.gid}", *groups, *capabilities, "--no-new-privs", *death]
