"""VMs out of the ordinary, on real libvirt: they have snapshots as others have, and scratch VMs that start."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from snapmount import hypervisor
from snapmount.boot import definition
from snapmount.boot.definition import TCG
from snapmount.core.user import User

from ..boot.test_definition import MODULES, NODES, WISH
from ..rig import luks, traces, vm
from ..rig.command import read_direct, snapmount, snapmount_json
from ..rig.libvirtd import wait_for

pytestmark = pytest.mark.vm
NAME = f"{vm.PREFIX}-odd"
QUOTED = f"{NAME} a'b\"&<>"  # which libvirt escapes in the names of some of its files

# As libvirt tells of a VM that runs.  QEMU's processor has more than is told here, as it has after an update.
ODD = f"""\
<domain type='qemu'>
  <name>{NAME}</name>
  {NODES}
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <features><acpi/></features>
  <devices>
    <controller type='pci' index='0' model='pcie-root'/>
    <controller type='pci' index='1' model='pcie-root-port'/>
    <controller type='pci' index='2' model='pcie-expander-bus'><target busNr='180'><node>0</node></target></controller>
    <controller type='usb' model='none'/>
    {MODULES}
    <interface type='bridge'>
      <mac address='52:54:00:11:22:33'/><source bridge='br0'/><model type='virtio'/><mtu size='9000'/><acpi index='1'/>
    </interface>
    <serial type='file'>
      <source path='/debug'/><target type='isa-debug' port='0'><model name='isa-debugcon'/></target>
      <address type='isa' iobase='0x402'/>
    </serial>
    <serial type='pty'><target type='isa-serial' port='1'/></serial>
    <channel type='pty'><source path='/dev/pts/9'/><target type='virtio' name='org.example.1'/></channel>
    <memballoon model='none'/>
  </devices>
  <seclabel type='none' model='dac'/>
</domain>"""


@pytest.mark.parametrize("changes", [{}, {"network": "isolated"}, {"vcpus": 1}, {"memory_kib": 131072}])
async def test_libvirt_starts_what_is_derived(libvirt: None, changes: dict[str, object], tmp_path: Path) -> None:
    own = {"name": f"{NAME}-copy", "uuid": str(uuid.uuid4()), "console_log": str(tmp_path / "console.log")}
    wish = replace(WISH, accelerator=TCG, disks={}, **own, **changes)  # type: ignore[arg-type]
    derived = definition.derive(ODD, wish)
    async with hypervisor.connected("qemu:///system") as connection:
        copy = await connection.start(derived.xml, persistent=False)
        try:
            assert await copy.scratch_vm_of() == WISH.snapshot
        finally:
            await copy.remove()


# -- files that libvirt gives to nobody --------------------------------------------------------------------------------


async def qemu_s_user() -> User:
    """Whom QEMU runs as by default."""
    async with hypervisor.connected("qemu:///system") as connection:
        return (await connection.qemu()).user


@pytest.fixture
def unlabelled(clean: None) -> Iterator[vm.VM]:
    """A VM that says so, whose disk is QEMU's user's already: only its process tells whose."""
    user = trio.run(qemu_s_user)
    with vm.running(QUOTED, [vm.Disk("vda", "qcow2")], start=False) as odd:
        subprocess.run(["chown", f"{user.uid}:{user.gid}", odd.directory / "vda.qcow2"], check=True)
        redefine(odd, "</devices>", "</devices><seclabel type='none' model='dac'/>")
        odd.start(paused=True)
        yield odd


def redefine(odd: vm.VM, old: str, new: str) -> None:
    """Define it with that instead of this."""
    xml = odd.directory / "domain.xml"
    xml.write_text(xml.read_text().replace(old, new))
    odd.virsh("undefine", odd.name)
    odd.virsh("define", str(xml))


def test_a_vm_whose_files_libvirt_gives_to_nobody_has_snapshots_and_scratch_vms(
    unlabelled: vm.VM, mountpoint: Path
) -> None:
    assert "<label>" not in unlabelled.virsh("dumpxml", unlabelled.name)
    taken = snapmount_json(unlabelled.name, mountpoint)
    of_snapshot = f"of {unlabelled.name} ({taken['id']})"
    assert shown_by_ps(taken["server"]["pid"]) == f"snapmount: server {of_snapshot}"
    wait_for(
        lambda: shown_by_ps(taken["server"]["standby_pid"]) == f"snapmount: standby {of_snapshot}",
        "ps shows whose it is",
    )
    told = snapmount_json("boot", unlabelled.name, "--wait-for", "guest is up")
    assert (told["state"], told["name"]) == ("running", f"{QUOTED}-scratch-{told['uuid'][:4]}")
    [attached] = snapmount_json("attach", unlabelled.name, told["name"])["attachments"]
    assert (attached["disk"], attached["target"]) == ("vda", "vdb")
    assert (mountpoint / "vda.raw").stat().st_uid == Path(f"/proc/{unlabelled.qemu_pid()}").stat().st_uid
    snapmount("delete", "--force", unlabelled.name)
    assert traces.found() == []


def shown_by_ps(pid: int) -> str:
    done = subprocess.run(["ps", "-ww", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=True)
    return done.stdout.rstrip("\n")


# -- encryption --------------------------------------------------------------------------------------------------------


@pytest.fixture
def encrypted(clean: None) -> Iterator[vm.VM]:
    """A VM whose disk QEMU encrypts; beside it lies the same as plain text."""
    key = str(uuid.uuid4())
    with vm.running(NAME, [vm.Disk("vda", "qcow2", fill=filled)], start=False) as odd:
        image, plain = odd.directory / "vda.qcow2", odd.directory / "vda.img"
        image.unlink()
        luks.encrypt(plain, image)
        (odd.directory / "key.xml").write_text(f"<secret private='yes'><uuid>{key}</uuid></secret>")
        (odd.directory / "key").write_text("pass")
        odd.virsh("secret-define", str(odd.directory / "key.xml"))
        try:
            odd.virsh("secret-set-value", key, "--plain", "--file", str(odd.directory / "key"))
            encryption = f"<encryption format='luks'><secret type='passphrase' uuid='{key}'/></encryption>"
            redefine(odd, "<target dev='vda'", f"{encryption}<target dev='vda'")
            odd.start(paused=True)
            yield odd
        finally:
            odd.virsh("secret-undefine", key)


def filled(image: Path) -> None:
    with image.open("r+b") as file:
        file.write(b"all that the guest keeps secret\n" * 4096)


def test_a_disk_that_qemu_encrypts_is_plain_and_so_it_is_to_a_scratch_vm(encrypted: vm.VM, mountpoint: Path) -> None:
    snapmount(encrypted.name, mountpoint)
    assert read_direct(mountpoint / "vda.raw") == (encrypted.directory / "vda.img").read_bytes()
    told = snapmount_json("boot", encrypted.name, "--wait-for", "guest is up")
    assert told["state"] == "running"
    snapmount("delete", "--force", encrypted.name)
    assert traces.found() == []
