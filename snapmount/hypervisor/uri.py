"""Which connection URI libvirt takes by default, and where the daemon at one keeps what: core/uris.py reads them."""

from __future__ import annotations

import os
from pathlib import Path

from ..core.uris import is_unprivileged

SYSTEM_PIDS = Path("/run/libvirt/qemu")  # of a daemon that runs as root, which ours is as root


def default_uri() -> str:
    """As virsh does: $LIBVIRT_DEFAULT_URI, else qemu:///system for root and qemu:///session for others."""
    return os.environ.get("LIBVIRT_DEFAULT_URI") or ("qemu:///system" if os.geteuid() == 0 else "qemu:///session")


def pid_directory(uri: str) -> Path:
    """Where libvirt keeps the process ids of its QEMUs (stateDir in its qemu_conf.c, g_get_user_runtime_dir())."""
    if os.geteuid() == 0 or not is_unprivileged(uri):
        return SYSTEM_PIDS
    runtime = os.environ.get("XDG_RUNTIME_DIR") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(runtime) / "libvirt/qemu/run"


def tpm_directory(uri: str, uuid: str) -> Path:
    """Where libvirt keeps the emulated TPM of a VM (swtpmStorageDir in its qemu_conf.c).

    It removes that of a transient VM at its end, but not after a restart of the host.
    """
    own = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "libvirt/qemu"
    return (own if is_unprivileged(uri) else Path("/var/lib/libvirt")) / "swtpm" / uuid
