"""What differs between two states of a qcow2 image, told by its tables: against what qemu-img reads of both."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

from snapmount.core.extents import Extent
from snapmount.core.qcow2changes import CannotCompareError, State, differing

MIB = 1 << 20
SIZE = 9 * MIB + 512
BLOCK = 512


def run(*words: str | Path) -> None:
    subprocess.run(words, check=True, capture_output=True)


def made(path: Path, *options: str, size: int = SIZE) -> Path:
    run("qemu-img", "create", "-q", "-f", "qcow2", *options, path, str(size))
    return path


def change(path: Path, *commands: str) -> None:
    run("qemu-io", "-f", "qcow2", "-d", "unmap", *(word for each in commands for word in ("-c", each)), path)


def state(path: Path) -> State:
    content = path.read_bytes()
    return State.of(lambda offset, length: content[offset : offset + length])


def view(path: Path) -> bytes:
    raw = path.with_name(f"{path.name}.raw")
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, raw)
    return raw.read_bytes()


def in_files(older: Path, newer: Path) -> list[Extent]:
    """What differs of the files, as a file system would tell."""
    now = newer.read_bytes()
    before = older.read_bytes().ljust(len(now) + BLOCK, b"\0")
    starts = range(0, len(now), BLOCK)
    now = now.ljust(len(now) + BLOCK, b"\0")
    differ = [at for at in starts if before[at : at + BLOCK] != now[at : at + BLOCK]]
    return [Extent(at, BLOCK, 0 if any(now[at : at + BLOCK]) else 3) for at in differ]


def compared(older: Path, newer: Path, *, is_alone: bool = True) -> list[Extent]:
    return differing(state(older), state(newer), in_files(older, newer), newer.stat().st_size, is_alone=is_alone)


def copied(path: Path) -> Path:
    copy = path.with_name("older.qcow2")
    copy.write_bytes(path.read_bytes())
    return copy


def assert_restores(older: bytes, newer: bytes, extents: list[Extent]) -> None:
    restored = bytearray(older.ljust(len(newer), b"\0")[: len(newer)])
    end = 0
    for each in extents:
        assert each.start >= end
        assert each.length > 0
        end = each.end
        restored[each.start : each.end] = (bytes(each.length) if each.is_zero else newer[each.start : each.end])[
            : len(newer) - each.start
        ]
    assert bytes(restored) == newer


def chance_commands(chance: random.Random, number: int) -> list[str]:
    found = []
    for step in range(number):
        at, length = chance.randrange(SIZE // BLOCK) * BLOCK, chance.randrange(1, 400) * BLOCK
        length = min(length, SIZE - at)
        what = chance.choice([f"write -P {step + 1}", "write -z", "write -z -u", "discard"])
        found.append(f"{what} {at} {length}")
    return found


@pytest.mark.parametrize("seed", range(6))
def test_the_increments_make_of_the_older_view_the_newer_one(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    cluster = chance.choice(["4k", "64k", "512"])
    below = made(tmp_path / "below.qcow2")
    change(below, f"write -P 200 0 {SIZE // 2 // BLOCK * BLOCK}")
    rests = chance.random() < 0.5
    options = ["-b", str(below), "-F", "qcow2"] if rests else []
    image = made(tmp_path / "image.qcow2", "-o", f"cluster_size={cluster}", *options)
    change(image, *chance_commands(chance, 10))
    for _ in range(3):
        older = copied(image)
        change(image, *chance_commands(chance, 4))
        found = compared(older, image, is_alone=not rests)
        assert_restores(view(older), view(image), found)
        assert not compared(image, image, is_alone=not rests)


def test_only_what_was_written_is_told_and_not_all_of_its_cluster(tmp_path: Path) -> None:
    image = made(tmp_path / "image.qcow2")
    change(image, "write -P 1 0 9M")
    older = copied(image)
    change(image, "write -P 2 1M 4k", "write -z -u 2M 64k")
    told = compared(older, image)
    assert [(each.start, each.is_zero) for each in told if each.start < 2 * MIB] == [
        (MIB + at, False) for at in range(0, 4096, BLOCK)
    ]
    assert told[-1].start == 2 * MIB
    assert told[-1].is_zero


def test_internal_snapshots_make_no_difference(tmp_path: Path) -> None:
    image = made(tmp_path / "image.qcow2")
    change(image, "write -P 1 0 4M")
    older = copied(image)
    run("qemu-img", "snapshot", "-c", "inside", image)
    assert not compared(older, image)
    change(image, "write -P 2 1M 64k")
    assert_restores(view(older), view(image), compared(older, image))
    run("qemu-img", "snapshot", "-a", "inside", image)
    assert_restores(view(older), view(image), compared(older, image))


def test_an_image_that_has_grown_is_compared_up_to_its_former_end(tmp_path: Path) -> None:
    image = made(tmp_path / "image.qcow2", "-o", "cluster_size=4k")
    older = copied(image)
    run("qemu-img", "resize", "-q", image, str(SIZE + 8 * MIB))
    change(image, "write -P 1 1M 64k", "write -P 1 12M 64k")
    before, now = view(older), view(image)
    assert_restores(before, now[:SIZE], [each for each in compared(older, image) if each.start < SIZE])


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["-o", "extended_l2=on"], "has extended L2 entries"),
        (["-o", "data_file=DATA"], "has its data in another file"),
    ],
)
def test_what_is_not_understood_is_said(tmp_path: Path, options: list[str], why: str) -> None:
    image = made(tmp_path / "image.qcow2", *(each.replace("DATA", str(tmp_path / "data")) for each in options))
    with pytest.raises(CannotCompareError, match=why):
        state(image)


@pytest.mark.parametrize(
    ("offset", "value", "why"),
    [
        (35, 2, "is encrypted"),
        (79, 2, "marked as corrupt"),
        (72, 1, "not known"),
        (39, 0, "wrong size"),
        (7, 4, "no qcow2"),
    ],
)
def test_a_header_that_says_so(tmp_path: Path, offset: int, value: int, why: str) -> None:
    image = made(tmp_path / "image.qcow2")
    content = bytearray(image.read_bytes())
    content[offset] = value
    image.write_bytes(content)
    with pytest.raises(CannotCompareError, match=why):
        state(image)


@pytest.mark.parametrize(("at", "entry"), [("l1", 1 << 57), ("l2", 1 << 9), ("l2", 1 << 57)])
def test_broken_tables_are_not_believed(tmp_path: Path, at: str, entry: int) -> None:
    image = made(tmp_path / "image.qcow2")
    change(image, "write 0 64k")
    older = copied(image)
    content = bytearray(image.read_bytes())
    l1 = int.from_bytes(content[40:48])
    place = l1 if at == "l1" else int.from_bytes(content[l1 : l1 + 8]) & ~(1 << 63)
    content[place : place + 8] = entry.to_bytes(8)
    image.write_bytes(content)
    with pytest.raises(CannotCompareError, match="broken"):
        compared(older, image)


def test_compressed_clusters_are_not_compared(tmp_path: Path) -> None:
    image = made(tmp_path / "image.qcow2")
    change(image, "write -P 1 1M 64k")
    older = copied(image)
    change(image, "write -c -P 1 0 64k")
    for before in (older, image):
        with pytest.raises(CannotCompareError, match="has compressed clusters"):
            compared(before, image)


def test_another_cluster_size_and_what_is_no_image(tmp_path: Path) -> None:
    first, second = made(tmp_path / "a.qcow2"), made(tmp_path / "b.qcow2", "-o", "cluster_size=4k")
    with pytest.raises(CannotCompareError, match="another size"):
        compared(first, second)
    for content in (b"", b"QFI\xfb", bytes(200), first.read_bytes()[: 3 * 65536 + 4], first.read_bytes()[:200]):
        with pytest.raises(CannotCompareError):
            State.of(lambda offset, length, content=content: content[offset : offset + length])  # type: ignore[misc]
