"""The daemon of images exports disks as they are, by the formats that it is told; it ends with us."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from snapmount.core.imagechain import Layer
from snapmount.core.origin import Host, NetworkOrigin
from snapmount.core.user import User
from snapmount.errors import StateError
from snapmount.host.processes import Process
from snapmount.images import daemon, nbd

from ..rig import vm
from ..rig.libvirtd import wait_for

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it runs as another user")
KIB = 1 << 10
USER = User(65534, 65534, ())
CONTENT = random.Random(1).randbytes(300 * KIB)
PARENT = """
import sys, trio
from pathlib import Path
from snapmount.core.imagechain import Layer
from snapmount.core.user import User
from snapmount.images import daemon
async def main(image, socket):
    async with daemon.serving({"vda": [Layer("raw", image)]}, Path(socket), User(65534, 65534, ())) as served:
        await trio.to_thread.run_sync(lambda: None)
        print(served.pid, flush=True)
        await trio.sleep_forever()
trio.run(main, *sys.argv[1:])
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    """Closed to others, as the runtime directory and libvirt's images of a VM that is shut off are."""
    with tempfile.TemporaryDirectory(prefix="snapmount-test-") as name:
        yield Path(name)


def make(path: Path, form: str = "raw", *options: str | Path, content: bytes = CONTENT) -> Layer:
    """An image with that content, readable to root alone."""
    raw = path.with_name(f"{path.name}.content")
    raw.write_bytes(content)
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", form, *options, raw, path], check=True)
    raw.unlink()
    path.chmod(0o600)
    return Layer(form, str(path))


def rest_on(below: Layer, overlay: Layer) -> None:
    create = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(below.origin), "-F", below.format]
    subprocess.run([*create, str(overlay.origin)], check=True)


def write(layer: Layer, command: str) -> None:
    subprocess.run(
        ["qemu-io", "-f", layer.format, "-c", command, str(layer.origin)], check=True, stdout=subprocess.DEVNULL
    )


def open_to_all(*paths: Path) -> None:
    for path in paths:
        path.chmod(0o777)


