"""The kernel's list of mounts is read as it is meant, and a directory that cannot be a mountpoint is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapmount.errors import NotFoundError, StateError
from snapmount.host import mounts
from snapmount.host.mounts import Mount

from ..strategies import PROPERTY

MOUNTINFO = r"""22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
41 27 0:35 / /mnt/with\040blank\011tab\134and\012newline rw,relatime shared:7 master:2 - tmpfs my\040disk rw
90 27 0:45 / /mnt/snap ro,nosuid,nodev,noexec - fuse.snapmount snapmount:vm1:3f2a91bc ro,user_id=0,allow_other
91 90 0:46 /-/x /mnt/- rw shared:9 propagate_from:2 unbindable - ext4 /dev/vdb rw
92 27 0:4 mnt:[4026531840] /run/ns rw - nsfs nsfs rw
"""

# What the kernel escapes (show_mountinfo() in fs/proc_namespace.c), and what it writes as it is.
path_parts = st.lists(
    st.sampled_from([" ", "\t", "\n", "\\", "#", "/", "-", " - ", "a", "ü", "040", "\\040", "\udcff"])
)


def escaped(path: str) -> str:
    """As the kernel does."""
    return "".join(f"\\{ord(c):03o}" if c in " \t\n\\#" else c for c in path)


def test_mounts_are_read_in_their_order_with_their_paths_unescaped() -> None:
    assert mounts.parse(MOUNTINFO) == [
        Mount("/proc", "proc", "proc"),
        Mount("/", "ext4", "/dev/vda", is_shared=True),
        Mount("/mnt/with blank\ttab\\and\nnewline", "tmpfs", "my disk", is_shared=True),
        Mount("/mnt/snap", "fuse.snapmount", "snapmount:vm1:3f2a91bc"),
        Mount("/mnt/-", "ext4", "/dev/vdb", is_shared=True),
        Mount("/run/ns", "nsfs", "nsfs"),
    ]


def test_no_mounts_are_none() -> None:
    assert mounts.parse("") == []


@PROPERTY
@given(path_parts, path_parts, st.lists(st.sampled_from(["shared:1", "master:2", "unbindable"]), max_size=3))
def test_a_mount_is_read_back_whatever_its_path_and_source(path: list[str], source: list[str], tags: list[str]) -> None:
    mount = Mount("/" + "".join(path), "fuse.snapmount", "x" + "".join(source), "shared:1" in tags)
    words = ["36", "35", "98:0", "/", escaped(mount.path), "rw", *tags, "-", mount.fstype, escaped(mount.source), "rw"]
    assert mounts.parse(" ".join(words) + "\n") == [mount]


def test_a_path_lies_on_the_last_of_the_mounts_that_reach_furthest() -> None:
    found = [
        Mount("/", "rootfs", "a"),
        Mount("/", "ext4", "b"),
        Mount("/mnt", "xfs", "c"),
        Mount("/mnt/x", "tmpfs", "d"),
    ]
    for path, source in [("/", "b"), ("/mnt", "c"), ("/mnt/y", "c"), ("/mnt/x/y", "d"), ("/mnt/xy", "c"), ("/mn", "b")]:
        mount = mounts.holding(path, found)
        assert mount
        assert mount.source == source
    assert mounts.holding("/x", [Mount("/mnt", "xfs", "c")]) is None


def test_this_host_s_mounts_are_read() -> None:
    found = mounts.current()
    assert Mount("/proc", "proc", "proc") in [Mount(each.path, each.fstype, each.fstype) for each in found]
    assert len(found) == Path("/proc/self/mountinfo").read_bytes().count(b"\n")
    assert all(each.path.startswith("/") and each.fstype for each in found)


@pytest.mark.parametrize("name", ["mnt", "with blank", "-v", "Grüße", os.fsdecode(b"caf\xe9")])
def test_an_empty_directory_can_be_a_mountpoint(tmp_path: Path, name: str) -> None:
    directory = tmp_path / name
    directory.mkdir()
    mounts.check_mountpoint(str(directory))
    (tmp_path / "link").symlink_to(directory)
    mounts.check_mountpoint(str(tmp_path / "link"))
    assert os.listdir(directory) == []


def test_a_relative_mountpoint_is_meant_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mnt").mkdir()
    monkeypatch.chdir(tmp_path)
    mounts.check_mountpoint("mnt")
    with pytest.raises(StateError, match=r"the mountpoint \. is not empty"):
        mounts.check_mountpoint(".")


def test_a_missing_mountpoint_comes_with_the_command_that_makes_it(tmp_path: Path) -> None:
    missing = tmp_path / "a b" / "c"
    with pytest.raises(NotFoundError, match="does not exist") as caught:
        mounts.check_mountpoint(str(missing))
    assert caught.value.remedy == f"mkdir -p '{missing}'"


def test_a_dangling_link_does_not_exist(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(NotFoundError, match="does not exist"):
        mounts.check_mountpoint(str(tmp_path / "link"))


def test_a_file_is_no_mountpoint_nor_is_what_lies_below_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StateError, match=f"the mountpoint {path} is not a directory"):
            mounts.check_mountpoint(str(path))


@pytest.mark.parametrize("name", ["file", ".hidden"])
def test_a_directory_that_holds_anything_is_no_mountpoint(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(StateError, match="is not empty"):
        mounts.check_mountpoint(str(tmp_path))


def test_a_name_that_is_too_long_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="cannot be used: File name too long"):
        mounts.check_mountpoint(str(tmp_path / ("x" * 300)))


def test_a_link_in_a_circle_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("link")
    with pytest.raises(StateError, match="cannot be used: Too many levels of symbolic links"):
        mounts.check_mountpoint(str(tmp_path / "link"))


def test_what_something_is_mounted_on_is_named_with_the_way_to_unmount_it(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/proc")
    for path in ("/proc", "/proc/", str(tmp_path / "link")):
        with pytest.raises(StateError, match=rf"a file system \(proc\) is already mounted on {path}") as caught:
            mounts.check_mountpoint(path)
        assert caught.value.remedy == f"umount {path}"


async def test_unmounting_what_is_not_mounted_is_fine() -> None:
    before = mounts.current()
    await mounts.unmount("snapmount:no such vm:3f2a91bc")
    assert mounts.current() == before


@pytest.mark.parametrize("c", ["\r", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"], ids=ascii)
def test_a_mount_may_have_any_character_in_its_path(c: str) -> None:
    line = f"36 35 98:0 / /mnt/a{c}b rw - ext4 /dev/vda rw\n"
    assert mounts.parse(line) == [Mount(f"/mnt/a{c}b", "ext4", "/dev/vda")]
