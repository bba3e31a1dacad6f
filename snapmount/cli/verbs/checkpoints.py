"""`snapmount checkpoints`: the moments of a VM since which it is known what its disks have changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ... import hypervisor
from ...core import uris
from ...core.checkpoint import Checkpoint
from ...host import interruptible
from ...lifecycle import checkpoints, keeping
from ...lifecycle.checkpoints import Vm
from .. import output, points

if TYPE_CHECKING:
    import argparse


def run(arguments: argparse.Namespace) -> int:
    uri = arguments.connect or hypervisor.default_uri()
    uris.check(uri)
    vm, deleted, left, is_unwatched = interruptible.run(_done, arguments, uri)
    if is_unwatched:
        output.tell(points.UNWATCHED)
    output.print_either(
        arguments.json,
        lambda: points.document(vm, left, deleted, is_unwatched=is_unwatched),
        lambda: points.text(vm, left, deleted),
    )
    return 0


async def _done(arguments: argparse.Namespace, uri: str) -> tuple[Vm, list[Checkpoint], list[Checkpoint], bool]:
    """The VM, what has been removed, what is there then, and whether nobody watches that though somebody should."""
    vm = await checkpoints.vm_of(arguments.vm, uri)
    deleted = await checkpoints.delete(vm, arguments.delete)
    if arguments.keep is not None:
        deleted += await checkpoints.keep(vm.uuid, arguments.keep)
    return vm, deleted, await checkpoints.of_vm(vm.uuid), await keeping.is_unwatched(vm.uuid)
