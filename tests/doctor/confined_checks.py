"""snapmount on a host whose kernel enforces AppArmor, and whose iSCSI target is the kernel's.

Run by test_confined.py in a VM that nothing else uses.  It has no KVM, so the VM's own VMs are paused ones, but for a
copy that boots: without a kernel, from a boot sector.  What a guest would write is written through its QEMU.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from snapmount.core import helperdisk
from snapmount.core.iscsi import PORT, Credentials, Lun, Target
from snapmount.core.publishing import parse_portal

from ..publish.iscsi import lio_checks
from ..rig import bootsector, command, initiator, libvirtd, servers, traces, vm
from ..rig.command import read_direct, snapmount, snapmount_json
from ..rig.initiator import wait_for

pytestmark = pytest.mark.filterwarnings("ignore:Will be removed in 1.0")  # what rtslib calls in pyudev

PROFILES = Path("/etc/apparmor.d")
SLOW_S = 600  # nothing is fast in a VM in a VM
SIZE = 8 * vm.MIB
BLOCK = 65536
FORBIDDEN = Path("/var/lib/libvirt/images/snapmount-test-forbidden.raw")


# -- what AppArmor does ------------------------------------------------------------------------------------------------


def confinement(pid: int) -> str:
    """The profile of a process, and whether it is enforced."""
    return Path(f"/proc/{pid}/attr/current").read_text().strip()


def is_confined(domain: vm.VM) -> bool:
    """Whether its QEMU has the profile that is its own."""
    return confinement(domain.qemu_pid()) == f"libvirt-{domain.uuid()} (enforce)"


def denials() -> list[str]:
    """What AppArmor has refused since the kernel's start, as that tells it."""
    said = subprocess.run(["dmesg"], capture_output=True, text=True, check=True).stdout
    return [line for line in said.splitlines() if 'apparmor="DENIED"' in line]


@pytest.fixture(scope="module")
def expected_denials() -> set[str]:
    """What the lines hold of those that a check has expected."""
    return set()


@pytest.fixture(autouse=True)
def nothing_else_is_denied(expected_denials: set[str]) -> Iterator[None]:
    yield
    assert [line for line in denials() if not any(each in line for each in expected_denials)] == []


# -- libvirt and the VMs -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def confined_libvirt() -> Iterator[None]:
    """libvirt as its packages confine it: its driver is used where libvirtd has had its profile from its start on."""
    profiles = [PROFILES / name for name in ("usr.sbin.libvirtd", "usr.lib.libvirt.virt-aa-helper")]
    assert Path("/sys/module/apparmor/parameters/enabled").read_text() == "Y\n"
    subprocess.run(["apparmor_parser", "--replace", *profiles], check=True)
    # Nested in a VM without KVM it is there by name only, and libvirt and QEMU would try it.
    Path("/dev/kvm").unlink(missing_ok=True)
    for directory in ("/var/log/libvirt/qemu", "/var/cache/libvirt/qemu", "/run/lock"):  # on fresh file systems
        Path(directory).mkdir(parents=True, exist_ok=True)
    hide_what_tests_outside_have_there()
    subprocess.run(["mount", "--make-rshared", "/"], check=True)  # as systemd does it
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "COMMAND_S", SLOW_S)
        with libvirtd.running():
            yield


def hide_what_tests_outside_have_there() -> None:
    """The VM's /var is the host's, with what is written to that meanwhile: give libvirt an empty place of its own."""
    place, fresh = Path("/var/lib/libvirt"), Path("/var/lib/snapmount-test-libvirt")
    (fresh / "images").mkdir(parents=True)
    subprocess.run(["mount", "--bind", fresh, place], check=True)


@pytest.fixture(scope="module")
def original(confined_libvirt: None) -> Iterator[vm.VM]:
    disks = [vm.Disk("vda", size=SIZE, fill=fill), vm.Disk("vdb", "qcow2", size=SIZE, fill=fill)]
    with vm.running(f"{vm.PREFIX}-confined", disks, paused=True, direct_kernel=False) as paused:
        yield paused


def fill(image: Path) -> None:
    with image.open("r+b") as disk:
        disk.write(random.Random(image.name).randbytes(2 * vm.MIB))
    bootsector.fill(image)


