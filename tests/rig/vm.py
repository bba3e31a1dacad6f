"""Test VMs, run by libvirt: disks of every kind, a direct kernel boot of the guest, its console in a file."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from . import guest
from .account import Account
from .libvirtd import SYSTEM, wait_for

IMAGES = Path("/var/lib/libvirt/images")  # a place that QEMU's user can reach
PREFIX = "snapmount-test"
HELPER = f"{PREFIX}-helper"  # of the VM that disks are plugged into
BOOT_S = 60
REMOVE_S = 120
LAST_WORDS = 4096  # characters of the console, with the last lines
FOREIGN_SOCKET = Path("/var/lib/libvirt/qemu/snapmount-test.sock")
MIB = 1 << 20
# What the kernel may leave out: half a second of a guest without KVM.
SOONER = "cryptomgr.notests initcall_blacklist=init_kprobe_trace,crypto_kdf108_init,load_system_certificate_list"


@dataclass(frozen=True)
class Disk:
    """One disk of a test VM: kind is raw, qcow2, chain (qcow2 over qcow2 over raw), block (a loop device), or
    qcow2-block (qcow2 on a loop device).
    """

    name: str
    kind: str = "raw"
    size: int = 32 * MIB
    ext4: bool = False
    fill: Callable[[Path], None] | None = None  # writes into the raw image before the VM is started
    iothread: bool = False  # a thread of its own serves it
    block_bytes: int = 512  # of a logical block
    place: Path | None = None  # the directory of its images; None: the VM's
    device: Path | None = None  # what the image of a block disk is written to, in the place of a loop device


@dataclass
class VM:
    """A VM that libvirt knows; its files lie in `directory`."""

    name: str
    directory: Path
    uri: str = SYSTEM
    disks: Sequence[Disk] = field(default_factory=list)
    account: Account | None = None  # whose VM it is, where not root's

    @property
    def console(self) -> Path:
        return self.directory / "console.log"

    def virsh(self, *args: str, check: bool = True) -> str:
        """What `virsh ARGS` prints."""
        done = self._virsh(*args)
        if check and done.returncode:
            raise RuntimeError(f"virsh {' '.join(args)}: {done.stderr.strip()}")
        return done.stdout

    def virsh_fails(self, *args: str) -> bool:
        """Whether `virsh ARGS` fails."""
        return self._virsh(*args).returncode != 0

    def _virsh(self, *args: str) -> subprocess.CompletedProcess[str]:
        as_user = self.account.options() if self.account else {}
        return subprocess.run(["virsh", "-q", "-c", self.uri, *args], capture_output=True, text=True, **as_user)

    def agent_answers(self) -> None:
        """Wait until the guest agent does."""
        ping = '{"execute": "guest-ping"}'
        wait_for(lambda: not self.virsh_fails("qemu-agent-command", self.name, ping), "the guest agent answers", BOOT_S)

    def agent_runs(self, script: str) -> str:
        """What a shell prints in which the guest agent runs the script; it must succeed."""
        asked = {"path": "/bin/sh", "arg": ["-c", script], "capture-output": True}
        started = self._ask_agent("guest-exec", asked)
        done: dict[str, Any] = {}

        def has_ended() -> bool:
            done.update(self._ask_agent("guest-exec-status", {"pid": started["pid"]}))
            return bool(done["exited"])

        wait_for(has_ended, "the script has ended", BOOT_S)
        said = {each: base64.b64decode(done.get(each, "")).decode() for each in ("out-data", "err-data")}
        assert done["exitcode"] == 0, said
        return said["out-data"]

    def _ask_agent(self, command: str, arguments: dict[str, Any]) -> Any:
        asked = json.dumps({"execute": command, "arguments": arguments})
        return json.loads(self.virsh("qemu-agent-command", self.name, asked))["return"]

    def begin_foreign_backup(self) -> None:
        """Start a backup job as another program would; the VM's end ends it.

        libvirt waits half a minute for the end of a job that is there already.  Raises RuntimeError if it refuses.
        """
        job = self.directory / "foreign.xml"
        job.write_text(f"<domainbackup mode='pull'><server transport='unix' socket='{FOREIGN_SOCKET}'/></domainbackup>")
        self.virsh("backup-begin", self.name, str(job))

    def abort_job(self) -> None:
        """End the backup job from outside, and wait until it has ended: `virsh domjobabort` only asks for it."""
        self.virsh("domjobabort", self.name)
        wait_for(lambda: not self.has_job(), f"the job of {self.name} has ended")

    def end_foreign_backup(self) -> None:
        """End the job, and remove the socket, which libvirt leaves."""
        self.abort_job()
        FOREIGN_SOCKET.unlink(missing_ok=True)

    def start(self, paused: bool = False) -> None:
        """Start the VM and wait until its program runs; paused, there is QEMU with its disks alone."""
        self.console.unlink(missing_ok=True)
        self.virsh("start", *(["--paused"] if paused else []), "--", self.name)
        if paused:
            return
        wait_for(lambda: "guest is up" in self.output(), f"{self.name} has booted", BOOT_S)

    def restart(self) -> None:
        """Start the VM anew, whatever it does."""
        self.virsh("destroy", "--", self.name, check=False)
        self.start()

    def output(self) -> str:
        """What the guest has printed on its console."""
        try:
            return self.console.read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def written(self) -> int:
        """The number of the last write that the guest has told of, 0 before the first."""
        told = re.findall(r"^seq=(\d+) ", self.output()[-LAST_WORDS:], re.MULTILINE)
        return int(told[-1]) if told else 0

    def write_errors(self) -> int:
        """How many of the guest's writes have failed; while they do, there is no line that sums them up."""
        output = self.output()
        told = [int(n) for n in re.findall(r"errors=(\d+)", output)]
        return max([*told, len(re.findall(r"^error: write", output, re.MULTILINE))])

    def longest_write_us(self) -> int:
        """The longest write of the guest so far, in microseconds."""
        return max((int(n) for n in re.findall(r"longest_us=(\d+)", self.output())), default=0)

    def lines(self) -> int:
        """How many lines the guest has told to have written to its root disk or ext4 file system."""
        return max((int(n) for n in re.findall(r"^lines=(\d+)", self.output(), re.MULTILINE)), default=0)

    def keeps_writing(self, writes: int = 1) -> None:
        """Wait until the guest has made so many more writes."""
        goal = self.written() + writes
        wait_for(lambda: self.written() >= goal, f"{self.name} has made {writes} more writes", BOOT_S)

    @contextlib.contextmanager
    def throttled(self, requests_per_s: int) -> Iterator[None]:
        """Let each disk have no more reads and writes than that a second."""
        for disk in self.disks:
            self.virsh("blkdeviotune", self.name, disk.name, "--total-iops-sec", str(requests_per_s), "--live")
        try:
            yield
        finally:
            for disk in self.disks:
                self.virsh("blkdeviotune", self.name, disk.name, "--total-iops-sec", "0", "--live")

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        """The guest stands still in the block."""
        self.virsh("suspend", self.name)
        try:
            yield
        finally:
            self.virsh("resume", self.name)

    def read_disks(self) -> list[bytes]:
        """What the disks hold at one moment, as their files tell, past QEMU."""
        with self.suspended():
            return self.read_images()

    def read_images(self) -> list[bytes]:
        """What the files of the disks hold, while nobody writes to them."""
        with tempfile.TemporaryDirectory(dir=self.directory) as copies:
            return [_read_image(disk.place or self.directory, disk, Path(copies, disk.name)) for disk in self.disks]

    def state(self) -> str:
        return self.virsh("domstate", "--", self.name).strip()

    def uuid(self) -> str:
        return self.virsh("domuuid", "--", self.name).strip()

    def targets(self) -> list[str]:
        """The disks, as libvirt names them."""
        return [line.split()[0] for line in self.virsh("domblklist", self.name).splitlines()]

    def has_job(self) -> bool:
        """Whether a backup job runs."""
        return "Backup" in self.virsh("domjobinfo", "--", self.name, check=False)

    def qemu_pid(self) -> int:
        """Of its QEMU; the file that tells it is not always called as the VM is."""
        argument = f"-uuid\0{self.uuid()}\0".encode()
        pids = [int(file.read_text()) for file in Path("/run/libvirt/qemu").glob("*.pid")]
        (pid,) = (pid for pid in pids if argument in _command_line(pid))
        return pid

    def remove(self) -> None:
        """Destroy and undefine the VM, and wait until QEMU has gone.  libvirt refuses while it waits for a VM's job."""
        wait_for(self._is_removed, f"{self.name} is removed", REMOVE_S)
        FOREIGN_SOCKET.unlink(missing_ok=True)

    def _is_removed(self) -> bool:
        self.virsh("destroy", "--", self.name, check=False)
        self.virsh("undefine", "--checkpoints-metadata", "--nvram", "--", self.name, check=False)
        return self.name not in self.virsh("list", "--all", "--name").splitlines()


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""  # it has ended