@contextlib.contextmanager
def written_by_another(layer: Layer) -> Iterator[None]:
    with subprocess.Popen(
        ["qemu-io", "-f", layer.format, str(layer.origin)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdin
        assert writer.stdout
        writer.stdin.write(b"write 0 512\n")
        writer.stdin.flush()
        assert b"wrote" in writer.stdout.readline()
        yield
        writer.stdin.close()


async def read(socket: Path, name: str = "vda") -> bytes:
    """All of the disk, by its export."""
    async with nbd.opened(name, str(socket), name, 10) as image:
        return bytes(await image.read(0, image.size_bytes))


async def served(directory: Path, *chain: Layer) -> bytes:
    async with daemon.serving({"vda": chain}, directory / "s", USER):
        return await read(directory / "s")


@pytest.mark.parametrize("form", ["raw", "qcow2", "qcow", "vdi", "vpc", "qed"])
async def test_an_image_that_only_root_may_read_is_shown_byte_for_byte(directory: Path, form: str) -> None:
    layer = make(directory / "vda", form)
    assert (await served(directory, layer))[: len(CONTENT)] == CONTENT


async def test_all_layers_of_a_disk_are_seen(directory: Path) -> None:
    base = make(directory / "base")
    middle, top = (Layer("qcow2", str(directory / name)) for name in ("middle", "top"))
    for overlay, below in ((middle, base), (top, middle)):
        rest_on(below, overlay)
    written = {middle: (1, 70 * KIB), top: (2, 140 * KIB)}
    expected = bytearray(CONTENT)
    for layer, (byte, offset) in written.items():
        write(layer, f"write -P {byte} {offset} 4096")
        expected[offset : offset + 4096] = bytes([byte]) * 4096
    assert await served(directory, top, middle, base) == expected


async def test_a_raw_disk_into_which_a_guest_has_written_the_header_of_another_format_stays_raw(
    directory: Path,
) -> None:
    secret = make(directory / "secret", content=b"s" * 512)
    overlay = directory / "overlay"
    rest_on(secret, Layer("qcow2", str(overlay)))
    content = overlay.read_bytes()
    assert content.startswith(b"QFI\xfb")
    assert await served(directory, Layer("raw", str(overlay))) == content + bytes(-len(content) % 512)


async def test_a_qcow2_image_with_its_clusters_in_another_file_is_read(directory: Path) -> None:
    layer = make(directory / "vda", "qcow2", "-o", f"data_file={directory / 'data'}")
    chain = Layer("qcow2", layer.origin, data=Layer("raw", str(directory / "data")))
    assert await served(directory, chain) == CONTENT


@pytest.mark.vm
async def test_a_qcow2_image_on_a_block_device_is_read(directory: Path) -> None:
    make(directory / "vda", "qcow2")
    with contextlib.ExitStack() as stack:
        with (directory / "vda").open("ab") as f:
            f.truncate(1024 * KIB)
        device = vm.loop_device(directory / "vda", stack)
        assert await served(directory, Layer("qcow2", str(device), is_device=True)) == CONTENT


async def test_an_image_in_a_network_is_read(directory: Path) -> None:
    layer = make(directory / "vda", "qcow2")
    async with daemon.serving({"x/y": [Layer("raw", layer.origin)]}, directory / "far", USER):
        open_to_all(directory, directory / "far")
        far = NetworkOrigin("nbd", "x/y", (Host(socket=str(directory / "far")),), "unix")
        assert await served(directory, Layer("qcow2", far)) == CONTENT


async def test_several_disks_are_exported_by_one_daemon(directory: Path) -> None:
    disks = {f"sd{n}": [make(directory / f"sd{n}", content=bytes([n]) * 512)] for n in range(3)}
    async with daemon.serving(disks, directory / "s", USER):
        for n, name in enumerate(disks):
            assert await read(directory / "s", name) == bytes([n]) * 512


async def test_nothing_can_be_written(directory: Path) -> None:
    layer = make(directory / "vda")
    async with daemon.serving({"vda": [layer]}, directory / "s", USER):
        write = ["qemu-io", "-f", "raw", "-c", "write 0 512", f"nbd+unix:///vda?socket={directory / 's'}"]
        assert (await trio.run_process(write, check=False, capture_stdout=True, capture_stderr=True)).returncode
    assert (directory / "vda").read_bytes() == CONTENT


async def test_it_has_no_rights_but_to_read(directory: Path) -> None:
    async with daemon.serving({"vda": [make(directory / "vda")]}, directory / "s", USER) as served_by:
        told = await trio.Path(f"/proc/{served_by.pid}/status").read_text()
    status = dict(line.split(":\t", 1) for line in told.splitlines())
    assert status["Uid"].split() == ["65534"] * 4
    only_reading = f"{1 << 2:016x}"  # CAP_DAC_READ_SEARCH
    assert {status[each] for each in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {only_reading}
    assert status["NoNewPrivs"] == "1"


async def test_at_the_end_it_is_gone_with_its_socket(directory: Path) -> None:
    async with daemon.serving({"vda": [make(directory / "vda")]}, directory / "s", USER) as served_by:
        process = Process.of_pid(served_by.pid)
        assert process.runs()
    assert not process.runs()
    assert not (directory / "s").exists()


async def test_when_it_is_killed_that_is_told(directory: Path) -> None:
    async with daemon.serving({"vda": [make(directory / "vda")]}, directory / "s", USER) as served_by:
        os.kill(served_by.pid, signal.SIGKILL)
        with trio.fail_after(10):
            assert await served_by.wait_ended() == "qemu-storage-daemon was killed (SIGKILL)"


def test_it_ends_with_a_parent_that_is_killed_and_another_takes_its_place(directory: Path) -> None:
    layer = make(directory / "vda")
    for _ in range(2):  # the second one finds the first one's socket
        command = [sys.executable, "-c", PARENT, str(layer.origin), str(directory / "s")]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
            assert parent.stdout
            process = Process.of_pid(int(parent.stdout.readline()))
            assert process.runs()
            parent.kill()
        wait_for(lambda: not process.runs(), "the daemon has ended")  # noqa: B023


async def test_a_path_that_is_too_long_for_a_socket_is_an_error(directory: Path) -> None:
    layer = make(directory / "vda")
    with pytest.raises(StateError, match=r"/xxx.* cannot be made: .*too long"):
        async with daemon.serving({"vda": [layer]}, directory / ("x" * 100), USER):
            pass


@pytest.mark.parametrize(
    ("make_wrong", "told"),
    [
        (lambda path: path.unlink(), "No such file or directory"),
        (lambda path: path.write_bytes(b"x" * 1024), "Image is not in qcow2 format"),
    ],
    ids=["missing", "broken"],
)
async def test_an_image_that_cannot_be_opened_is_an_error_in_qemu_s_words(
    directory: Path, make_wrong: object, told: str
) -> None:
    layer = make(directory / "vda", "qcow2")
    make_wrong(directory / "vda")  # type: ignore[operator]
    with pytest.raises(StateError, match=f"^QEMU cannot open the images: .*{told}$"):
        await served(directory, layer)


async def test_an_image_that_another_process_writes_to_is_named(directory: Path) -> None:
    layer = make(directory / "vda", "qcow2")
    with (
        written_by_another(layer),
        pytest.raises(StateError, match=f"another process has {layer.origin} open") as caught,
    ):
        await served(directory, layer)
    assert caught.value.remedy
    assert "fuser" in caught.value.remedy
