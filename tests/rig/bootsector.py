"""A disk that the firmware boots, whose whole program is to say a sentence on the first serial port.

It boots as fast as the firmware does, so it serves where a guest with a kernel would take minutes.
"""

from __future__ import annotations

from pathlib import Path

SAYS = "this is the boot sector"
SIZE = 512
_PROGRAM = bytes.fromhex(
    "fc"  # 7c00  cld
    "31c0"  # xor ax, ax
    "8ed8"  # mov ds, ax
    "be177c"  # mov si, 7c17h: the sentence
    "baf803"  # mov dx, 3f8h: the serial port
    "ac"  # 7c0b  lodsb
    "84c0"  # test al, al
    "7403"  # jz 7c13
    "ee"  # out dx, al
    "ebf8"  # jmp 7c0b
    "f4"  # 7c13  hlt
    "ebfd"  # jmp 7c13
    "90"
)


def fill(image: Path) -> None:
    """Make the raw image such a disk."""
    sector = (_PROGRAM + f"{SAYS}\r\n".encode() + b"\0").ljust(SIZE - 2, b"\0") + b"\x55\xaa"
    with image.open("r+b") as disk:
        disk.write(sector)