@contextlib.contextmanager
def running(
    name: str,
    disks: Sequence[Disk],
    *,
    command_line: str = "",
    agent: bool = False,
    extra_devices: str = "",
    start: bool = True,
    paused: bool = False,
    uri: str = SYSTEM,
    account: Account | None = None,
    direct_kernel: bool = True,
    efi: bool = False,
) -> Iterator[VM]:
    """A VM, started, that is destroyed and removed with all its files at the end.

    A `paused` one is there at once, for tests to which its guest is all the same.
    Without `direct_kernel` the firmware boots from its first disk; with `efi` that is UEFI, as libvirt chooses it.
    """
    with contextlib.ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix=f"{PREFIX}-", dir=account.home if account else IMAGES))
        stack.callback(shutil.rmtree, directory)
        directory.chmod(0o755)
        vm = VM(name, directory, uri, disks, account)
        xml = directory / "domain.xml"
        xml.write_text(_domain(vm, stack, command_line, agent, extra_devices, direct_kernel, efi))
        if account:
            account.own(directory)
        vm.virsh("define", str(xml))
        stack.callback(vm.remove)
        if start:
            vm.start(paused)
        yield vm


def _domain(
    vm: VM,
    stack: contextlib.ExitStack,
    command_line: str,
    agent: bool,
    extra_devices: str,
    direct_kernel: bool,
    efi: bool,
) -> str:
    devices = "".join(_disk_xml(vm.directory, disk, stack) for disk in vm.disks) + extra_devices
    if agent:
        devices += "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"
        command_line += " snapmount.agent"
    boot = _direct_kernel(vm, command_line, has_tpm="<tpm" in devices) if direct_kernel else ""
    if efi:
        boot += "<firmware><feature enabled='no' name='secure-boot'/></firmware>"
    return f"""
<domain type='{guest.domain_type()}'>
  <name>{escape(vm.name)}</name>
  <memory unit='MiB'>{256 if efi else 128}</memory>
  <iothreads>{int(any(disk.iothread for disk in vm.disks))}</iothreads>
  <os{" firmware='efi'" if efi else ""}>
    <type arch='x86_64'{" machine='q35'" if efi else ""}>hvm</type>
    {boot}
  </os>
  <features><acpi/></features>
  <devices>
    {devices}
    <serial type='file'><source path={quoteattr(str(vm.console))}/></serial>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
  </devices>
</domain>"""


