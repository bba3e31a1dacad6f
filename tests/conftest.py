"""Fixtures: libvirt, VMs, mountpoints; the checks that a test leaves nothing behind and that none is skipped in CI."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapmount.host import datadirectory, mounts
from snapmount.records.store import Store

from .rig import checks, leftovers, libvirtd, shards, stock_kernel, traces, vm
from .rig.account import Account
from .rig.libvirtd import wait_for
from .rig.records import OwnStore

SEED = 7
# A guest that writes without a pause takes a whole processor where there is no KVM.
WRITES = f"snapmount.seed={SEED} snapmount.pause=1000"
CHECKS_S = 1800.0  # half of that on a machine that does nothing else
CDROM = "<disk type='file' device='cdrom'><target dev='sda' bus='ide'/></disk>"


def pytest_addoption(pluginmanager: pytest.PytestPluginManager) -> None:
    pluginmanager.register(shards)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):  # type: ignore[no-untyped-def]
    """Where a run promises that this host has all that the tests need, a skip is a failure."""
    report = yield
    if report.skipped and os.environ.get("SNAPMOUNT_TEST_NO_SKIP"):
        report.outcome = "failed"
    return report


def pytest_configure() -> None:
    """A shell lets what it runs in the background ignore Ctrl-C; the commands that tests start must not."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def early(request: pytest.FixtureRequest) -> None:
    """The stock kernel's VM runs beside the other tests from the first one on: it takes minutes of one processor.

    With shards, the checks are the first work of one of them.
    """
    if not shards.is_shard(request.config):
        request.getfixturevalue("stock_vm")


@pytest.fixture(scope="session")
def stock_vm(request: pytest.FixtureRequest) -> Iterator[stock_kernel.Machine | str]:
    """The VM in which those checks run that are selected, or why there is none."""
    selected = [item.callspec.params["check"] for item in request.session.items if shards.is_check(item)]  # type: ignore[attr-defined]
    why = stock_kernel.lacking() if selected else "no check is selected"
    if why:
        yield why
        return
    with stock_kernel.testing([check.selector for check in selected], CHECKS_S) as machine:
        yield machine


@pytest.fixture(scope="session")
def report(stock_vm: stock_kernel.Machine | str) -> checks.Report:
    """Reports a check's outcome as that of the test; waits for the VM, which runs them all."""
    if isinstance(stock_vm, str):
        pytest.skip(stock_vm)
    return checks.Report(stock_vm)


@pytest.fixture(scope="session")
def libvirt() -> Iterator[None]:
    """A libvirt daemon that answers at qemu:///system."""
    if os.geteuid() != 0:
        pytest.skip("needs root: the tests define VMs at qemu:///system and mount")
    for program in ("virsh", "qemu-system-x86_64", "qemu-img", "busybox", "cpio", "gcc"):
        if not shutil.which(program):
            pytest.skip(f"this host lacks {program}: run contrib/setup --test")
    if not os.access("/dev/fuse", os.R_OK):
        pytest.skip("this host lacks /dev/fuse")
    before = traces.found()
    if before:
        pytest.fail(f"there are snapshots on this host, which the tests would mistake for their own: {before}")
    with libvirtd.running():
        yield


@pytest.fixture
def clean(libvirt: None) -> Iterator[None]:
    """After the test the host shows no trace of a snapshot or a VM; what it left is removed, so that it alone fails."""
    before = leftovers.names()
    yield
    vms = leftovers.names() - before
    left = [*traces.found(), *(f"VM: {name}" for name in vms)]
    if left:
        leftovers.remove(vms)
    assert left == []


@pytest.fixture(scope="session")
def shared_vm(libvirt: None) -> Iterator[vm.VM]:
    """A VM that writes all the time, for tests that leave it as it is: two disks and an empty CD-ROM drive."""
    disks = [vm.Disk("vda", "raw"), vm.Disk("vdb", "qcow2")]
    with vm.running(f"{vm.PREFIX}-vm", disks, command_line=WRITES, extra_devices=CDROM) as running:
        running.virsh("suspend", running.name)
        yield running


