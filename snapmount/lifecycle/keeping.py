"""Whether somebody keeps watch of the checkpoints of a VM that cost its guest something, and how that is begun.

keeper.py is the process that does.  Its proof of life is its flock(2) on the directory of the VM's checkpoints.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from ..core.checkpoint import Checkpoint
from ..errors import SnapmountError
from ..records import checkpoints
from ..sources import registry

log = logging.getLogger(__name__)

MODULE = "snapmount.lifecycle.keeper"
LOOK_S = 30.0
START_S = 10.0
HAS_SYSTEMD = Path("/run/systemd/system").exists()  # sd_booted(3)
END_S, POLL_S = 3.0, 0.05


async def costly(vm_uuid: str) -> list[Checkpoint]:
    """Those that somebody must watch, oldest first.  Raises LeftoverError."""
    found = await checkpoints.on_disk(checkpoints.readable, vm_uuid)
    return [each for each in found if _costs(each)]


def _costs(checkpoint: Checkpoint) -> bool:
    """Not one of a kind that this version does not know."""
    source = registry.SOURCES.get(checkpoint.source.get("kind", ""))
    return source is not None and source.CHECKPOINTS_COST


async def is_unwatched(vm_uuid: str) -> bool:
    """Whether somebody should watch them, and nobody does.  Raises LeftoverError."""
    return bool(await costly(vm_uuid)) and not await checkpoints.on_disk(checkpoints.are_watched, vm_uuid)


@asynccontextmanager
async def ending(vm_uuid: str) -> AsyncIterator[None]:
    """If the last one goes in the block, who watches over them has ended with it, or will soon.  Raises
    LeftoverError.
    """
    descriptor = await checkpoints.on_disk(checkpoints.opened, vm_uuid)
    try:
        yield
        if descriptor is not None and not await costly(vm_uuid):
            with trio.move_on_after(END_S):
                while checkpoints.is_locked(descriptor):
                    await trio.sleep(POLL_S)
    finally:
        if descriptor is not None:
            os.close(descriptor)


async def begin(vm_uuid: str) -> None:
    """See that somebody watches them, if there are any; what keeps that from being is logged."""
    try:
        if await is_unwatched(vm_uuid):
            await _start([sys.executable, "-m", MODULE, vm_uuid])
    except (SnapmountError, OSError, subprocess.CalledProcessError, trio.TooSlowError) as error:
        log.warning("nobody watches the space that the checkpoints of %s take: %s", vm_uuid, error)


async def _start(command: Sequence[str]) -> None:
    """Start it as nobody's child, and where systemd runs, as a unit of its own: else it would end with that of a
    snapshot that is supervised.  Raises OSError, CalledProcessError, TooSlowError.
    """
    if HAS_SYSTEMD and os.geteuid() == 0:
        try:
            await _run(["systemd-run", "--quiet", "--collect", "--no-block", *command])
        except (OSError, subprocess.CalledProcessError, trio.TooSlowError) as error:
            log.warning("systemd does not start it: %s", error)
        else:
            return
    await _run(["setsid", "--fork", *command])


async def _run(command: Sequence[str]) -> None:
    with trio.fail_after(START_S):
        null = subprocess.DEVNULL
        await trio.run_process(list(command), stdin=null, stdout=null, stderr=null, cwd="/")