def _direct_kernel(vm: VM, command_line: str, *, has_tpm: bool) -> str:
    """A kernel that is unpacked, and so booted by PVH, does not see a TPM."""
    built = guest.build()
    kernel = built.kernel if has_tpm else built.unpacked_kernel
    for source in (kernel, built.unpacked_initrd):
        shutil.copy(source, vm.directory)
    return (
        f"<kernel>{escape(str(vm.directory / kernel.name))}</kernel>"
        f"<initrd>{escape(str(vm.directory / built.unpacked_initrd.name))}</initrd>"
        f"<cmdline>console=ttyS0 panic=-1 {SOONER} {escape(command_line)}</cmdline>"
    )


def _disk_xml(directory: Path, disk: Disk, stack: contextlib.ExitStack) -> str:
    path, is_block = make_image(disk.place or directory, disk), disk.kind in ("block", "qcow2-block")
    if is_block:
        path = _on_device(path, disk.device) if disk.device else loop_device(path, stack)
    form = "raw" if disk.kind in ("raw", "block") else "qcow2"
    thread = " iothread='1'" if disk.iothread else ""
    blockio = f"<blockio logical_block_size='{disk.block_bytes}' physical_block_size='{disk.block_bytes}'/>"
    blockio = blockio if disk.block_bytes != 512 else ""
    attribute = "dev" if is_block else "file"
    return (
        f"<disk type='{'block' if is_block else 'file'}' device='disk'>"
        f"<driver name='qemu' type='{form}'{thread}/><source {attribute}={quoteattr(str(path))}/>"
        f"<target dev='{disk.name}' bus='virtio'/>{blockio}</disk>"
    )


def _on_device(image: Path, device: Path) -> Path:
    shutil.copyfile(image, device)
    return device


def make_image(directory: Path, disk: Disk) -> Path:
    """The disk's image, empty or with an ext4 file system."""
    raw = directory / f"{disk.name}.img"
    with raw.open("wb") as f:
        f.truncate(disk.size)
    if disk.ext4:
        subprocess.run(["mkfs.ext4", "-q", raw], check=True)
    if disk.fill:
        disk.fill(raw)
    if disk.kind in ("raw", "block"):
        return raw
    top = directory / f"{disk.name}.qcow2"
    if disk.kind in ("qcow2", "qcow2-block"):
        subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, top], check=True)
        if disk.kind == "qcow2-block":
            os.truncate(top, 2 * disk.size)  # a device does not grow
        return top
    assert disk.kind == "chain", disk.kind
    middle = directory / f"{disk.name}.middle.qcow2"
    for overlay, backing, form in ((middle, raw, "raw"), (top, middle, "qcow2")):
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", backing, "-F", form, overlay], check=True)
    return top


def _read_image(directory: Path, disk: Disk, copy: Path) -> bytes:
    image = directory / (f"{disk.name}.img" if disk.kind in ("raw", "block") else f"{disk.name}.qcow2")
    form = "raw" if image.suffix == ".img" else "qcow2"
    subprocess.run(["qemu-img", "convert", "-U", "-f", form, "-O", "raw", image, copy], check=True)
    return copy.read_bytes()


def loop_device(path: Path, stack: contextlib.ExitStack, *options: str) -> Path:
    """A loop device over the file, detached at the end."""
    device = subprocess.run(
        ["losetup", "-f", "--show", *options, path], capture_output=True, text=True, check=True
    ).stdout.strip()
    stack.callback(subprocess.run, ["losetup", "-d", device], check=True)
    return Path(device)
