"""VMs whose firmware is UEFI, and VMs that have a TPM: a snapshot has the firmware's variables of its moment, a scratch
VM boots with them and gets a TPM of its own, and nothing of either is left behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..rig import rootdisk, servers, traces, vm
from ..rig.command import snapmount, snapmount_json
from ..rig.libvirtd import wait_for

pytestmark = pytest.mark.vm
FIRMWARE = Path("/usr/share/qemu/firmware")  # what libvirt chooses a firmware by
TPM_STATE = Path("/var/lib/libvirt/swtpm")
TPM = "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>"
GUID = "6695eb01-f6a4-4304-b9aa-97f2502e193f"  # of the variables that are ours
NEW_TPM = "the TPM is emulated anew, and empty"
NEW_VARIABLES = "the firmware's variables are new: the snapshot does not have those of the original"

# Commands of the TPM 2.0 Library, part 3: TPM2_NV_DefineSpace() of index 0x01800001, 8 bytes, by its owner, who has no
# password; and TPM2_GetCapability() of the indices that there are.
DEFINE = "80020000002d0000012a40000001000000094000000900000000000000000e01800001000b0004000400000008"
INDICES = "8001000000160000017a000000010100000000000010"
INDEX = "01800001"


def skip_without(*programs: str | Path) -> None:
    for program in programs:
        if not shutil.which(program, os.F_OK):
            pytest.skip(f"this host lacks {program}: run contrib/setup --test")


@pytest.fixture(scope="module")
def shared_efi_vm(libvirt: None) -> Iterator[vm.VM]:
    """A VM that boots by UEFI from its own disk, and whose firmware holds the variable SnapmountFirst."""
    if not list(FIRMWARE.glob("*edk2*x86_64*.json")):
        pytest.skip("this host lacks OVMF: run contrib/setup --test")
    skip_without("objcopy", "mformat", rootdisk.EFI_STUB)
    disks = [vm.Disk("vda", size=48 * vm.MIB, fill=rootdisk.fill_for_efi)]
    with vm.running(f"{vm.PREFIX}-efi", disks, agent=True, direct_kernel=False, efi=True) as running:
        running.agent_answers()
        set_variable(running, "First")
        yield running


@pytest.fixture
def efi_vm(shared_efi_vm: vm.VM, clean: None) -> vm.VM:
    """The shared one, which runs on."""
    return shared_efi_vm


@pytest.fixture(scope="module")
def shared_tpm_vm(libvirt: None) -> Iterator[vm.VM]:
    """A VM with a TPM, in which it has defined an index."""
    skip_without("swtpm", "swtpm_setup")
    with vm.running(f"{vm.PREFIX}-tpm", [vm.Disk("vda")], agent=True, extra_devices=TPM) as running:
        running.agent_answers()
        tpm_answers(running, DEFINE)
        assert INDEX in indices(running)
        yield running


@pytest.fixture
def tpm_vm(shared_tpm_vm: vm.VM, clean: None) -> Iterator[vm.VM]:
    """The shared one; whatever the test did, its TPM is as it was."""
    yield shared_tpm_vm
    assert INDEX in indices(shared_tpm_vm)


def set_variable(guest: vm.VM, name: str) -> None:
    """Let the guest make a variable of its firmware: four bytes of attributes (non-volatile, for all), then a value."""
    guest.agent_runs(rf"printf '\7\0\0\0x' >/sys/firmware/efi/efivars/Snapmount{name}-{GUID}")


def holds(variables: bytes, name: str) -> bool:
    """Whether a file of variables has one of ours, also one that is deleted."""
    return f"Snapmount{name}\0".encode("utf-16-le") in variables


def nvram(guest: vm.VM) -> Path:
    """The file of the running VM."""
    path = re.search(r"<nvram[^>]*>([^<]+)</nvram>", guest.virsh("dumpxml", guest.name))
    assert path
    return Path(path[1])


def tpm_answers(guest: vm.VM, command: str) -> str:
    """The TPM's answer to a command; both in hexadecimal digits."""
    octal = "".join(f"\\{byte:03o}" for byte in bytes.fromhex(command))
    script = rf"exec 3<>/dev/tpm0; printf '{octal}' >&3; dd bs=4096 count=1 <&3 2>/dev/null | od -An -v -tx1"
    return "".join(guest.agent_runs(script).split())


def indices(guest: vm.VM) -> list[str]:
    """The indices of the TPM that hold something: after a header of 10 bytes, a flag and a number."""
    answer = tpm_answers(guest, INDICES)
    assert answer[12:20] == "00000000", answer
    return re.findall("." * 8, answer[30:])


def tpm_traces(uuid: str) -> list[str]:
    """What there is of the emulated TPM of a VM: its emulator, and its state."""
    emulators = subprocess.run(["pgrep", "-a", "swtpm"], capture_output=True, text=True).stdout.splitlines()
    return [line for line in emulators if uuid in line] + [str(path) for path in TPM_STATE.glob(uuid)]