@pytest.fixture(scope="module")
def taken(original: vm.VM) -> Iterator[dict[str, Any]]:
    """A snapshot that is both mounted and published by the kernel, as one command makes it."""
    mountpoint = Path("/var/lib/snapmount-test-view")
    mountpoint.mkdir()
    yield snapmount_json("--iscsi", "--target", "lio", original.name, mountpoint)
    if traces.found():  # the last check has not come to it
        snapmount("delete", "--force", original.name)


def view(taken: dict[str, Any]) -> list[Path]:
    return [Path(taken["mountpoint"], f"{name}.raw") for name in ("vda", "vdb")]


def sha256(*files: Path) -> list[str]:
    return [hashlib.sha256(read_direct(file)).hexdigest() for file in files]


def monitor(domain: vm.VM, device: str, do: str) -> None:
    """Let QEMU do it with that disk of the VM, as its guest could: see qemu-io(1)."""
    path = f"/machine/peripheral/{device}/virtio-backend"
    said = domain.virsh("qemu-monitor-command", "--hmp", domain.name, f'qemu-io -d {path} "{do}"')
    assert "Error" not in said, said


def overwrite(domain: vm.VM, with_byte: int) -> None:
    """Write the first MiB of each disk, and make sure that QEMU has done so."""
    expected = bytes([with_byte]) * vm.MIB
    for disk in (0, 1):
        monitor(domain, f"virtio-disk{disk}", f"write -P {with_byte:#x} 0 1M")
        monitor(domain, f"virtio-disk{disk}", "flush")
    assert (domain.directory / "vda.img").read_bytes()[: vm.MIB] == expected


