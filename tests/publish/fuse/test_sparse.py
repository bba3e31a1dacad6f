"""A sparse disk stays sparse for every program that reads the view: holes are seen, not read."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from snapmount.publish.fuse.extension import extension

from ...rig import qcow2, vm
from ...rig.command import snapmount

pytestmark = pytest.mark.vm
MIB = 1 << 20
CLUSTER = 64 << 10
SIZE = 300 * MIB
# Where the data lies: at the start, in the middle (not at a cluster's start), in single clusters, and before the end.
DATA = [(0, MIB), (100 * MIB + 4096, 3 * MIB)] + [(200 * MIB + n * 4 * CLUSTER, CLUSTER) for n in range(20)]
DATA += [(SIZE - 2 * MIB, CLUSTER)]


@pytest.fixture(scope="module", params=["raw", "qcow2"])
def sparse_vm(libvirt: None, request: pytest.FixtureRequest) -> Iterator[vm.VM]:
    """A VM whose guest leaves its sparse disk alone."""
    disk = vm.Disk("vda", request.param, size=SIZE, fill=fill)
    with vm.running(f"{vm.PREFIX}-sparse-{request.param}", [disk]) as running:
        yield running


def fill(image: Path) -> None:
    generator = random.Random(3)
    with image.open("r+b") as f:
        for offset, length in DATA:
            f.seek(offset)
            f.write(generator.randbytes(length))


@pytest.fixture
def view(sparse_vm: vm.VM, clean: None, mountpoint: Path) -> Iterator[Path]:
    """The mounted snapshot of the sparse disk."""
    snapmount(sparse_vm.name, mountpoint)
    yield mountpoint / "vda.raw"
    snapmount("delete", sparse_vm.name)


@pytest.fixture
def content(tmp_path: Path) -> Path:
    """What the disk holds."""
    image = tmp_path / "content"
    with image.open("wb") as f:
        f.truncate(SIZE)
    fill(image)
    return image


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


def test_the_extension_is_there() -> None:
    assert extension, "it was not built: holes would be read as data"


@pytest.mark.sample
def test_du_and_the_map_tell_the_truth(view: Path, content: Path) -> None:
    assert view.stat().st_size == SIZE
    data = sum(length for _, length in DATA)
    assert data <= allocated(view) <= data + CLUSTER * len(DATA)
    (disk,) = json.loads(view.with_name("snapshot.json").read_text())["disks"]
    assert data <= disk["allocated_bytes"] <= data + CLUSTER * (len(DATA) + 8), "with the tables of qcow2"
    told = json.loads(view.with_suffix(".map").read_text())
    shown = subprocess.run(["qemu-img", "map", "--output=json", content], capture_output=True, check=True).stdout
    assert sum(extent["length"] for extent in told) == SIZE
    assert not any(extent["zero"] for extent in told if any(inside(offset, extent) for offset, _ in DATA))
    zero = sum(extent["length"] for extent in told if extent["zero"])
    assert zero >= sum(e["length"] for e in json.loads(shown) if e["zero"]) - CLUSTER * len(DATA)


def inside(offset: int, extent: dict[str, int]) -> bool:
    return extent["start"] <= offset < extent["start"] + extent["length"]


@pytest.mark.sample
def test_the_qcow2_file_is_thin_sound_and_equal(view: Path, content: Path) -> None:
    image = view.with_suffix(".qcow2")
    told = json.loads(view.with_name("snapshot.json").read_text())["disks"][0]
    assert (told["qcow2_file"], told["qcow2_cluster_size_bytes"]) == (image.name, CLUSTER)
    qcow2.assert_sound(image)
    qcow2.assert_equal(image, content)
    data = sum(length for _, length in DATA)
    assert data <= allocated(image) <= image.stat().st_size <= data + CLUSTER * (2 * len(DATA) + 8)


@pytest.mark.sample
def test_lseek_on_the_view_is_that_of_the_map(view: Path) -> None:
    told = json.loads(view.with_suffix(".map").read_text())
    with view.open("rb", buffering=0) as f:
        for extent in told:
            start, end = extent["start"], extent["start"] + extent["length"]
            same, other = (os.SEEK_HOLE, os.SEEK_DATA) if extent["zero"] else (os.SEEK_DATA, os.SEEK_HOLE)
            for offset in {start, start + 1, end - 1}:
                assert os.lseek(f.fileno(), offset, same) == offset
            if end < SIZE:
                assert os.lseek(f.fileno(), end - 1, other) == end
        for whence in (os.SEEK_DATA, os.SEEK_HOLE):
            for offset in (SIZE, SIZE + 1):
                with pytest.raises(OSError) as caught:  # noqa: PT011  # the errno is checked
                    os.lseek(f.fileno(), offset, whence)
                assert caught.value.errno == errno.ENXIO
        assert told[-1]["zero"]
        with pytest.raises(OSError) as caught:  # noqa: PT011  # the errno is checked
            os.lseek(f.fileno(), SIZE - 1, os.SEEK_DATA)
        assert caught.value.errno == errno.ENXIO, "inside the hole at the end"
    with view.with_name("domain.xml").open("rb", buffering=0) as f:
        size = os.fstat(f.fileno()).st_size
        assert os.lseek(f.fileno(), 0, os.SEEK_HOLE) == size, "every file has a hole at its end"


def through_tar(source: Path, target: Path) -> None:
    command = 'tar -C "$1" -Scf - "$2" | tar -C "$3" -Sxf - --transform="s,.*,$4,"'
    words = [str(source.parent), source.name, str(target.parent), target.name]
    subprocess.run(["bash", "-o", "pipefail", "-c", command, "-", *words], check=True)


def by(*command: str) -> Callable[[Path, Path], None]:
    def copy(source: Path, target: Path) -> None:
        words = [word.format(source=source, target=target) for word in command]
        subprocess.run(words, check=True, capture_output=True)

    return copy


@pytest.mark.parametrize(
    ("copy", "is_sparse"),
    [
        (by("cp", "--sparse=auto", "{source}", "{target}"), True),
        (by("cp", "--sparse=never", "{source}", "{target}"), False),
        (through_tar, True),
        (by("rsync", "-S", "{source}", "{target}"), True),
        (by("qemu-img", "convert", "-f", "raw", "-O", "raw", "{source}", "{target}"), True),
        (by("dd", "if={source}", "of={target}", "bs=64k", "conv=sparse"), True),
    ],
    ids=["cp auto", "cp never", "tar -S", "rsync -S", "qemu-img convert", "dd conv=sparse"],
)
def test_every_copy_is_equal_and_the_sparse_ones_are_no_larger_than_the_origin(
    view: Path, content: Path, tmp_path: Path, copy: Callable[[Path, Path], None], is_sparse: bool
) -> None:
    target = tmp_path / "copy"
    copy(view, target)
    subprocess.run(["cmp", content, target], check=True)
    if is_sparse:
        assert allocated(target) <= allocated(content) + CLUSTER * len(DATA)
    else:
        assert allocated(target) >= SIZE