def boot(*words: str | Path) -> tuple[vm.VM, dict[str, Any]]:
    """Boot a scratch VM; return it as a VM of the rig, and what is told of it."""
    told = snapmount_json("boot", *words)
    return vm.VM(told["name"], Path(told["overlay_directory"])), told


@contextlib.contextmanager
def moved_away(path: Path) -> Iterator[None]:
    hidden = path.with_name("hidden")
    path.rename(hidden)
    try:
        yield
    finally:
        hidden.rename(path)


def test_the_mount_has_the_variables_of_its_moment_also_after_a_recovery(efi_vm: vm.VM, mountpoint: Path) -> None:
    path = nvram(efi_vm)
    said = snapmount(efi_vm.name, mountpoint).stdout
    assert re.search(rf"^  nvram +\S+ KiB +raw +{path}$", said, re.MULTILINE)
    shown = mountpoint / "nvram"
    before = shown.read_bytes()
    assert before == path.read_bytes()
    assert holds(before, "First")
    told = json.loads((mountpoint / "snapshot.json").read_text())
    assert told["nvram"] == {"size_bytes": len(before), "format": "raw", "origin": str(path), "file": "nvram"}
    status, of_disk = shown.stat(), (mountpoint / "vda.raw").stat()
    assert stat.S_IMODE(status.st_mode) == 0o400
    assert (status.st_uid, status.st_mtime_ns) == (of_disk.st_uid, of_disk.st_mtime_ns)
    assert f"raw, of {path}" in snapmount("show", mountpoint).stdout

    set_variable(efi_vm, "Later")
    assert holds(path.read_bytes(), "Later"), "QEMU writes them through"
    assert shown.read_bytes() == before
    [listed] = snapmount_json("list")
    servers.kill(listed)
    snapmount("recover")
    assert shown.read_bytes() == before
    assert stat.S_IMODE((traces.RUNTIME / listed["id"] / "nvram").stat().st_mode) == 0o600
    snapmount("delete", efi_vm.name)


@pytest.mark.sample
def test_a_copy_boots_by_uefi_with_the_variables_of_the_snapshot(efi_vm: vm.VM, mountpoint: Path) -> None:
    snapmount(efi_vm.name, mountpoint)
    before = (mountpoint / "nvram").read_bytes()
    set_variable(efi_vm, "AfterTheSnapshot")

    scratch, told = boot("--wait-for", "agent", mountpoint)

    held = re.search("^the firmware holds: (.*)", scratch.output(), re.MULTILINE)
    assert held
    assert "First" in held[1].split()
    assert "AfterTheSnapshot" not in held[1].split()
    assert (told["notes"], told["left_out"]) == ([], [])
    set_variable(scratch, "OfTheCopy")
    assert holds(nvram(scratch).read_bytes(), "OfTheCopy")
    assert not holds(nvram(efi_vm).read_bytes(), "OfTheCopy")
    assert (mountpoint / "nvram").read_bytes() == before
    snapmount("delete", "--force", efi_vm.name)
    assert not scratch.directory.exists()


def test_variables_that_cannot_be_copied_are_left_out_and_a_copy_gets_new_ones(efi_vm: vm.VM, mountpoint: Path) -> None:
    with moved_away(nvram(efi_vm)):
        taken = snapmount_json(efi_vm.name, mountpoint)
    why = f"{nvram(efi_vm)} cannot be read: No such file or directory"
    assert taken["left_out"] == [{"name": "nvram", "why": why}]
    assert taken["nvram"] is None
    assert not (mountpoint / "nvram").exists()
    scratch, told = boot("--keep", mountpoint)
    assert told["notes"] == [NEW_VARIABLES]
    assert nvram(scratch) == scratch.directory / "nvram.fd"
    assert not holds(nvram(scratch).read_bytes(), "First")
    snapmount("delete", "--force", efi_vm.name)
    assert not scratch.directory.exists()


def test_a_copy_gets_a_new_tpm_of_which_nothing_is_left(tpm_vm: vm.VM) -> None:
    scratch, told = boot("--wait-for", "agent", tpm_vm.name)
    assert told["notes"] == [NEW_TPM]
    assert INDEX not in indices(scratch)
    assert len(tpm_traces(told["uuid"])) == 2
    scratch.virsh("destroy", scratch.name)
    wait_for(lambda: traces.found() == [], "the snapshot has ended with it")
    wait_for(lambda: tpm_traces(told["uuid"]) == [], "nothing of its TPM is left")


def test_a_kept_copy_has_its_tpm_until_it_is_deleted(tpm_vm: vm.VM) -> None:
    scratch, told = boot("--keep", tpm_vm.name)
    scratch.virsh("destroy", scratch.name)
    wait_for(lambda: tpm_traces(told["uuid"]) == [str(TPM_STATE / told["uuid"])], "its emulator has ended")
    snapmount("delete", "--force", tpm_vm.name)
    assert tpm_traces(told["uuid"]) == []
