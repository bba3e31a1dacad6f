"""qcow2 files that are computed, as qemu-img(1) finds them."""

from __future__ import annotations

import functools
import random
import tempfile
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapmount.core import qcow2layout
from snapmount.core.clusters import Clusters
from snapmount.core.extents import HOLE, ZERO, ExtentMap, aligned
from snapmount.core.qcow2layout import Backing, Layout, Metadata, OnDisk, file_extents

from ..rig import qcow2
from ..strategies import PROPERTY

KIB, MIB, TIB = 1 << 10, 1 << 20, 1 << 40
SIZES = [4 * KIB, 64 * KIB, 2 * MIB]  # of clusters
DATA = 0
RUNS_QEMU = settings(PROPERTY, max_examples=25)


@dataclass(frozen=True)
class Content:
    """A disk: its bytes, and what is known of them."""

    data: bytes
    extents: ExtentMap


def content(parts: list[tuple[int, int]], size: int) -> Content:
    """A disk of that size of parts of one kind each: length, flags of an extent."""
    data, extents = bytearray(size), ExtentMap()
    generator = random.Random(repr(parts))
    for length, flags in [*parts, (size, HOLE | ZERO)]:
        length = min(length, size - extents.end)
        if not flags & ZERO:
            data[extents.end : extents.end + length] = generator.randbytes(length)
        extents.append(length, flags)
    return Content(bytes(data), extents)


def whole(extents: ExtentMap, cluster_bytes: int) -> Layout:
    return Layout(Clusters.of_data(extents, cluster_bytes))


def reader(data: bytes) -> Callable[[int, int], bytes]:
    return lambda offset, length: data[offset : offset + length]


def make_raw(path: Path, disk: Content) -> None:
    with path.open("wb") as f:
        for extent in disk.extents:
            if not extent.is_zero:
                f.seek(extent.start)
                f.write(disk.data[extent.start : extent.end])
        f.truncate(disk.extents.end)


# Lengths around clusters of each size, and within them
lengths = st.one_of(
    st.integers(1, 3 * MIB), st.sampled_from([1, 511, 512, 4096, 64 * KIB, 2 * MIB]), st.integers(1, 5000)
)
parts = st.lists(st.tuples(lengths, st.sampled_from([DATA, HOLE | ZERO, ZERO])), max_size=8)
sizes = st.one_of(st.sampled_from([0, 1, 511, 512, 4095, 64 * KIB + 1]), st.integers(1, 8 * MIB))


