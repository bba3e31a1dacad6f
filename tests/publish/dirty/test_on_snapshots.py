"""`snapmount dirty` on snapshots: the extents and the bytes of their disks, for several readers at once; a stream that
does not come to its end says why, and never looks whole.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest

from ...rig import libiscsi, servers, traces, vm
from ...rig.command import SNAPMOUNT, read_direct, refused, snapmount, snapmount_json, state_of
from ...rig.libvirtd import wait_for

pytestmark = pytest.mark.vm
MIB = 1 << 20


def fill(path: Path) -> None:
    """Random data, more than what lies in the buffers between two processes, and some at the disk's end."""
    with path.open("r+b") as f:
        size = f.seek(0, os.SEEK_END)
        for start, length in ((0, 8 * MIB), (size // 2, 70_000), (size - 4096, 4096)):
            f.seek(start)
            f.write(os.urandom(length))


@pytest.fixture(scope="module")
def shared(libvirt: None) -> Iterator[vm.VM]:
    """A VM that is shut off: a disk that its server reads itself, and one that a QEMU exports."""
    disks = [vm.Disk("vda", "raw", fill=fill), vm.Disk("vdb", "qcow2", fill=fill)]
    with vm.running(f"{vm.PREFIX}-dirty", disks, start=False) as off:
        yield off


@pytest.fixture
def off(shared: vm.VM, clean: None) -> vm.VM:
    return shared


def extents(shown: str) -> list[tuple[str, int, int, str]]:
    rows = [line.split() for line in shown.splitlines()]
    return [(disk, int(start), int(length), kind) for disk, start, length, kind in rows]


def mapped(mountpoint: Path, *disks: str) -> list[tuple[str, int, int, str]]:
    """What the files of the mount tell."""
    return [
        (disk, each["start"], each["length"], "data" if each["data"] else "zero")
        for disk in disks
        for each in json.loads((mountpoint / f"{disk}.map").read_text())
    ]


def parsed(stream: bytes) -> tuple[dict[str, Any], list[tuple[dict[str, Any], bytes]], dict[str, Any] | None]:
    """The first line, the extents with their bytes, and the last line of what --data prints, as the man page tells
    it.
    """
    at = 0

    def line() -> Any:
        nonlocal at
        begin, at = at, stream.index(b"\n", at) + 1
        return json.loads(stream[begin:at])

    head, found = line(), list[tuple[dict[str, Any], bytes]]()
    while at < len(stream):
        said = line()
        if "end" in said:
            assert at == len(stream)
            return head, found, said
        data = stream[at : at + said["length"]] if said["data"] else b""
        at += len(data)
        found.append((said, data))
    return head, found, None


def restored(stream: bytes, disk: str) -> bytes:
    """The disk, from a stream that is whole."""
    head, found, end = parsed(stream)
    assert end
    (size,) = (each["size_bytes"] for each in head["disks"] if each["name"] == disk)
    image = bytearray(size)
    for said, data in found:
        if said["disk"] == disk and data:
            assert len(data) == said["length"]
            image[said["start"] : said["start"] + len(data)] = data
    return bytes(image)


def data_of(*words: str) -> bytes:
    return subprocess.run([SNAPMOUNT, "dirty", "--data", *words], check=True, capture_output=True).stdout


def test_all_extents_of_a_snapshot_without_a_checkpoint_are_dirty(off: vm.VM, mountpoint: Path) -> None:
    taken = snapmount_json(off.name, mountpoint)
    shown = extents(snapmount("dirty", off.name).stdout)
    assert shown == mapped(mountpoint, "vda", "vdb")
    assert {kind for *_, kind in shown} == {"data", "zero"}
    assert extents(snapmount("dirty", mountpoint, "--disk", "vdb").stdout) == mapped(mountpoint, "vdb")
    head, *found, end = map(json.loads, snapmount("dirty", "--json", taken["id"]).stdout.splitlines())
    assert head == json.loads((mountpoint / "snapshot.json").read_text())
    kinds = {True: "data", False: "zero"}
    assert [(each["disk"], each["start"], each["length"], kinds[each["data"]]) for each in found] == shown
    sums = {kind: sum(length for *_, length, each in shown if each == kind) for kind in ("data", "zero")}
    assert end == {"end": True, "data_bytes": sums["data"], "zero_bytes": sums["zero"]}
    assert not (mountpoint / "vda.dirty").exists()
    snapmount("delete", off.name)
    assert traces.found() == []


def test_the_bytes_of_the_disks_follow(off: vm.VM, mountpoint: Path) -> None:
    snapmount(off.name, mountpoint)
    stream = data_of(off.name)
    for disk in ("vda", "vdb"):
        assert restored(stream, disk) == (mountpoint / f"{disk}.raw").read_bytes()
    assert len(stream) < 2 * (8 * MIB + 200_000), "zeros carry no bytes"
    assert restored(data_of(off.name, "--disk", "vda"), "vda") == (mountpoint / "vda.raw").read_bytes()
    snapmount("delete", off.name)


def test_a_standard_output_that_does_not_block_gets_all_of_them(off: vm.VM, mountpoint: Path) -> None:
    snapmount(off.name, mountpoint)
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    with subprocess.Popen([SNAPMOUNT, "dirty", "--data", off.name], stdout=write_end) as process:
        os.close(write_end)
        with os.fdopen(read_end, "rb") as pipe:
            assert restored(pipe.read(), "vda") == (mountpoint / "vda.raw").read_bytes()
    assert process.returncode == 0
    snapmount("delete", off.name)


@contextlib.contextmanager
def reader(*words: str) -> Iterator[subprocess.Popen[bytes]]:
    """A program that reads a stream of bytes, has read the first of them, and reads no more by itself."""
    with subprocess.Popen([SNAPMOUNT, "dirty", "--data", *words], bufsize=0, stdout=PIPE, stderr=PIPE) as process:
        try:
            assert process.stdout
            assert process.stdout.read(1) == b"{"
            yield process
        finally:
            process.kill()


def test_a_reader_that_stops_hinders_nobody_and_reads_on_when_it_likes(off: vm.VM, mountpoint: Path) -> None:
    snapmount(off.name, mountpoint)
    with reader(off.name) as stopped, reader(off.name, "--disk", "vdb") as other:
        stopped.send_signal(signal.SIGSTOP)
        image = read_direct(mountpoint / "vda.raw")
        assert restored(data_of(off.name), "vda") == image
        rest, _ = other.communicate()
        assert restored(b"{" + rest, "vdb") == read_direct(mountpoint / "vdb.raw")
        stopped.send_signal(signal.SIGCONT)
        rest, _ = stopped.communicate()
        assert restored(b"{" + rest, "vda") == image
        assert stopped.returncode == 0
    snapmount("delete", off.name)


def test_readers_that_are_killed_leave_nothing_in_the_server(off: vm.VM, mountpoint: Path) -> None:
    server = snapmount_json(off.name, mountpoint)["server"]["pid"]
    read_direct(mountpoint / "vda.raw")
    data_of(off.name)  # after which it has all connections to the disks that it keeps
    before = descriptors(server)
    for _ in range(3):
        with reader(off.name):
            pass
    wait_for(lambda: descriptors(server) == before, "the server has closed what it had opened for them")
    snapmount("delete", off.name)
    assert traces.found() == []


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def delete(off: vm.VM, _taken: dict[str, Any]) -> None:
    snapmount("delete", off.name)


def lose(off: vm.VM, _taken: dict[str, Any]) -> None:
    os.utime(off.directory / "vda.img")
    wait_for(lambda: state_of(off.name)[0] == "lost", "it is lost")


def kill_server(_off: vm.VM, taken: dict[str, Any]) -> None:
    servers.kill(taken)


@pytest.mark.parametrize(
    ("happens", "told"),
    [
        (delete, "has ended before all of it was read"),
        (lose, "vda.img has been written to"),
        (kill_server, "its server has died before all of it was read"),
    ],
)
def test_a_stream_that_ends_too_soon_says_why_and_does_not_look_whole(
    off: vm.VM, mountpoint: Path, happens: Callable[[vm.VM, dict[str, Any]], None], told: str
) -> None:
    taken = snapmount_json(off.name, mountpoint)
    with reader(off.name) as process:
        happens(off, taken)
        rest, complaint = process.communicate()
    _, _, end = parsed(b"{" + rest)
    assert (process.returncode, end) == (4, None)
    assert told in complaint.decode()
    assert b"Traceback" not in complaint
    if happens is lose:
        assert "its state is 'lost'" in refused("dirty", off.name, code=4)
    snapmount("delete", off.name, check=happens is not delete)
    assert traces.found() == []


def test_a_dead_server_s_snapshot_is_re_attached_and_read(off: vm.VM, mountpoint: Path) -> None:
    taken = snapmount_json(off.name, mountpoint)
    before = snapmount("dirty", off.name).stdout
    servers.kill(taken)
    done = snapmount("dirty", off.name)
    assert done.stdout == before
    assert "re-attached to snapshot" in done.stderr
    snapmount("delete", off.name)


def test_a_snapshot_that_is_only_published_is_read(off: vm.VM) -> None:
    libiscsi.skip_where_missing()
    portal = f"127.0.0.1:{libiscsi.free_port()}"
    snapmount("--iscsi", "--target", "tgt", "--portal", portal, off.name)
    assert {disk for disk, *_ in extents(snapmount("dirty", off.name).stdout)} == {"vda", "vdb"}
    snapmount("delete", off.name)


def test_a_snapshot_in_the_foreground_is_read(off: vm.VM, mountpoint: Path) -> None:
    with subprocess.Popen([SNAPMOUNT, "--foreground", off.name, mountpoint], stdout=PIPE, stderr=PIPE) as process:
        wait_for(lambda: [each["state"] for each in snapmount_json("list")] == ["active"], "it is there")
        assert extents(snapmount("dirty", off.name).stdout) == mapped(mountpoint, "vda", "vdb")
        process.send_signal(signal.SIGINT)
        process.communicate()
    assert process.returncode == 0


def test_a_pipe_that_is_closed_is_the_end_without_a_word(off: vm.VM, mountpoint: Path) -> None:
    snapmount(off.name, mountpoint)
    for option in ("--data", "--json"):
        script = f"{SNAPMOUNT} dirty {option} {off.name} | head -c 1; exit ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
        assert (done.stdout, done.stderr) == ("{", "")
        assert done.returncode in ((141,) if option == "--data" else (0, 141)), "all of it may have fitted the pipe"
    snapmount("delete", off.name)


def test_what_cannot_be_read_is_refused_with_what_there_is(off: vm.VM, mountpoint: Path) -> None:
    assert "there is no snapshot" in refused("dirty", off.name, code=3)
    taken = snapmount_json("--disk", "vda", off.name, mountpoint)
    assert f"snapshot {taken['id']} has vda, and not vdb" in refused("dirty", off.name, "--disk", "vdb", code=3)
    assert "--data and --json do not go together" in refused("dirty", off.name, "--data", "--json", code=2)
    snapmount("delete", off.name)