@pytest.fixture
def writer(shared_vm: vm.VM, clean: None) -> Iterator[vm.VM]:
    """The shared VM; whatever the test did, the guest has had no error and goes on writing.

    Between tests it is suspended: without KVM a guest that writes all the time takes a processor from the others.
    """
    shared_vm.virsh("resume", shared_vm.name)
    yield shared_vm
    try:
        shared_vm.keeps_writing()
        assert shared_vm.write_errors() == 0
    except BaseException:
        shared_vm.restart()
        raise
    finally:
        shared_vm.virsh("suspend", shared_vm.name)


@pytest.fixture
def own_vm(clean: None) -> Iterator[vm.VM]:
    """A VM as the shared one, for a test that stops or breaks it."""
    disks = [vm.Disk("vda", "raw"), vm.Disk("vdb", "qcow2")]
    with vm.running(f"{vm.PREFIX}-own", disks, command_line=WRITES) as running:
        running.keeps_writing(100)
        yield running


@pytest.fixture(scope="module")
def shared_helper(libvirt: None) -> Iterator[vm.VM]:
    """A VM that tells of the disks that are plugged into it."""
    root = mounts.holding("/", mounts.current())
    if root is None or not root.is_shared:
        pytest.skip("/ is private here: a VM does not see what is mounted after its start (contrib/run-tests mends it)")
    scsi = "<controller type='scsi' model='virtio-scsi'/>"
    own = vm.running(vm.HELPER, [vm.Disk("vda")], command_line="snapmount.watch", extra_devices=scsi, agent=True)
    with own as running:
        running.agent_answers()
        yield running


@pytest.fixture
def helper(shared_helper: vm.VM, clean: None) -> Iterator[vm.VM]:
    """The shared helper; whatever the test did, it runs on, with its own disk alone."""
    yield shared_helper
    found = (shared_helper.state(), shared_helper.targets())
    if found != ("running", ["vda"]):
        shared_helper.restart()
        shared_helper.agent_answers()
    assert found == ("running", ["vda"])


@pytest.fixture
def mountpoint(clean: None) -> Iterator[Path]:
    """An empty directory that QEMU's user can reach, removed after the test."""
    directory = Path(tempfile.mkdtemp(prefix=f"{vm.PREFIX}-mount-", dir="/var/tmp"))
    directory.chmod(0o755)
    yield directory
    subprocess.run(["umount", "-q", "-l", directory])  # only where the test has failed
    shutil.rmtree(directory)


@pytest.fixture
def hang() -> Iterator[threading.Event]:
    """What waits for it hangs until the end of the test."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A store for records, which lets go of all its leases at the end."""
    own = OwnStore(tmp_path / "run" / "snapmount")
    yield own
    for lease in own.leases:
        lease.release()


@pytest.fixture
def scratch_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The default parent of scratch directories."""
    path = tmp_path / "snapmount"
    monkeypatch.setattr(datadirectory, "SYSTEM", path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    return path


@pytest.fixture
def account(clean: None) -> Iterator[Account]:
    """An ordinary user; the libvirt daemons that libvirt starts for a user's session end with the test."""
    if os.stat("/dev/fuse").st_mode & 0o006 != 0o006:
        pytest.skip("/dev/fuse is not open to ordinary users: chmod 666 /dev/fuse")
    with tempfile.TemporaryDirectory(prefix=f"{vm.PREFIX}-home-", dir="/var/tmp") as home:
        user = Account("nobody", Path(home))
        user.runtime.mkdir(mode=0o700)
        user.own(user.home)
        yield user
        for pid in user.daemons():
            os.kill(pid, signal.SIGTERM)
        wait_for(lambda: not user.daemons(), "the user's libvirt daemons have ended")
