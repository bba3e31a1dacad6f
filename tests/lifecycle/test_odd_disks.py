"""Disks out of the ordinary, on real libvirt: what others can write is refused or left out, and a way on is named."""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..hypervisor.test_writers import mounted, open_in_another_process
from ..rig import traces, vm
from ..rig.command import read_direct, refused, snapmount, snapmount_json
from ..rig.libvirtd import wait_for

pytestmark = pytest.mark.vm
NAME = f"{vm.PREFIX}-disks"
OTHER = f"{NAME}-other"
SIZE = 8 << 20


def disk(name: str, source: str, rest: str = "", kind: str = "file", form: str = "raw") -> str:
    return (
        f"<disk type='{kind}' device='disk'><driver name='qemu' type='{form}'/>{source}"
        f"<target dev='{name}' bus='virtio'/>{rest}</disk>"
    )


def remedy_of(message: str) -> list[str]:
    """The words of the command that a refusal names, without `snapmount`."""
    [told] = [line.removeprefix("  try: ") for line in message.splitlines() if line.startswith("  try: ")]
    words = shlex.split(told.partition("   (")[0])
    assert words.pop(0) == "snapmount"
    return words


@pytest.fixture(scope="module")
def images(libvirt: None) -> Iterator[Path]:
    """A directory with images of 8 MiB, which QEMU's user can reach."""
    directory = vm.IMAGES / f"{NAME}-images"
    directory.mkdir()
    try:
        for name in ("shared", "transient", "read-only", "exported", "exported-too"):
            (directory / name).write_bytes(os.urandom(1 << 20) + bytes(SIZE - (1 << 20)))
        (directory / "fat").mkdir()
        (directory / "fat/file").write_text("of the host")
        subprocess.run(["chmod", "-R", "a+rwX", directory], check=True)
        yield directory
    finally:
        subprocess.run(["rm", "-r", directory], check=True)


@pytest.fixture(scope="module")
def shared_odd(images: Path) -> Iterator[vm.VM]:
    devices = (
        disk("vdc", f"<source dir='{images}/fat'/>", "<readonly/>", kind="dir", form="fat")
        + disk("vdd", f"<source file='{images}/transient'/>", "<transient/>")
        + disk("vde", f"<source file='{images}/shared'/>", "<shareable/>")
        + disk("vdf", f"<source file='{images}/read-only'/>", "<shareable/><readonly/>")
    )
    with vm.running(NAME, [vm.Disk("vda"), vm.Disk("vdb", "block")], paused=True, extra_devices=devices) as running:
        yield running


@pytest.fixture
def odd(shared_odd: vm.VM, clean: None) -> vm.VM:
    """A paused VM: a file, a block device, and disks that are a directory, transient, shareable, read-only as well."""
    return shared_odd


def test_a_disk_that_others_may_write_is_refused_and_the_command_that_is_named_takes_the_rest(
    odd: vm.VM, images: Path, mountpoint: Path
) -> None:
    message = refused(odd.name, mountpoint, code=4)
    assert f"{odd.name}: vde may be shared with other VMs and hosts (<shareable/>)" in message
    assert remedy_of(refused("boot", odd.name, code=4)) == ["boot", odd.name, "--exclude-disk", "vde"]

    shown = snapmount_json(*remedy_of(message))
    assert [each["name"] for each in shown["disks"]] == ["vda", "vdb", "vdf"]
    assert {each["name"]: each["why"] for each in shown["left_out"]} == {
        "vdc": "a directory of the host",
        "vdd": "transient: what the guest writes to it is thrown away",
        "vde": "excluded",
    }
    assert read_direct(mountpoint / "vdf.raw") == (images / "read-only").read_bytes()
    with vm.running(OTHER, [], paused=True, extra_devices=both(images)):
        pass  # it is not kept from starting
    snapmount("delete", odd.name)


def both(images: Path) -> str:
    return disk("vda", f"<source file='{images}/shared'/>", "<shareable/>") + disk(
        "vdb", f"<source file='{images}/read-only'/>", "<shareable/><readonly/>"
    )


@pytest.mark.parametrize(("name", "why"), [("vdc", "a directory of the host"), ("vdd", "transient: ")])
def test_what_can_be_no_part_of_a_snapshot_is_refused_by_name(
    odd: vm.VM, mountpoint: Path, name: str, why: str
) -> None:
    assert f"{name} cannot be part of a snapshot: {why}" in refused(odd.name, mountpoint, "--disk", name, code=4)


