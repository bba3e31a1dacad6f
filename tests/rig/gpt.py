"""A partition table (GPT) for a disk of any logical block size; an operating system finds it in that size alone.

Format: UEFI specification, "GUID Partition Table (GPT) Disk Layout".
"""

from __future__ import annotations

import struct
import uuid
import zlib
from pathlib import Path

_LINUX = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")  # the type "Linux filesystem data"
_DISK, _PARTITION = uuid.UUID(int=1), uuid.UUID(int=2)
_ENTRIES, _ENTRY_BYTES = 128, 128
_HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")
_ENTRY = struct.Struct("<16s16sQQQ72s")


def write(image: Path, block_bytes: int) -> None:
    """Write a table with one partition, in the middle of the disk, at its start; the copy at its end is left out."""
    blocks = image.stat().st_size // block_bytes
    first_usable = 2 + -(-_ENTRIES * _ENTRY_BYTES // block_bytes)
    entry = _ENTRY.pack(_LINUX.bytes_le, _PARTITION.bytes_le, blocks // 4, blocks // 2 - 1, 0, b"")
    entries = entry.ljust(_ENTRIES * _ENTRY_BYTES, b"\0")
    with image.open("r+b") as disk:
        disk.write(_protective_mbr(blocks))
        disk.seek(block_bytes)
        disk.write(_header(blocks, first_usable, zlib.crc32(entries)))
        disk.seek(2 * block_bytes)
        disk.write(entries)


def _protective_mbr(blocks: int) -> bytes:
    partition = struct.pack("<8BII", 0, 0, 2, 0, 0xEE, 0xFF, 0xFF, 0xFF, 1, blocks - 1)
    return bytes(446) + partition + bytes(48) + b"\x55\xaa"


def _header(blocks: int, first_usable: int, entries_crc: int) -> bytes:
    def packed(own_crc: int) -> bytes:
        return _HEADER.pack(
            b"EFI PART", 0x10000, _HEADER.size, own_crc, 0, 1, blocks - 1, first_usable, blocks - first_usable,
            _DISK.bytes_le, 2, _ENTRIES, _ENTRY_BYTES, entries_crc,
        )  # fmt: skip

    return packed(zlib.crc32(packed(0)))
