"""A raw image is read as QEMU shows it to a guest, whatever its size and holes; else it is EIO, never other bytes."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from snapmount.errors import StateError
from snapmount.images import raw
from snapmount.images.raw import FileImage

from ..rig import vm

KIB = 1 << 10
DEADLINE_S = 5.0


def make(path: Path, size: int, *data: tuple[int, int]) -> Path:
    """A file of that size with random data from one place to another, and holes."""
    generator = random.Random(size)
    with path.open("wb") as f:
        f.truncate(size)
        for start, end in data:
            f.seek(start)
            f.write(generator.randbytes(end - start))
    return path


def as_qemu_shows(path: Path) -> bytes:
    copy = path.with_name("copy")
    subprocess.run(["qemu-img", "convert", "-U", "-f", "raw", "-O", "raw", path, copy], check=True)
    return copy.read_bytes()


def qemu_writes(path: Path) -> bool:
    """Whether a QEMU can."""
    return subprocess.run(["qemu-io", "-f", "raw", "-c", "write 0 512", path], capture_output=True).returncode == 0


async def read_all(image: FileImage) -> bytes:
    return b"".join(
        [
            bytes(await image.read(offset, min(96 * KIB, image.size_bytes - offset)))
            for offset in range(0, image.size_bytes, 96 * KIB)
        ]
    )


@contextlib.contextmanager
def fails_with_eio(match: str = "") -> Iterator[None]:
    with pytest.raises(OSError, match=match) as caught:
        yield
    assert caught.value.errno == errno.EIO


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 4096, 300 * KIB, 300 * KIB + 1, 1_000_001])
async def test_every_byte_is_as_qemu_shows_it(tmp_path: Path, size: int) -> None:
    path = make(tmp_path / "vda", size, (size // 2, size), (0, min(size, 10)))
    async with raw.opened("vda", str(path), DEADLINE_S) as image:
        assert await read_all(image) == as_qemu_shows(path)


async def test_holes_are_known_and_what_is_not_a_hole_is_data(tmp_path: Path) -> None:
    data = [(64 * KIB, 128 * KIB), (256 * KIB, 260 * KIB)]
    path = make(tmp_path / "vda", 512 * KIB + 100, *data)
    async with raw.opened("vda", str(path), DEADLINE_S) as image:
        extents = await image.extents()
        assert [(each.start, each.end) for each in extents if not each.is_zero] == data
        assert extents.end == image.size_bytes == 512 * KIB + 512
        assert await image.allocated_bytes() == 68 * KIB


async def test_the_extents_of_a_fragmented_image_are_found_in_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raw, "STEP_EXTENTS", 2)
    data = [(start, start + 4 * KIB) for start in range(64 * KIB, 1024 * KIB, 64 * KIB)]
    path = make(tmp_path / "vda", 1024 * KIB + 4 * KIB, *data, (1024 * KIB, 1028 * KIB))
    async with raw.opened("vda", str(path), DEADLINE_S) as image:
        found = [(each.start, each.end) for each in await image.extents() if not each.is_zero]
    assert found == [*data, (1024 * KIB, 1028 * KIB)]


@pytest.mark.vm
async def test_a_block_device_is_read_and_is_all_data(tmp_path: Path) -> None:
    path = make(tmp_path / "vda", 256 * KIB, (100 * KIB, 200 * KIB))
    with contextlib.ExitStack() as stack:
        device = vm.loop_device(path, stack)
        async with raw.opened("vda", str(device), DEADLINE_S) as image:
            assert await read_all(image) == path.read_bytes()
            assert await image.allocated_bytes() == image.size_bytes == 256 * KIB


async def test_an_image_that_has_become_shorter_is_an_error_and_no_zeros(tmp_path: Path) -> None:
    path = make(tmp_path / "vda", 64 * KIB, (0, 64 * KIB))
    async with raw.opened("vda", str(path), DEADLINE_S) as image:
        os.truncate(path, 32 * KIB)
        with fails_with_eio("has become shorter"):
            await image.read(16 * KIB, 32 * KIB)
        assert len(await image.read(0, 32 * KIB)) == 32 * KIB


async def test_once_it_is_closed_reads_fail(tmp_path: Path) -> None:
    path = make(tmp_path / "vda", 64 * KIB)
    async with raw.opened("vda", str(path), DEADLINE_S) as image:
        image.close()
        for read in (lambda: image.read(0, 512), image.extents, image.direct):
            with fails_with_eio("the snapshot has ended"):
                await read()
        image.close()


async def test_a_read_under_way_when_it_is_closed_fails_and_its_descriptor_outlives_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(tmp_path / "vda", 64 * KIB)
    began, go_on = threading.Event(), threading.Event()
    pread = os.pread
    seen: list[bytes] = []

    def slow(descriptor: int, length: int, offset: int) -> bytes:
        began.set()
        assert go_on.wait(10)
        seen.append(pread(descriptor, length, offset))
        return seen[-1]

    monkeypatch.setattr(os, "pread", slow)

    async def read(image: FileImage) -> None:
        with fails_with_eio("the snapshot has ended"):
            await image.read(0, 512)

    async with trio.open_nursery() as nursery, raw.opened("vda", str(path), DEADLINE_S) as image:
        nursery.start_soon(read, image)
        await trio.to_thread.run_sync(began.wait)
        image.close()
        assert await trio.to_thread.run_sync(qemu_writes, path), "its lock is dropped at once"
        go_on.set()
    assert [len(each) for each in seen] == [512]


async def test_a_read_that_takes_too_long_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path / "vda", 64 * KIB)
    go_on = threading.Event()
    monkeypatch.setattr(os, "pread", lambda *_: bytes(go_on.wait(10)))
    async with raw.opened("vda", str(path), 0.05) as image:
        with fails_with_eio("did not answer within"):
            await image.read(0, 512)
        go_on.set()


async def test_while_it_is_open_no_qemu_can_write_to_it(tmp_path: Path) -> None:
    path = make(tmp_path / "vda", 64 * KIB)
    async with raw.opened("vda", str(path), DEADLINE_S):
        assert not await trio.to_thread.run_sync(qemu_writes, path)
    assert await trio.to_thread.run_sync(qemu_writes, path)


async def test_an_image_that_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="neither a file nor a block device"):
        async with raw.opened("vda", str(tmp_path), DEADLINE_S):
            pass
