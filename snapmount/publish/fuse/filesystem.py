"""Shows a tree of files as a read-only FUSE file system.

Handlers of a few lines that only translate between pyfuse3 and core.tree.  pyfuse3 allows one session a process, and
its loop must be ended by terminate(): cancelling it would drop replies.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import pyfuse3
import trio

from ...core.extents import ExtentMap, seek_data, seek_hole
from ...core.image import Direct, LocalFile, NbdSockets
from ...core.qcow2layout import Placement
from ...errors import StateError
from ...host import blocking
from ..tree import BLOCK_BYTES, ROOT_INODE, Tree, UnknownInodeError
from .extension import Extension, extension

log = logging.getLogger(__name__)

MOUNT_S = 30.0
STOP_S = 10.0
NEVER_S = 86400 * 365.0  # how long the kernel may keep names and attributes: they do not change
PAGE_BYTES = 4096
NAME_MAX = 255
READAHEAD_KIB = 512  # measured: more only drives what has been read out of the processor's cache

Handler = TypeVar("Handler", bound=Callable[..., Awaitable[Any]])


def _translated(handler: Handler) -> Handler:
    """Turn a handler's errors into errno: of an OSError its own, of anything unexpected EIO.

    An error other than FUSEError would end pyfuse3's loop, and the mount with it.
    """

    @functools.wraps(handler)
    async def wrapper(self: Operations, *args: Any) -> Any:
        try:
            with self.stoppable():
                return await handler(self, *args)
            raise pyfuse3.FUSEError(errno.EIO)
        except pyfuse3.FUSEError:
            raise
        except UnknownInodeError:
            raise pyfuse3.FUSEError(errno.ENOENT) from None
        except OSError as error:
            log.warning("%s%s: %s", handler.__name__, args, error)
            raise pyfuse3.FUSEError(error.errno or errno.EIO) from None
        except Exception:
            log.exception("%s%s", handler.__name__, args)
            raise pyfuse3.FUSEError(errno.EIO) from None

    return cast(Handler, wrapper)


class Operations(pyfuse3.Operations):
    """The handlers.  A file handle is the file's inode: there is nothing to keep for an open file."""

    supports_dot_lookup = True

    def __init__(self, tree: Tree) -> None:
        super().__init__()
        self._tree = tree
        self._running: set[trio.CancelScope] = set()
        self._stopping = False
        self._hastened: set[int] = set()
        self.opened: Callable[[int], None] = lambda inode: None  # told of each file that is opened

    def stop(self) -> None:
        """Let reads fail with EIO from now on, and all that waits, also what is under way: QEMU may be hung."""
        self._stopping = True
        if extension:
            extension.cut()
        for scope in self._running:
            scope.cancel()

    @contextlib.contextmanager
    def stoppable(self) -> Iterator[None]:
        """Once stop() has been called the block ends where it waits, and what follows it is reached."""
        with trio.CancelScope() as scope:
            if self._stopping:
                scope.cancel()
            self._running.add(scope)
            try:
                yield
            finally:
                self._running.discard(scope)

    async def _entry(self, inode: int) -> pyfuse3.EntryAttributes:
        attributes = await self._tree.attributes(inode)
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = attributes.inode
        entry.st_mode = attributes.mode
        entry.st_nlink = attributes.links
        entry.st_uid, entry.st_gid = self._tree.uid, self._tree.gid
        entry.st_size = attributes.size_bytes
        entry.st_blocks = attributes.allocated_bytes // BLOCK_BYTES
        entry.st_blksize = PAGE_BYTES
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = self._tree.mtime_ns
        entry.entry_timeout = entry.attr_timeout = NEVER_S if attributes.settled else 0
        return entry

    @_translated
    async def lookup(self, parent_inode: int, name: bytes, _context: Any) -> pyfuse3.EntryAttributes:
        if name in (b".", b".."):
            return await self._entry(ROOT_INODE)
        inode = self._tree.inode(os.fsdecode(name))
        if inode is None:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self._entry(inode)

    @_translated
    async def getattr(self, inode: int, _context: Any) -> pyfuse3.EntryAttributes:
        return await self._entry(inode)

    @_translated
    async def opendir(self, inode: int, _context: Any) -> int:
        return inode

    @_translated
    async def readdir(self, _handle: int, start: int, token: Any) -> None:
        for inode in self._tree.inodes()[start:]:
            file = self._tree.file(inode)
            place = inode - ROOT_INODE
            if file.is_listed and not pyfuse3.readdir_reply(
                token, os.fsencode(file.name), await self._entry(inode), place
            ):
                break

    @_translated
    async def open(self, inode: int, _flags: int, _context: Any) -> pyfuse3.FileInfo:
        self.opened(inode)
        # programs that copy a file believe its size once it is open: an unknown one, 0, would make an empty copy
        await self._tree.file(inode).content.size_bytes()
        attributes = await self._tree.attributes(inode)
        unsized = not attributes.settled and not attributes.size_bytes  # the kernel would read no further than its size
        return pyfuse3.FileInfo(fh=inode, keep_cache=not unsized, direct_io=unsized)

    async def hasten(self, inode: int) -> None:
        """Let reads of a file be answered past Python from now on, where that can be done."""
        if extension is None or self._stopping or inode in self._hastened:
            return
        self._hastened.add(inode)
        content = self._tree.file(inode).content
        try:
            with self.stoppable():
                extents, placement, direct = await content.extents(), await content.placement(), await content.direct()
                if extents.end:
                    _hasten(extension, inode, extents, placement, direct)
        except OSError as error:
            log.warning("%s is read the slow way: %s", self._tree.file(inode).name, error)

    @_translated
    async def read(  # type: ignore[override]  # pyfuse3 takes any contiguous buffer
        self, inode: int, offset: int, length: int
    ) -> bytes | bytearray | memoryview:
        if self._stopping:
            raise pyfuse3.FUSEError(errno.EIO)
        return await self._tree.read(inode, offset, length)

    @_translated
    async def seek(self, inode: int, offset: int, whence: int) -> int:
        """lseek(2) with SEEK_DATA or SEEK_HOLE; the kernel does the others itself."""
        find = {os.SEEK_DATA: seek_data, os.SEEK_HOLE: seek_hole}.get(whence)
        if find is None:
            raise pyfuse3.FUSEError(errno.EINVAL)
        found = find(await self._tree.extents(inode), offset)
        if found is None:
            raise pyfuse3.FUSEError(errno.ENXIO)
        return found

    @_translated
    async def release(self, _handle: int) -> None:
        pass

    @_translated
    async def releasedir(self, _handle: int) -> None:
        pass

    @_translated
    async def statfs(self, _context: Any) -> pyfuse3.StatvfsData:
        """No blocks and no inodes, as pseudo file systems tell: a full one would alarm whoever watches the host."""
        status = pyfuse3.StatvfsData()
        status.f_bsize = status.f_frsize = PAGE_BYTES
        status.f_namemax = NAME_MAX
        return status