def opened(domain: vm.VM) -> set[str]:
    """The files that its QEMU has open."""
    found = set()
    for descriptor in Path(f"/proc/{domain.qemu_pid()}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.add(os.readlink(descriptor))
    return found


# -- the checks, each of which goes on from the one before -------------------------------------------------------------


def test_libvirt_and_qemu_are_confined_and_what_libvirt_does_not_admit_is_denied(
    original: vm.VM, expected_denials: set[str]
) -> None:
    """Else the other checks would say nothing."""
    assert confinement(int(libvirtd.PID_FILES["libvirtd"].read_text())) == "libvirtd (enforce)"
    assert is_confined(original)
    expected_denials.add(f'name="{FORBIDDEN}"')
    FORBIDDEN.touch(mode=0o644)
    add = {"driver": "file", "node-name": "forbidden", "read-only": True, "filename": str(FORBIDDEN)}
    request = json.dumps({"execute": "blockdev-add", "arguments": add})
    assert "Permission denied" in original.virsh("qemu-monitor-command", original.name, request)
    assert any(str(FORBIDDEN) in line for line in denials())


def test_doctor_knows_that_apparmor_confines_qemu() -> None:
    found = json.loads(snapmount("--json", "doctor", check=False).stdout)["findings"]
    (finding,) = (each for each in found if each["check"] == "confinement")
    assert (finding["status"], finding["text"].partition(":")[0]) == ("ok", "AppArmor")


def test_the_view_keeps_the_moment_while_the_disks_are_written(original: vm.VM, taken: dict[str, Any]) -> None:
    before = sha256(*view(taken))
    assert view(taken)[0].read_bytes() == (original.directory / "vda.img").read_bytes()
    overwrite(original, 0x5A)
    assert sha256(*view(taken)) == before
    scratch = {path for path in opened(original) if path.startswith(str(traces.SCRATCH))}
    assert len(scratch) == 2, "the profile admits the scratch files"


def test_the_kernel_s_initiator_reads_the_same(taken: dict[str, Any]) -> None:
    told = taken["iscsi"]
    assert told["target"] == "lio"
    target, credentials = target_of(told), Credentials(told["user"], told["secret"])
    with initiator.running(), initiator.session(target, target.portals[0], credentials) as devices:
        assert sha256(*devices) == sha256(*view(taken))


def target_of(told: dict[str, Any]) -> Target:
    portals = tuple(parse_portal(text).at(PORT) for text in told["portals"])
    return Target(told["iqn"], portals, tuple(Lun(**lun) for lun in told["luns"]), ())


def test_a_copy_boots_from_the_view_under_a_profile_of_its_own(original: vm.VM, taken: dict[str, Any]) -> None:
    owners = [file.stat() for file in view(taken)]
    told = snapmount_json("boot", "--wait-for", bootsector.SAYS, original.name)
    copy = vm.VM(told["name"], Path(told["overlay_directory"]))
    assert is_confined(copy)
    overlays = {f"{told['overlay_directory']}/{name}.qcow2" for name in ("vda", "vdb")}
    assert overlays | set(map(str, view(taken))) <= opened(copy)
    assert [file.stat() for file in view(taken)] == owners, "nothing was relabelled"
    copy.virsh("destroy", copy.name)
    wait_for(lambda: not copy.directory.exists(), "its overlays are gone")


def test_a_helper_reads_the_view_that_is_plugged_into_it(original: vm.VM, taken: dict[str, Any]) -> None:
    owners = [file.stat() for file in view(taken)]
    with vm.running(vm.HELPER, [vm.Disk("vda", size=SIZE)], paused=True, direct_kernel=False) as helper:
        attached = snapmount_json("attach", original.name, helper.name)["attachments"]
        assert is_confined(helper)
        assert set(map(str, view(taken))) <= opened(helper)
        for disk in attached:
            monitor(helper, helperdisk.alias(taken["id"], disk["disk"]), "aio_read 0 1M")
            wait_for(partial(has_been_read, helper, disk["target"]), f"{disk['target']} has been read")
        assert [file.stat() for file in view(taken)] == owners, "nothing was relabelled"
        helper.virsh("destroy", helper.name)


def has_been_read(domain: vm.VM, target: str) -> bool:
    """Whether QEMU has read a MiB of the disk without an error."""
    told = dict(line.split()[1:3] for line in domain.virsh("domblkstat", domain.name, target).splitlines() if line)
    return int(told["rd_bytes"]) >= vm.MIB


def test_nothing_is_left_and_the_original_goes_on(
    original: vm.VM, taken: dict[str, Any], expected_denials: set[str]
) -> None:
    """libvirt takes all scratch files of a job from the profile when the first disk's part of it has ended; QEMU may
    not open those of the others any more, which it wants to do, for reading, before it drops them.
    """
    expected_denials.add(f'name="{traces.SCRATCH}/snapmount-{taken["id"]}/')
    snapmount("delete", "--force", original.name)
    assert traces.found() == []
    assert lio_checks.traces() == []
    assert not original.has_job()
    overwrite(original, 0x5B)
    assert original.state() == "paused"


# -- a VM that is shut off ---------------------------------------------------------------------------------------------


def test_an_offline_vm_s_luns_are_recovered_under_a_reader_and_deleted_with_a_session_logged_in(
    confined_libvirt: None,
) -> None:
    disks = [vm.Disk("vda", size=SIZE, fill=fill), vm.Disk("vdb", "qcow2", size=SIZE, fill=fill)]
    with vm.running(f"{vm.PREFIX}-off", disks, start=False, direct_kernel=False) as off:
        taken = snapmount_json("--iscsi", "--target", "lio", off.name)
        assert (taken["source"], taken["iscsi"]["target"]) == ("offline", "lio")
        target, credentials = target_of(taken["iscsi"]), Credentials(taken["iscsi"]["user"], taken["iscsi"]["secret"])
        with initiator.running(), initiator.session(target, target.portals[0], credentials) as devices:
            whole = sha256(*devices)
            assert whole[0] == hashlib.sha256((off.directory / "vda.img").read_bytes()).hexdigest()
            with reading(devices[0]) as reads:
                servers.kill(taken)
                assert [each["id"] for each in snapmount_json("recover")["reattached"]] == [taken["id"]]
                since = len(reads)
                wait_for(lambda: any(reads[since:]), "it is read again")
            assert set(reads) - {None} == {initiator.read(devices[0], BLOCK)}, "never other bytes"
            assert sha256(*devices) == whole
            snapmount("delete", "--force", off.name)
            assert lio_checks.traces() == []
    assert traces.found() == []


@contextlib.contextmanager
def reading(device: Path) -> Iterator[list[bytes | None]]:
    """Read the device's first block again and again while the block lasts; what was read, None for an error."""
    reads: list[bytes | None] = []
    is_over = threading.Event()

    def read() -> None:
        while not is_over.is_set():
            try:
                reads.append(initiator.read(device, BLOCK))
            except OSError:
                reads.append(None)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield reads
    finally:
        is_over.set()
        reader.join()
