"""The logical block size of a disk for which none is set."""

from __future__ import annotations

# In bytes; QEMU's, whatever the image lies on: only DASDs, zoned devices and its own NVMe driver are asked for theirs
# (blkconf_blocksizes() in hw/block/block.c, hdev_probe_blocksizes() in block/file-posix.c), and no definition tells.
DEFAULT_BLOCK_SIZE = 512
