"""The qcow2 files of a mount: sound for QEMU, the right bytes, and as fast as the raw ones, past Python."""

from __future__ import annotations

import mmap
import os
import random
import subprocess
from array import array
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from snapmount.publish.fuse.extension import extension

from ...rig import qcow2
from ...rig.nbdkit import DISK, Server
from . import test_fast_files, test_fast_reads
from .test_fast_files import python_stands_still, until_fast
from .test_fast_reads import MIB, PART, assert_eio, make_patchy, read_direct

pytestmark = pytest.mark.vm
directory = test_fast_reads.directory
serving = test_fast_reads.serving
KIB = 1 << 10
CLUSTER = 64 * KIB
METADATA = 5 * CLUSTER  # of a disk with few clusters: header, refcount table, L1, a block of refcounts, an L2 table
PATCHES = pytest.mark.parametrize(
    ("data_max", "hole_max"), [(MIB, 3 * MIB), (20_000, 300_000), (5000, 20_000)], ids=["large", "mixed", "small"]
)


@pytest.fixture(autouse=True)
def _can_mount() -> None:
    if os.geteuid() != 0 or not os.access("/dev/fuse", os.R_OK):
        pytest.skip("needs root and /dev/fuse")


def assert_is_read_right(image: Path, raw: Path) -> None:
    """By QEMU, and by many readers past the page cache, and alike each time."""
    qcow2.assert_sound(image)
    qcow2.assert_equal(image, raw)
    whole = image.read_bytes()
    assert len(whole) == image.stat().st_size

    def read_some(seed: int) -> None:
        generator = random.Random(seed)
        for _ in range(100):
            offset = generator.randrange(0, len(whole) // 4096) * 4096
            length = 4096 * generator.choice((1, 1, 2, 31, 32, 33, 256))
            assert read_direct(image, offset, length) == whole[offset : offset + length], (offset, length)

    with ThreadPoolExecutor(8) as readers:
        list(readers.map(read_some, range(8)))
    assert not any(whole[start:end].strip(b"\0") for start, end in holes(image))


def holes(path: Path) -> Iterator[tuple[int, int]]:
    size = path.stat().st_size
    with path.open("rb", buffering=0) as f:
        start = os.lseek(f.fileno(), 0, os.SEEK_HOLE)
        while start < size:
            try:
                end = os.lseek(f.fileno(), start, os.SEEK_DATA)
            except OSError:
                end = size
            yield start, end
            start = os.lseek(f.fileno(), end, os.SEEK_HOLE) if end < size else size


@PATCHES
def test_an_export_s_qcow2_file_is_sound_equal_and_read_right(directory: Path, data_max: int, hole_max: int) -> None:
    raw = directory / "vda"
    make_patchy(raw, data_max, hole_max)
    with test_fast_reads.qemu(raw) as socket, test_fast_reads.mounted(directory, socket, "vda") as (mount, _):
        assert_is_read_right(mount / "vda.qcow2", raw)


@PATCHES
@pytest.mark.parametrize("cluster_bytes", [4 * KIB, CLUSTER, 2 * MIB])
def test_a_local_file_s_qcow2_file_is_sound_equal_and_read_right(
    directory: Path, data_max: int, hole_max: int, cluster_bytes: int
) -> None:
    """With small clusters a read is of more runs than are read past Python at once."""
    raw = directory / "vda"
    make_patchy(raw, data_max, hole_max)
    with raw.open("ab") as f:
        f.write(b"end")  # within a sector
    with test_fast_files.mounted(directory, raw, cluster_bytes=cluster_bytes) as (mount, _):
        assert_is_read_right(mount / "vda.qcow2", raw)


def test_a_sparse_copy_has_the_same_holes_and_is_an_image(directory: Path) -> None:
    raw, copy = directory / "vda", directory / "copy"
    make_patchy(raw, 20_000, 300_000)
    with test_fast_files.mounted(directory, raw) as (mount, _):
        shown = mount / "vda.qcow2"
        subprocess.run(["cp", "--sparse=auto", shown, copy], check=True)
        assert copy.stat().st_blocks <= shown.stat().st_blocks < shown.stat().st_size // 512
        assert copy.read_bytes() == shown.read_bytes()
    qcow2.assert_sound(copy)
    qcow2.assert_equal(copy, raw)


def test_data_is_read_past_python_also_over_the_border_of_two_runs(directory: Path) -> None:
    raw = directory / "vda"
    with raw.open("wb") as f:
        f.write(DISK[:CLUSTER])
        f.seek(MIB)
        f.write(DISK)
        f.truncate(8 * MIB)
    with test_fast_files.mounted(directory, raw) as (mount, process):
        until_fast(mount / "vda.qcow2", process, METADATA)
        descriptor = os.open(mount / "vda.qcow2", os.O_RDONLY | os.O_DIRECT)  # Python answers that
        try:
            with mmap.mmap(-1, MIB) as buffer, ThreadPoolExecutor(1) as reader:
                with python_stands_still(process):
                    reading = reader.submit(os.preadv, descriptor, [buffer], METADATA)
                    done, _ = wait([reading], 10)
                assert done
                assert buffer[: reading.result()] == DISK[:CLUSTER] + DISK[: MIB - CLUSTER]
        finally:
            os.close(descriptor)


def test_data_is_asked_for_in_parts_as_that_of_the_raw_file(directory: Path, serving: Server) -> None:
    with test_fast_reads.mounted(directory, serving.socket, "vda") as (mount, _):
        disk = mount / "vda.qcow2"
        test_fast_reads.until_fast(disk, serving, METADATA)
        before = serving.reads()
        assert read_direct(disk, METADATA, len(DISK)) == DISK
        assert serving.reads() - before == len(DISK) // PART


def test_an_error_of_the_server_is_an_error_of_that_read_alone(directory: Path, serving: Server) -> None:
    with test_fast_reads.mounted(directory, serving.socket, "vda") as (mount, _):
        disk = mount / "vda.qcow2"
        test_fast_reads.until_fast(disk, serving, METADATA)
        with serving.failing():
            assert_eio(lambda: read_direct(disk, METADATA, 4096))
            read_direct(disk, 0, METADATA)  # no disk is asked
        assert read_direct(disk, METADATA, len(DISK)) == DISK


def test_a_file_that_has_become_shorter_is_an_error_and_no_zeros(directory: Path) -> None:
    (directory / "vda").write_bytes(DISK)
    with test_fast_files.mounted(directory, directory / "vda") as (mount, process):
        disk = mount / "vda.qcow2"
        until_fast(disk, process, METADATA)
        os.truncate(directory / "vda", len(DISK) // 2)
        assert_eio(lambda: read_direct(disk, METADATA + len(DISK) // 2, 4096))
        assert read_direct(disk, METADATA, 4096) == DISK[:4096]


@pytest.mark.parametrize("placed", [(0, 0, [0], [0]), (0, CLUSTER, [0], []), (0, CLUSTER, [], [])], ids=repr)
def test_clusters_that_make_no_sense_are_refused(placed: tuple[int, int, list[int], list[int]]) -> None:
    assert extension
    start, cluster_bytes, firsts, ranks = placed
    runs = array("Q", firsts), array("Q", ranks)
    with pytest.raises(ValueError, match="make no sense"):
        extension.add_disk(2, CLUSTER, array("Q", [0]), bytearray(1), (start, cluster_bytes, *runs), (0,), 1.0)