@RUNS_QEMU
@given(parts, sizes, st.sampled_from(SIZES))
def test_qemu_img_finds_the_whole_disk_sound_and_equal(
    parts: list[tuple[int, int]], size: int, cluster_bytes: int
) -> None:
    disk = content(parts, size)
    layout = whole(disk.extents, cluster_bytes)
    with tempfile.TemporaryDirectory() as name:
        raw, image = Path(name, "raw"), Path(name, "image")
        make_raw(raw, disk)
        qcow2.write(image, layout, reader(disk.data))
        assert image.stat().st_size == layout.size_bytes
        qcow2.assert_sound(image)
        qcow2.assert_equal(image, raw)
        told = qcow2.info(image)
    assert told["virtual-size"] == -(-size // 512) * 512, "QEMU would drop what lies beyond the last sector"
    assert told["cluster-size"] == cluster_bytes
    assert told["format-specific"]["data"]["compat"] == "1.1", "version 3"


@RUNS_QEMU
@given(st.lists(parts, min_size=2, max_size=4), sizes, st.sampled_from(SIZES), st.data())
def test_a_chain_of_a_full_image_and_increments_equals_the_last_disk(
    versions: list[list[tuple[int, int]]], size: int, cluster_bytes: int, data: st.DataObject
) -> None:
    """What is dirty may be more than what has changed, and what is zero may be told as data."""
    disk = content(versions[0], size)
    with tempfile.TemporaryDirectory() as name:
        raw = Path(name, "raw")
        qcow2.write(Path(name, "image0"), whole(disk.extents, cluster_bytes), reader(disk.data))
        for number, changes in enumerate(versions[1:], 1):
            disk = changed(disk, changes, number)
            clusters = Clusters(size, cluster_bytes)
            add_dirty(clusters, changes, tells_zeros=data.draw(st.booleans()))
            layout = Layout(clusters, Backing(f"image{number - 1}", "qcow2"))
            image = Path(name, f"image{number}")
            qcow2.write(image, layout, reader(disk.data))
            qcow2.assert_sound(image)
            make_raw(raw, disk)
            qcow2.assert_equal(image, raw)
            assert qcow2.info(image).get("backing-filename-format") == "qcow2"


def changed(disk: Content, changes: list[tuple[int, int]], seed: int) -> Content:
    """The disk after writes (DATA), discards (ZERO) and nothing (HOLE | ZERO), all data then."""
    size = len(disk.data)
    data, offset = bytearray(disk.data), 0
    for length, kind in changes:
        end = min(offset + length, size)
        if kind == DATA:
            data[offset:end] = random.Random(seed).randbytes(end - offset)
        elif kind == ZERO:
            data[offset:end] = bytes(end - offset)
        offset = end
    extents = ExtentMap()
    extents.append(size, DATA)
    return Content(bytes(data), extents)


def add_dirty(clusters: Clusters, changes: list[tuple[int, int]], tells_zeros: bool) -> None:
    offset = 0
    for length, kind in changes:
        end = min(offset + length, clusters.size_bytes)
        if kind == DATA or (kind == ZERO and not tells_zeros):
            clusters.add_data(offset, end)
        elif kind == ZERO:
            clusters.add_zeros(offset, end)
        offset = end
    clusters.finish()


def test_what_is_dirty_and_zero_hides_the_parent_s_data_and_takes_no_space(tmp_path: Path) -> None:
    unit, count = 64 * KIB, 20_000
    disk = b"old" * unit
    base = Clusters(count * unit, unit)
    base.add_data(0, 3 * unit)
    base.finish()
    qcow2.write(tmp_path / "full", Layout(base), reader(disk))
    increment = Clusters(count * unit, unit)
    increment.add_zeros(unit, count * unit)
    increment.finish()
    layout = Layout(increment, Backing("full", "qcow2"))
    assert layout.size_bytes == layout.metadata_bytes
    qcow2.write(tmp_path / "increment", layout, reader(b""))
    qcow2.assert_sound(tmp_path / "increment")
    told = [(each["start"], each["depth"], each["zero"], each["data"]) for each in qcow2.mapped(tmp_path / "increment")]
    assert told == [(0, 1, False, True), (unit, 0, True, False)]


@PROPERTY
@given(parts, sizes, st.sampled_from(SIZES[:2]), st.data())
def test_any_part_of_the_file_is_that_part_of_the_whole(
    parts: list[tuple[int, int]], size: int, cluster_bytes: int, data: st.DataObject
) -> None:
    clusters = Clusters(size, cluster_bytes)
    add_dirty(clusters, parts, tells_zeros=True)
    layout = Layout(clusters, Backing("base", "raw"))
    made = [*layout.parts(0, layout.size_bytes)]
    head = b"".join(part.data for part in made if isinstance(part, Metadata))
    assert len(head) == layout.metadata_bytes
    places = [part.offset + n for part in made if isinstance(part, OnDisk) for n in range(0, part.length, 512)]
    start = data.draw(st.integers(0, layout.size_bytes))
    stop = data.draw(st.integers(start, min(layout.size_bytes, start + 3 * cluster_bytes)))
    cut = [*layout.parts(start, stop - start)]
    assert sum(part.length for part in cut) == stop - start
    assert b"".join(part.data for part in cut if isinstance(part, Metadata)) == head[start:stop]
    offset = start
    for part in cut:
        if isinstance(part, OnDisk):
            for n in range(-(offset - len(head)) % 512, part.length, 512):
                assert part.offset + n == places[(offset + n - len(head)) // 512]
        offset += part.length


@PROPERTY
@given(parts, sizes, st.sampled_from(SIZES[:2]), st.booleans())
def test_the_file_s_holes_are_zeros_of_its_data(
    parts: list[tuple[int, int]], size: int, cluster_bytes: int, is_increment: bool
) -> None:
    disk = content(parts, size)
    known = aligned(disk.extents, 4096)
    layout = whole(known, cluster_bytes)
    if is_increment:  # of other parts than those that are data
        clusters = Clusters(size, cluster_bytes)
        add_dirty(
            clusters, [(length * 2 // 3 + 1, DATA if n % 2 else ZERO) for n, (length, _) in enumerate(parts)], True
        )
        layout = Layout(clusters)
    extents = file_extents(layout, known)
    assert extents.end == layout.size_bytes
    assert not any(extent.start % 4096 or extent.end % 4096 for extent in extents), "whole pages"
    offset = 0
    for part in layout.parts(0, layout.size_bytes):
        held = [*extents.between(offset, offset + part.length)]
        if isinstance(part, Metadata):
            assert not any(extent.is_zero for extent in held)
        else:
            for extent in held:
                start = part.offset + extent.start - offset
                pages = [known.find(page).is_zero for page in range(start, min(start + extent.length, size), 4096)]
                assert all(is_zero == extent.is_zero for is_zero in pages), "all of what is known, and no more"
        offset += part.length


def test_the_same_clusters_make_the_same_file() -> None:
    made = []
    for cut in (1, 1000):  # how the extents are told makes no difference
        clusters = Clusters(10 * MIB, 64 * KIB)
        for offset in range(0, 1000, cut):
            clusters.add_data(offset, offset + cut)
        for offset in range(MIB, MIB + 130_000, cut * 130):
            clusters.add_zeros(offset, offset + cut * 130)
        clusters.finish()
        layout = Layout(clusters)
        made.append([*layout.parts(0, layout.size_bytes)])
    assert made[0] == made[1]


@pytest.mark.parametrize("cluster_bytes", SIZES)
def test_a_sparse_disk_of_more_than_2_tib(tmp_path: Path, cluster_bytes: int) -> None:
    size = 3 * TIB + 1000
    places = [0, 5 * MIB + 700, 2 * TIB - 300, 3 * TIB + 900]
    extents = ExtentMap()
    with (tmp_path / "raw").open("wb") as f:
        f.truncate(size)
        for place in places:
            f.seek(place)
            f.write(b"x" * min(1000, size - place))
            extents.append(place - extents.end, HOLE | ZERO)
            extents.append(min(1000, size - place), DATA)

    def read(offset: int, length: int) -> bytes:
        with (tmp_path / "raw").open("rb") as f:
            f.seek(offset)
            return f.read(length)

    qcow2.write(tmp_path / "image", whole(extents, cluster_bytes), read)
    qcow2.assert_sound(tmp_path / "image")
    qcow2.assert_equal(tmp_path / "image", tmp_path / "raw")


@functools.cache
def a_million_extents() -> ExtentMap:
    extents = ExtentMap()
    for _ in range(500_000):
        extents.append(4096, DATA)
        extents.append(60 * KIB, HOLE | ZERO)
    return extents


@pytest.mark.parametrize("cluster_bytes", SIZES)
def test_a_million_extents_need_little_memory(tmp_path: Path, cluster_bytes: int) -> None:
    """Sixteen bytes a run of clusters are kept, and what is made of the tables at once is what is asked for."""
    extents = a_million_extents()
    count = len(extents) // 2
    assert count == 500_000
    clusters = Clusters.of_data(extents, cluster_bytes)
    assert sum(each.itemsize * len(each) for each in clusters.data.arrays()) <= 16 * count
    layout = Layout(clusters)
    assert file_extents(layout, extents).data_bytes == layout.metadata_bytes + count * 4096
    tracemalloc.start()
    try:
        for offset in range(0, layout.metadata_bytes, layout.metadata_bytes // 3 + 1):
            assert sum(part.length for part in layout.parts(offset, MIB)) == MIB
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5 * MIB
    qcow2.write_metadata(tmp_path / "image", layout)
    qcow2.assert_sound(tmp_path / "image")


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_a_backing_file_is_named_as_it_is_given(tmp_path: Path, form: str) -> None:
    clusters = Clusters(MIB, 4 * KIB)
    clusters.finish()
    name = "b\udcfcä" + "x" * 1019
    layout = Layout(clusters, Backing(name, form))
    qcow2.write_metadata(tmp_path / "image", layout)
    head = (tmp_path / "image").read_bytes()[: 4 * KIB]
    assert name.encode("utf-8", "surrogateescape") in head
    assert qcow2.info(tmp_path / "image")["backing-filename-format"] == form
    with pytest.raises(ValueError, match="1023"):
        Layout(clusters, Backing(f"{name}x", form))


def test_small_clusters_are_for_small_disks() -> None:
    assert qcow2layout.smallest_cluster_bytes(0) == 4 * KIB
    assert qcow2layout.smallest_cluster_bytes(TIB) == 4 * KIB
    assert qcow2layout.smallest_cluster_bytes(9 * TIB) == 8 * KIB
    assert qcow2layout.default_cluster_bytes(16 * TIB) == 64 * KIB
    assert qcow2layout.default_cluster_bytes(16 * TIB + 512) == 2 * MIB


@pytest.mark.parametrize("cluster_bytes", [4 * KIB, 8 * KIB])
def test_qemu_opens_the_largest_full_image_of_each_cluster_size(tmp_path: Path, cluster_bytes: int) -> None:
    low, high = 0, 64 * TIB
    while high - low > cluster_bytes:
        middle = (low + high) // 2
        fits = qcow2layout.smallest_cluster_bytes(middle) <= cluster_bytes
        low, high = (middle, high) if fits else (low, middle)
    clusters = Clusters(low, cluster_bytes)
    clusters.add_data(0, low)
    image = tmp_path / "image"
    with image.open("wb") as f:
        layout = Layout(clusters)
        f.write(b"".join(part.data for part in layout.parts(0, cluster_bytes) if isinstance(part, Metadata)))
        f.truncate(10 * TIB)  # its tables are zeros: QEMU looks at where they lie
    assert qcow2.info(image)["virtual-size"] == -(-low // 512) * 512
