"""Whoever else on this host can write to a VM's image is found: a process, a mount, swap; who reads it is let be."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapmount.hypervisor import writers
from snapmount.hypervisor.writers import Image

from ..rig import vm

UUID = "6695eb01-f6a4-8304-79aa-97f2502e193f"
HOLD = "import os, sys; os.open(sys.argv[1], int(sys.argv[2])); print('open', flush=True); sys.stdin.read()"


@contextlib.contextmanager
def open_in_another_process(path: Path, flags: int = os.O_RDWR, arguments: tuple[str, ...] = ()) -> Iterator[int]:
    """A process that has the file open; yields its id."""
    command = [sys.executable, "-c", HOLD, str(path), str(flags), *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"open\n"
        yield process.pid
        process.communicate()


@pytest.fixture
def image(tmp_path: Path) -> Image:
    path = tmp_path / "vda.img"
    path.write_bytes(bytes(8 << 20))
    return Image("vda", str(path))


def found(image: Image) -> list[str]:
    return [writer.what for writer in writers.find([image], UUID)]


def test_an_image_that_nobody_writes_to_has_no_writer(image: Image, tmp_path: Path) -> None:
    with open_in_another_process(Path(image.path), os.O_RDONLY), open_in_another_process(tmp_path / "x", 0o101):
        assert found(image) == []


@pytest.mark.parametrize("flags", [os.O_RDWR, os.O_WRONLY])
def test_a_process_that_has_the_image_open_for_writing_is_named(image: Image, flags: int) -> None:
    with open_in_another_process(Path(image.path), flags) as pid:
        name = Path(f"/proc/{pid}/comm").read_text().strip()
        assert found(image) == [f"({image.path}) is open for writing by process {pid} ({name})"]


def test_an_image_is_known_by_another_name(image: Image, tmp_path: Path) -> None:
    link = tmp_path / "another"
    link.hardlink_to(image.path)
    with open_in_another_process(link):
        assert len(found(image)) == 1


def test_an_image_that_only_qemu_may_look_at_is_known_by_its_path(
    image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    too_long = f"/{'x' * 5000}"
    assert writers._key(too_long) == too_long, "any error but that it is not there"
    monkeypatch.setattr(writers, "_key", str)
    with open_in_another_process(Path(image.path)):
        assert len(found(image)) == 1


def test_a_file_that_was_replaced_is_another(image: Image) -> None:
    path = Path(image.path)
    with open_in_another_process(path):
        path.unlink()
        path.write_bytes(b"")
        assert found(image) == []


def test_the_vm_s_own_qemu_may_write_and_another_vm_is_named(image: Image) -> None:
    path = Path(image.path)
    with open_in_another_process(path, arguments=("-name", "guest=vm1,debug-threads=on", "-uuid", UUID)):
        assert found(image) == []
    with open_in_another_process(path, arguments=("-name", "guest=vm2,debug-threads=on", "-uuid", "x")) as pid:
        assert found(image) == [f"({path}) is open for writing by the VM vm2 (process {pid})"]


def test_what_is_no_image_of_this_host_has_no_writer(tmp_path: Path) -> None:
    for path in (tmp_path / "gone", tmp_path, Path("/dev/null")):
        assert found(Image("vda", str(path))) == []


async def test_who_writes_no_more_at_a_second_look_has_not_written(
    image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter([[writers.Writer("vda", "is open")], []])
    monkeypatch.setattr(writers, "find", lambda *_: next(looks))
    monkeypatch.setattr(writers, "AGAIN_S", 0)
    assert await writers.faults([image], UUID) == {}
    assert list(looks) == []


async def test_who_writes_on_makes_the_disk_unfit(image: Image) -> None:
    with open_in_another_process(Path(image.path)) as pid:
        told = await writers.faults([image], UUID)
    assert told.keys() == {"vda"}
    assert f"process {pid}" in told["vda"]
    assert await writers.faults([], UUID) == {}


def test_a_look_takes_no_time_to_speak_of_however_many_files_are_open(image: Image, tmp_path: Path) -> None:
    files = [os.open(tmp_path / str(number), os.O_CREAT | os.O_WRONLY) for number in range(800)]
    try:
        start_s = time.thread_time()
        assert found(image) == []
        assert time.thread_time() - start_s < 2
    finally:
        for file in files:
            os.close(file)


# -- what the kernel does ----------------------------------------------------------------------------------------------


@pytest.fixture
def device(image: Image) -> Iterator[Image]:
    """A block device of the VM's: a loop device over the file, with an ext4 file system."""
    if os.geteuid() != 0:
        pytest.skip("needs root: the test makes loop devices and mounts")
    subprocess.run(["mkfs.ext4", "-q", image.path], check=True)
    with contextlib.ExitStack() as stack:
        yield Image("vda", str(vm.loop_device(Path(image.path), stack)))


@contextlib.contextmanager
def mounted(source: str, target: Path, *options: str) -> Iterator[None]:
    target.mkdir()
    subprocess.run(["mount", *options, source, target], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", target], check=True)


@pytest.mark.vm
def test_a_block_device_that_the_host_has_mounted_is_told(device: Image, tmp_path: Path) -> None:
    assert found(device) == []
    with mounted(device.path, tmp_path / "read only", "-o", "ro"):
        assert found(device) == []
    with mounted(device.path, tmp_path / "mnt"):
        assert found(device) == [f"({device.path}) is mounted at {tmp_path}/mnt on this host"]


@pytest.mark.vm
def test_a_file_that_the_host_has_mounted_by_a_loop_device_is_told(image: Image, device: Image, tmp_path: Path) -> None:
    name = Path(device.path).name
    assert found(image) == [], "nobody uses the loop device"
    with mounted(device.path, tmp_path / "mnt"):
        assert found(image) == [f"({image.path}, there: {name}) is mounted at {tmp_path}/mnt on this host"]
    with open_in_another_process(Path(device.path)) as pid:
        [told] = found(image)
        assert told.startswith(f"({image.path}, there: {name}) is open for writing by process {pid}")


@pytest.mark.vm
def test_swap_is_told(device: Image) -> None:
    subprocess.run(["mkswap", "-q", device.path], check=True)
    if subprocess.run(["swapon", device.path]).returncode:
        pytest.skip("this host's kernel has no swap")
    try:
        assert found(device) == [f"({device.path}) is used as swap on this host"]
    finally:
        subprocess.run(["swapoff", device.path], check=True)
