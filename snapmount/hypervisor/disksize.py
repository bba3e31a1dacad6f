"""The sizes of a VM's disks, as libvirt tells them of the images that they consist of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class DiskSize:
    """The sizes of a disk, in bytes."""

    virtual: int
    allocated: int | None  # what its images take on the host; None if libvirt cannot tell, as of a disk in a network

    def over(self, backing: DiskSize) -> DiskSize:
        """That of an image with what is below it."""
        if self.allocated is None or backing.allocated is None:
            return DiskSize(self.virtual, None)
        return DiskSize(self.virtual, self.allocated + backing.allocated)


def disk_sizes(stats: Mapping[str, Any]) -> dict[str, DiskSize]:
    """The sizes of each disk, by its name, out of the statistics of the group "block", with backing files.

    virConnectGetAllDomainStats(), VIR_DOMAIN_STATS_BLOCK: "physical" is what an image takes, "allocation" is how far
    QEMU has written since it opened the image.
    """
    sizes: dict[str, DiskSize] = {}
    for number in range(stats["block.count"]):
        block = f"block.{number}"
        name, layer = (
            stats[f"{block}.name"],
            DiskSize(stats.get(f"{block}.capacity", 0), stats.get(f"{block}.physical")),
        )
        sizes[name] = sizes[name].over(layer) if name in sizes else layer  # the top layer comes first
    return sizes