def _hasten(
    extension: Extension, inode: int, extents: ExtentMap, placement: Placement | None, direct: Direct | None
) -> None:
    """Raises OSError if there are too many disks."""
    starts, flags = extents.arrays()
    placed = (placement.start, placement.cluster_bytes, *placement.clusters.arrays()) if placement else None
    match direct:
        case NbdSockets(sockets, deadline_s):
            extension.add_disk(inode, extents.end, starts, flags, placed, sockets, deadline_s)
        case LocalFile(descriptor, file_bytes, deadline_s, when_closed):
            extension.add_file(inode, extents.end, starts, flags, placed, descriptor, file_bytes, deadline_s)
            when_closed(partial(extension.drop, inode))


class View:
    """A mounted tree."""

    def __init__(self, tree: Tree, operations: Operations) -> None:
        self._tree = tree
        self._operations = operations
        self._ended = trio.Event()

    async def wait_unmounted(self) -> None:
        """Return when somebody has unmounted the view, or its loop has ended otherwise."""
        await self._ended.wait()

    async def forget_cached(self) -> None:
        """Make the kernel drop what it keeps of the files, so that every further read asks us."""
        for inode in self._tree.inodes():
            with contextlib.suppress(OSError):  # ENOENT: it keeps nothing
                await blocking.call(STOP_S, pyfuse3.invalidate_inode, inode)

    async def _serve(self) -> None:
        """The loop, never cancelled: stop() ends it."""
        try:
            with trio.CancelScope(shield=True):
                async with trio.open_nursery() as nursery:
                    if extension:
                        extension.set_seek_handler(lambda *seek: nursery.start_soon(self._answer_seek, *seek))
                    self._operations.opened = lambda inode: nursery.start_soon(self._operations.hasten, inode)
                    await pyfuse3.main()
                    nursery.cancel_scope.cancel()
        except Exception:
            log.exception("the FUSE loop has failed")
        finally:
            self._ended.set()

    async def _answer_seek(self, request: object, inode: int, offset: int, whence: int) -> None:
        assert extension
        try:
            extension.reply_seek(request, await self._operations.seek(inode, offset, whence), 0)
        except pyfuse3.FUSEError as error:
            extension.reply_seek(request, 0, error.errno)

    async def _stop(self) -> None:
        """End the loop when the requests under way have been answered."""
        self._operations.stop()
        if not self._ended.is_set():
            pyfuse3.terminate()
        with trio.move_on_after(STOP_S, shield=True) as scope:
            await self._ended.wait()
        if scope.cancelled_caught:
            log.error("the FUSE loop has not ended within %g s", STOP_S)