def test_a_read_only_disk_that_another_vm_writes_to_is_refused_and_the_vm_named(
    odd: vm.VM, images: Path, mountpoint: Path
) -> None:
    writable = disk("vda", f"<source file='{images}/read-only'/>", "<shareable/>")
    with vm.running(OTHER, [], paused=True, extra_devices=writable):
        message = refused(odd.name, mountpoint, "--exclude-disk", "vde", code=4)
    assert f"vdf ({images}/read-only) is open for writing by the VM {OTHER} (process " in message
    assert remedy_of(message)[2:] == ["--exclude-disk", "vde", "--exclude-disk", "vdf"]


def test_a_block_device_that_another_vm_has_too_is_refused(odd: vm.VM, mountpoint: Path) -> None:
    """QEMU does not lock block devices."""
    device = odd.virsh("domblklist", odd.name).split()[3]
    with vm.running(OTHER, [], paused=True, extra_devices=disk("vda", f"<source dev='{device}'/>", kind="block")):
        assert f"vdb ({device}) is open for writing by the VM {OTHER}" in refused(
            odd.name, mountpoint, "--disk", "vdb", code=4
        )


def test_a_block_device_that_this_host_has_mounted_is_refused(odd: vm.VM, mountpoint: Path, tmp_path: Path) -> None:
    device = odd.virsh("domblklist", odd.name).split()[3]
    subprocess.run(["mkfs.ext4", "-q", device], check=True)
    with mounted(device, tmp_path / "mnt"):
        message = refused(odd.name, mountpoint, "--exclude-disk", "vde", code=4)
    assert f"vdb ({device}) is mounted at {tmp_path}/mnt on this host: writes that do not pass" in message
    assert "--exclude-disk vde --exclude-disk vdb" in message


def test_an_image_that_another_process_writes_to_is_refused(odd: vm.VM, mountpoint: Path) -> None:
    with open_in_another_process(odd.directory / "vda.img") as pid:
        assert f"is open for writing by process {pid}" in refused(odd.name, mountpoint, "--disk", "vda", code=4)
    snapmount(odd.name, mountpoint, "--disk", "vda")
    snapmount("delete", odd.name)


def test_while_a_block_job_runs_the_disk_is_refused_and_the_job_named(
    odd: vm.VM, images: Path, mountpoint: Path
) -> None:
    copy = images / "copy"
    odd.virsh("blockcopy", odd.name, "vda", str(copy), "--transient-job")
    try:
        message = refused(odd.name, mountpoint, "--disk", "vda", code=4)
        assert f"{odd.name}: a block job (copy) runs on vda, and a disk can have one at a time" in message
        assert f"  try: virsh blockjob {odd.name} vda " in message
        snapmount(odd.name, mountpoint, "--disk", "vdb")
        snapmount("delete", odd.name)
    finally:
        odd.virsh("blockjob", odd.name, "vda", "--abort")


# -- network -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def exported(image: Path, *where: str) -> Iterator[None]:
    """The image as an NBD export that several clients can have."""
    command = ["qemu-nbd", "--persistent", "--shared=9", "--format=raw", "--export-name=exp", *where, str(image)]
    with subprocess.Popen(command) as server:
        try:
            yield
        finally:
            server.terminate()


def test_a_network_disk_is_named_by_a_uri_and_refused_while_another_vm_has_it(
    clean: None, images: Path, mountpoint: Path
) -> None:
    path, port = images / "nbd.sock", free_port()
    unix = f"<source protocol='nbd' name='exp'><host transport='unix' socket='{path}'/></source>"
    tcp = f"<source protocol='nbd' name='exp'><host name='127.0.0.1' port='{port}'/></source>"
    image, other = images / "exported", images / "exported-too"
    with (
        exported(image, f"--socket={path}"),
        exported(other, "--bind=127.0.0.1", f"--port={port}"),
    ):
        wait_for(lambda: path.exists() and answers(port), "the NBD servers answer")
        path.chmod(0o777)
        devices = disk("vda", unix, kind="network") + disk("vdb", tcp, kind="network")
        with vm.running(f"{NAME}-remote", [], paused=True, extra_devices=devices) as remote:
            origins = {"vda": f"nbd+unix:///exp?socket={path}", "vdb": f"nbd://127.0.0.1:{port}/exp"}
            taken = snapmount(remote.name, mountpoint).stdout
            assert all(origin in taken for origin in origins.values())
            assert {each["name"]: each["origin"] for each in snapmount_json("show", remote.name)["disks"]} == origins
            assert read_direct(mountpoint / "vda.raw") == image.read_bytes()
            snapmount("delete", remote.name)
            with vm.running(OTHER, [], paused=True, extra_devices=disk("vdx", tcp, kind="network")):
                message = refused(remote.name, mountpoint, code=4)
            assert f"vdb is the disk vdx of {OTHER} too, which runs" in message
            snapmount(*remedy_of(message))
            snapmount("delete", remote.name)
    assert traces.found() == []


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True
