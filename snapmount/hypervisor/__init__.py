"""libvirt: connections, domains and their backup jobs.  The only package that imports the libvirt binding.

API: https://libvirt.org/html/libvirt-libvirt-domain.html
"""

from ..errors import MissingError

try:
    import libvirt  # noqa: F401
except ImportError:
    raise MissingError("the Python module of libvirt is missing", "sudo apt-get install python3-libvirt") from None

from .connection import Hypervisor, QemuFacts, connected
from .daemon import daemon, to_reach
from .domain import DiskError, Domain
from .events import Subscription, subscribed
from .identity import qemu_user
from .uri import default_uri, tpm_directory

__all__ = [
    "DiskError",
    "Domain",
    "Hypervisor",
    "QemuFacts",
    "Subscription",
    "connected",
    "daemon",
    "default_uri",
    "qemu_user",
    "subscribed",
    "to_reach",
    "tpm_directory",
]
