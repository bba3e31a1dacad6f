"""The FUSE handlers, called as pyfuse3 calls them, without a mount: they translate, and no error passes them by."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, cast

import pyfuse3
import pytest
import trio
from pyfuse3 import FileHandleT, FUSEError, InodeT
from trio.testing import wait_all_tasks_blocked

from snapmount.core.changes import Changes, everything
from snapmount.core.extents import HOLE, ZERO, ExtentMap
from snapmount.publish.fuse.filesystem import Operations
from snapmount.publish.qcow2 import Qcow2Image
from snapmount.publish.tree import Constant, Content, File, MapText, RawImage, Tree

DISK = bytes(range(256)) * 64
DATA = 4096  # bytes at its start; a hole follows
CREATED_NS = 1795435501_000_123_000
ROOT = pyfuse3.ROOT_INODE
VDA, XML, UNKNOWN = InodeT(2), InodeT(3), InodeT(4)
CONTEXT = cast(pyfuse3.RequestContext, None)  # who asks: the kernel has checked the modes


class ADisk:
    """A disk that does at a read what the test says, and else gives its bytes."""

    name = "vda"
    size_bytes = len(DISK)

    def __init__(self, first: Callable[[], Awaitable[None]] | None = None) -> None:
        self._first = first

    async def allocated_bytes(self) -> int | None:
        return (await self.extents()).data_bytes

    async def dirty(self, start: int) -> Changes:
        return everything(await self.extents(), start)

    async def direct(self) -> None:
        return None

    async def read(self, offset: int, length: int) -> bytes:
        if self._first:
            await self._first()
        return DISK[offset : offset + length]

    async def extents(self) -> ExtentMap:
        extents = ExtentMap()
        extents.append_status([DATA, 0, len(DISK) - DATA, HOLE | ZERO])
        return extents


def raises(error: Exception) -> Callable[[], Awaitable[None]]:
    async def fail() -> None:
        raise error

    return fail


def operations(disk: ADisk | None = None) -> Operations:
    files = [File("vda.raw", RawImage(disk or ADisk())), File("domain.xml", Constant(b"<domain/>"))]
    return Operations(Tree(files, CREATED_NS, uid=1000, gid=1001))


@contextlib.contextmanager
def fails_with(number: int) -> Iterator[None]:
    with pytest.raises(FUSEError) as caught:
        yield
    assert errno.errorcode[caught.value.errno] == errno.errorcode[number]


async def read(handlers: Operations, inode: int, offset: int, length: int) -> bytes:
    """As read(2) does: open, read, close."""
    opened = await handlers.open(InodeT(inode), os.O_RDONLY, CONTEXT)
    try:
        return bytes(await handlers.read(opened.fh, offset, length))
    finally:
        await handlers.release(opened.fh)


# -- what is there -----------------------------------------------------------------------------------------------------


async def test_files_are_looked_up_by_name() -> None:
    handlers = operations()
    assert (await handlers.lookup(ROOT, b"vda.raw", CONTEXT)).st_ino == VDA
    assert (await handlers.lookup(ROOT, b"domain.xml", CONTEXT)).st_ino == XML
    for name in (b".", b".."):
        assert (await handlers.lookup(ROOT, name, CONTEXT)).st_ino == ROOT


@pytest.mark.parametrize("name", [b"vdb.raw", b"VDA.RAW", b"", b"vda.raw/", b"\xff\xfe", b"..."])
async def test_a_name_that_is_not_there_is_enoent(name: bytes) -> None:
    with fails_with(errno.ENOENT):
        await operations().lookup(ROOT, name, CONTEXT)


async def test_the_attributes_are_those_of_the_snapshot() -> None:
    entry = await operations().getattr(VDA, CONTEXT)
    assert entry.st_ino == VDA
    assert entry.st_mode == stat.S_IFREG | 0o400
    assert entry.st_nlink == 1
    assert (entry.st_uid, entry.st_gid) == (1000, 1001)
    assert entry.st_size == len(DISK)
    assert entry.st_blocks == DATA // 512, "its data alone"
    assert entry.st_mtime_ns == entry.st_ctime_ns == entry.st_atime_ns == CREATED_NS


async def test_the_root_is_a_directory_that_only_its_owner_may_enter() -> None:
    entry = await operations().getattr(ROOT, CONTEXT)
    assert entry.st_mode == stat.S_IFDIR | 0o500
    assert entry.st_nlink == 2
    assert await operations().opendir(ROOT, CONTEXT) == ROOT


async def test_looking_up_tells_the_same_as_asking_for_the_attributes() -> None:
    handlers = operations()
    for name, inode in ((b"vda.raw", VDA), (b"domain.xml", XML), (b".", ROOT)):
        found, asked = await handlers.lookup(ROOT, name, CONTEXT), await handlers.getattr(inode, CONTEXT)
        for attribute in ("st_ino", "st_mode", "st_size", "st_blocks", "st_mtime_ns", "st_uid", "attr_timeout"):
            assert getattr(found, attribute) == getattr(asked, attribute), attribute


async def test_the_kernel_may_keep_what_never_changes() -> None:
    handlers = operations()
    entry = await handlers.lookup(ROOT, b"vda.raw", CONTEXT)
    assert min(entry.entry_timeout, entry.attr_timeout) > 86400
    assert (await handlers.open(VDA, os.O_RDONLY, CONTEXT)).keep_cache


async def test_a_file_that_is_not_listed_can_be_opened_by_its_name_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [File(".vda.lun", RawImage(ADisk()), is_listed=False), File("vda.raw", RawImage(ADisk()))]
    handlers = Operations(Tree(files, CREATED_NS, 0, 0))
    listed: list[bytes] = []

    def note(_token: object, name: bytes, _entry: object, _next: int) -> bool:
        listed.append(name)
        return True

    monkeypatch.setattr(pyfuse3, "readdir_reply", note)
    await handlers.readdir(ROOT, 0, cast(pyfuse3.ReaddirToken, None))
    assert listed == [b"vda.raw"]
    assert (await handlers.lookup(ROOT, b".vda.lun", CONTEXT)).st_size == len(DISK)


class AVeryLargeDisk(ADisk):
    """Its extents are not known yet."""

    async def allocated_bytes(self) -> None:
        return None


async def test_what_is_not_known_yet_is_asked_for_again() -> None:
    disk = AVeryLargeDisk()
    handlers = Operations(Tree([File("vda.raw", RawImage(disk)), File("vda.map", MapText(disk))], CREATED_NS, 0, 0))
    raw, text = [await handlers.getattr(inode, CONTEXT) for inode in (VDA, XML)]
    assert (raw.st_size, raw.st_blocks) == (len(DISK), len(DISK) // 512), "no hole is known"
    assert text.st_size == 0
    for entry in (raw, text):
        assert entry.entry_timeout == entry.attr_timeout == 0
    assert (await handlers.open(VDA, os.O_RDONLY, CONTEXT)).keep_cache
    assert (await handlers.open(XML, os.O_RDONLY, CONTEXT)).direct_io, "or else it would be read as empty"
    assert (await read(handlers, XML, 0, 4096)).startswith(b"[{")


async def test_an_inode_that_is_not_there_is_enoent() -> None:
    handlers = operations()
    with fails_with(errno.ENOENT):
        await handlers.getattr(UNKNOWN, CONTEXT)
    for inode in (UNKNOWN, ROOT):
        with fails_with(errno.ENOENT):
            await handlers.read(FileHandleT(inode), 0, 1)


async def test_the_file_system_has_no_size_as_that_of_proc() -> None:
    told, proc = await operations().statfs(CONTEXT), os.statvfs("/proc")
    for field in (
        "f_blocks",
        "f_bfree",
        "f_bavail",
        "f_files",
        "f_ffree",
        "f_favail",
        "f_bsize",
        "f_frsize",
        "f_namemax",
    ):
        assert getattr(told, field) == getattr(proc, field), field


class ALostDisk(ADisk):
    """Its point in time was lost before anybody looked at it."""

    async def extents(self) -> ExtentMap:
        raise OSError(errno.EIO, "lost")

    async def read(self, offset: int, length: int) -> bytes:
        raise OSError(errno.EIO, "lost")


async def test_a_file_that_cannot_be_read_keeps_no_directory_from_being_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = ALostDisk()
    files = [
        File("vda.raw", RawImage(disk)),
        File("vda.map", MapText(disk)),
        File("domain.xml", Constant(b"<domain/>")),
    ]
    handlers = Operations(Tree(files, CREATED_NS, 0, 0))
    listed: dict[bytes, pyfuse3.EntryAttributes] = {}

    def note(_token: object, name: bytes, entry: pyfuse3.EntryAttributes, _next: int) -> bool:
        listed[name] = entry
        return True

    monkeypatch.setattr(pyfuse3, "readdir_reply", note)
    await handlers.readdir(ROOT, 0, cast(pyfuse3.ReaddirToken, None))
    assert {name: entry.st_size for name, entry in listed.items()} == {
        b"vda.raw": len(DISK),
        b"vda.map": 0,
        b"domain.xml": len(b"<domain/>"),
    }
    for name, entry in listed.items():
        assert (await handlers.lookup(ROOT, name, CONTEXT)).st_size == entry.st_size
        assert (entry.attr_timeout == 0) == (name != b"domain.xml"), "it is asked for again"


async def test_a_map_that_cannot_be_had_is_not_opened_as_an_empty_file() -> None:
    handlers = Operations(Tree([File("vda.map", MapText(ALostDisk()))], CREATED_NS, 0, 0))
    with fails_with(errno.EIO):
        await handlers.open(VDA, os.O_RDONLY, CONTEXT)


class ASlowDisk(ADisk):
    """Its extents take long: nobody who asks for attributes waits for them."""

    def __init__(self) -> None:
        super().__init__()
        self.known = trio.Event()

    async def allocated_bytes(self) -> int | None:
        return (await self.extents()).data_bytes if self.known.is_set() else None

    async def extents(self) -> ExtentMap:
        await self.known.wait()
        return await super().extents()


@pytest.mark.parametrize("kind", [MapText, lambda disk: Qcow2Image(disk, 65536)], ids=["map", "qcow2"])
async def test_what_rests_on_the_extents_has_its_true_size_once_it_is_open(kind: Callable[[ADisk], Content]) -> None:
    disk = ASlowDisk()
    handlers = Operations(Tree([File("vda", kind(disk))], CREATED_NS, 0, 0))
    opened: list[pyfuse3.FileInfo] = []

    async def open_it() -> None:
        opened.append(await handlers.open(VDA, os.O_RDONLY, CONTEXT))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(open_it)
        await wait_all_tasks_blocked()
        assert opened == []
        assert (await handlers.getattr(VDA, CONTEXT)).st_size == 0, "meanwhile"
        disk.known.set()
    entry = await handlers.getattr(VDA, CONTEXT)
    assert entry.st_size == len(await handlers.read(opened[0].fh, 0, 10**6)) > 0


# -- reading -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 65536), (0, 1), (100, 300), (16000, 4096), (16384, 1), (1 << 40, 4096)]
)
async def test_a_read_gives_the_bytes_of_that_place(offset: int, length: int) -> None:
    handlers = operations()
    for _ in range(2):
        assert await read(handlers, VDA, offset, length) == DISK[offset : offset + length]
    assert await read(handlers, XML, offset, length) == b"<domain/>"[offset : offset + length]


async def test_reads_at_the_same_time_do_not_wait_for_each_other() -> None:
    both_are_there = trio.Event()
    waiting = 0

    async def meet() -> None:
        nonlocal waiting
        waiting += 1
        if waiting == 2:
            both_are_there.set()
        await both_are_there.wait()

    handlers = operations(ADisk(meet))
    found: list[bytes] = []

    async def read_at(offset: int) -> None:
        found.append(await read(handlers, VDA, offset, 16))

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_at, 0)
            nursery.start_soon(read_at, 16)
    assert sorted(found) == [DISK[:16], DISK[16:32]]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.ETIMEDOUT])
async def test_an_oserror_of_the_image_becomes_its_errno_and_is_logged(
    number: int, caplog: pytest.LogCaptureFixture
) -> None:
    handlers = operations(ADisk(raises(OSError(number, "no answer from QEMU"))))
    with fails_with(number):
        await handlers.read(FileHandleT(VDA), 0, 512)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "no answer from QEMU" in record.getMessage()
    assert record.exc_info is None


async def test_an_oserror_without_a_number_becomes_eio() -> None:
    with fails_with(errno.EIO):
        await operations(ADisk(raises(OSError("no number")))).read(FileHandleT(VDA), 0, 512)


@pytest.mark.parametrize("error", [RuntimeError("a bug"), ValueError("a bug"), AssertionError("a bug")], ids=repr)
async def test_an_unexpected_error_becomes_eio_and_is_logged_with_its_traceback(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    with fails_with(errno.EIO):
        await operations(ADisk(raises(error))).read(FileHandleT(VDA), 0, 512)
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert record.exc_info[1] is error


async def test_a_read_that_fails_fails_alone() -> None:
    errors: list[Exception] = [OSError(errno.EIO, "once")]

    async def fail_once() -> None:
        if errors:
            raise errors.pop()

    handlers = operations(ADisk(fail_once))
    with fails_with(errno.EIO):
        await handlers.read(FileHandleT(VDA), 0, 512)
    assert await read(handlers, VDA, 0, 512) == DISK[:512]


# -- the end -----------------------------------------------------------------------------------------------------------


async def test_stopping_fails_the_reads_under_way_and_all_later_ones() -> None:
    handlers = operations(ADisk(trio.sleep_forever))
    failed: list[int] = []

    async def read_and_fail() -> None:
        with fails_with(errno.EIO):
            await handlers.read(FileHandleT(VDA), 0, 512)
        failed.append(1)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(read_and_fail)
            await wait_all_tasks_blocked()
            assert failed == []
            handlers.stop()
        assert len(failed) == 3
        for inode in (VDA, XML):
            with fails_with(errno.EIO):
                await handlers.read(FileHandleT(inode), 0, 512)


async def test_stopping_twice_or_with_no_read_under_way_is_fine() -> None:
    handlers = operations()
    assert await read(handlers, VDA, 0, 512) == DISK[:512]
    handlers.stop()
    handlers.stop()
    with fails_with(errno.EIO):
        await handlers.read(FileHandleT(VDA), 0, 512)


async def test_what_is_known_can_still_be_asked_for_after_the_stop() -> None:
    handlers = operations()
    handlers.stop()
    assert (await handlers.lookup(ROOT, b"vda.raw", CONTEXT)).st_size == len(DISK)


async def test_a_read_that_is_cancelled_from_outside_is_not_taken_for_an_error() -> None:
    handlers = operations(ADisk(trio.sleep_forever))
    returned: list[Any] = []

    async def read_it() -> None:
        returned.append(await handlers.read(FileHandleT(VDA), 0, 512))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_it)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert nursery.cancel_scope.cancelled_caught
    assert returned == []


# -- holes -------------------------------------------------------------------------------------------------------------


async def test_seek_finds_data_and_holes_and_the_hole_at_the_end_of_every_file() -> None:
    handlers = operations()
    assert await handlers.seek(VDA, 0, os.SEEK_DATA) == 0
    assert await handlers.seek(VDA, 100, os.SEEK_DATA) == 100
    assert await handlers.seek(VDA, 100, os.SEEK_HOLE) == DATA
    assert await handlers.seek(VDA, DATA + 100, os.SEEK_HOLE) == DATA + 100
    assert await handlers.seek(XML, 0, os.SEEK_HOLE) == len(b"<domain/>")


async def test_seek_tells_enxio_where_there_is_nothing_more() -> None:
    handlers = operations()
    for offset, whence in ((DATA + 100, os.SEEK_DATA), (len(DISK), os.SEEK_DATA), (len(DISK), os.SEEK_HOLE)):
        with fails_with(errno.ENXIO):
            await handlers.seek(VDA, offset, whence)
    with fails_with(errno.EINVAL):
        await handlers.seek(VDA, 0, os.SEEK_SET)
    with fails_with(errno.ENOENT):
        await handlers.seek(UNKNOWN, 0, os.SEEK_DATA)


async def test_a_keyerror_of_an_image_is_a_bug_and_not_a_missing_file(caplog: pytest.LogCaptureFixture) -> None:
    with fails_with(errno.EIO):
        await operations(ADisk(raises(KeyError("a bug")))).read(FileHandleT(VDA), 0, 512)
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
