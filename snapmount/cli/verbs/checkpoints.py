"""`snapmount checkpoints`: the moments of a VM since which it is known what its disks have changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ... import hypervisor
from ...core import uris
from ...core.checkpoint import Checkpoint
from ...host import interruptible
from ...lifecycle import checkpoints
from ...lifecycle.checkpoints import Vm
from .. import output, points

if TYPE_CHECKING:
    import argparse


def run(arguments: argparse.Namespace) -> int:
    uri = arguments.connect or hypervisor.default_uri()
    uris.check(uri)
    vm, deleted, left = interruptible.run(_done, arguments, uri)
    output.print_either(
        arguments.json,
        lambda: points.document(vm, left, deleted),
        lambda: points.text(vm, left, deleted),
    )
    return 0


async def _done(arguments: argparse.Namespace, uri: str) -> tuple[Vm, list[Checkpoint], list[Checkpoint]]:
    """The VM, what has been removed, and what is there then."""
    vm = await checkpoints.vm_of(arguments.vm, uri)
    deleted = await checkpoints.delete(vm, arguments.delete)
    if arguments.keep is not None:
        deleted += await checkpoints.keep(vm.uuid, arguments.keep)
    return vm, deleted, await checkpoints.of_vm(vm.uuid)