@contextlib.asynccontextmanager
async def mounted(tree: Tree, mountpoint: str, source: str) -> AsyncIterator[View]:
    """Mount the tree, with `source` as what mount(8) shows for it, and serve it until the block is left.

    As root, the mount admits other users (allow_other), since QEMU's user must be able to read it, and the files belong
    to that user; an ordinary user's does where the tree is open to all.  The kernel checks the files' modes
    (default_permissions).  Raises StateError if the mount fails.
    """
    if not extension:
        log.warning("the C extension was not built: programs take holes for data, and reads are slow")
    operations = Operations(tree)
    await _mount(operations, mountpoint, _options(source, tree.is_open))
    view = View(tree, operations)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(view._serve)
            try:
                await _answers(mountpoint)
                log.info("mounted %s at %s", ", ".join(file.name for file in tree.files), mountpoint)
                yield view
            finally:
                await view._stop()
                nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(_close)


def _close() -> None:
    if extension:
        extension.stop()
    pyfuse3.close()


def _options(source: str, is_open: bool) -> set[str]:
    options = set(pyfuse3.default_options) | {
        "ro",
        "nosuid",
        "nodev",
        "noexec",
        f"fsname={source}",
        "subtype=snapmount",
    }
    if is_open or os.geteuid() == 0:
        options.add("allow_other")
    return options


async def _mount(operations: Operations, mountpoint: str, options: set[str]) -> None:
    said: list[str] = []
    try:
        with _standard_error_into(said):
            await trio.to_thread.run_sync(pyfuse3.init, operations, mountpoint, options)
    except RuntimeError as error:
        reason = said[-1] if said else str(error)
        raise StateError(f"{mountpoint} cannot be mounted: {reason}") from error


@contextlib.contextmanager
def _standard_error_into(lines: list[str]) -> Iterator[None]:
    """Catch what libfuse and fusermount3 say: the reason of a failed mount is told to file descriptor 2 alone."""
    with tempfile.TemporaryFile() as caught:
        original = os.dup(2)
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(original, 2)
            os.close(original)
            caught.seek(0)
            lines += caught.read().decode(errors="replace").splitlines()


async def _answers(mountpoint: str) -> None:
    """Return when the mount answers.  Raises StateError."""
    try:
        status = await blocking.call(MOUNT_S, os.stat, mountpoint)
    except (OSError, trio.TooSlowError) as error:
        raise StateError(f"the mount at {mountpoint} does not answer: {error}") from error
    _widen_readahead(status.st_dev)


def _widen_readahead(device: int) -> None:
    """Let the kernel read further ahead of sequential readers than its 128 KiB, where we may (as root)."""
    window = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    with contextlib.suppress(OSError):
        window.write_text(str(READAHEAD_KIB))
