"""The variables of a VM's firmware (NVRAM): the copy of them that a snapshot keeps in its runtime directory.

QEMU writes each change through to the file it keeps them in, and no backup job is for that.  So it is copied as soon as
the job has begun: a change that the guest makes in the moment between is in the copy.  That it cannot be copied is no
reason to fail: the disks are what the snapshot is for.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from dataclasses import replace

from ..core import domainxml, units
from ..core.domainxml import NvramDefinition
from ..core.leftout import LeftOut
from ..core.snapshot import Nvram
from ..errors import SnapmountError, StateError
from ..host import blocking
from ..records.store import Lease

log = logging.getLogger(__name__)

MOST_BYTES = 80 * units.MIB  # a flash chip of QEMU's machines has 64 MiB at most, to which qcow2 adds a little
COPY_S = 10.0
TRIES = 20


async def keep(domain_xml: str, lease: Lease) -> None:
    """Copy the variables of the running VM, if its firmware keeps any, and note in the record that they are there, or
    why they are left out.  Raises StateError if the record cannot be written.
    """
    definition = domainxml.nvram(domain_xml)
    if definition is None:
        return
    snapshot = lease.record.snapshot
    try:
        size = await _copy(definition, lease)
    except SnapmountError as error:
        log.warning("the firmware's variables are left out: %s", error.message)
        left_out = (*snapshot.left_out, LeftOut("nvram", error.message))
        lease.update(snapshot=replace(snapshot, left_out=left_out))
    else:
        lease.update(snapshot=replace(snapshot, nvram=Nvram(size, definition.format, definition.origin)))


async def kept(lease: Lease) -> bytes | None:
    """The copy of a snapshot that has one.  Raises StateError."""
    if lease.record.snapshot.nvram is None:
        return None
    return await blocking.on_path(lease.directory, COPY_S, lease.store.nvram, lease.record.id)


async def _copy(definition: NvramDefinition, lease: Lease) -> int:
    """Copy them; return how many bytes they are.  Raises StateError, whose message is why they cannot be copied."""
    if definition.kind != "file":
        raise StateError(f"not in a file, but of type {definition.kind}")
    if not os.path.isabs(definition.origin):
        raise StateError("libvirt does not tell where they are")
    content = await blocking.on_path(definition.origin, COPY_S, _settled, definition.origin)
    await blocking.on_path(lease.directory, COPY_S, lease.write_nvram, content, done="written")
    log.info("copied the firmware's variables from %s", definition.origin)
    return len(content)


def _settled(path: str) -> bytes:
    """The content of the file, at one moment: two reads that follow each other have found the same.

    QEMU may write while we read.  Raises OSError for what cannot be read, or is no file of variables.
    """
    before = _read(path)
    for _ in range(TRIES):
        after = _read(path)
        if after == before:
            return after
        before = after
    raise OSError(errno.EBUSY, "it changes all the time")


def _read(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # whatever it is: a FIFO would block
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        if status.st_size > MOST_BYTES:
            raise OSError(errno.EFBIG, f"it has more than {units.size(MOST_BYTES)}")
        with os.fdopen(descriptor, "rb", closefd=False) as f:
            return f.read(status.st_size)
    finally:
        os.close(descriptor)
