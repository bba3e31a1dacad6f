"""/etc/snapmount/storage.toml: what it says, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from snapmount.errors import StateError
from snapmount.storage import settings
from snapmount.storage.settings import Settings


def written(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o644)
    return str(path)


def test_the_example_in_the_module_is_read(tmp_path: Path) -> None:
    assert settings.__doc__
    example = "\n".join(line[4:] for line in settings.__doc__.splitlines() if line.startswith("    "))
    read = settings.read(written(tmp_path / "storage.toml", example))
    assert read.hook_of("/dev/zd0", "/dev/zvol/tank/vm1") == "/etc/snapmount/hooks/zfs"
    assert read.hook_of("rbd:vms/vm1:mon_host=a") == "/etc/snapmount/hooks/rbd"


@pytest.mark.parametrize(
    ("name", "hook"),
    [
        ("/srv/vms", "/a"),
        ("/srv/vms/x.raw", "/a"),
        ("/srv/vms/fast/x.raw", "/b"),
        ("/srv/vms/fastest/x.raw", "/a"),
        ("/srv/vms2/x.raw", None),
        ("/srv/vms:1", None),
        ("/srv", None),
        ("rbd:vms/vm2", "/c"),
        ("rbd:vms/vm1", "/d"),
        ("rbd:vms/vm1@now", "/d"),
        ("rbd:vms/vm1:conf=/etc/ceph/b.conf", "/d"),
        ("rbd:vms2/vm1", None),
        ("nbd://10.0.0.1/a", "/e"),
        ("nbds://10.0.0.1/a", None),
    ],
)
def test_the_longest_prefix_of_whole_parts_wins(name: str, hook: str | None) -> None:
    hooks = {"/srv/vms": "/a", "/srv/vms/fast/": "/b", "rbd:vms": "/c", "rbd:vms/vm1": "/d", "nbd://": "/e"}
    assert Settings(hooks).hook_of(name) == hook


def test_the_root_is_for_all_that_has_no_other() -> None:
    hooks = Settings({"/": "/a", "/srv": "/b"})
    assert hooks.hook_of("/home/x") == "/a"
    assert hooks.hook_of("/srv/x") == "/b"
    assert hooks.hook_of("rbd:a/b") is None


def test_a_directory_may_be_named_by_a_symbolic_link(tmp_path: Path) -> None:
    (tmp_path / "images").symlink_to("/srv/vms")
    read = settings.read(written(tmp_path / "storage.toml", f'[hooks]\n"{tmp_path}/images" = "/a"'))
    assert read.hook_of("/srv/vms/x.raw") == "/a"
    assert read.hook_of(f"{tmp_path}/images/x.raw") == "/a"


def test_no_file_is_no_hook(tmp_path: Path) -> None:
    assert settings.read(str(tmp_path / "storage.toml")) == Settings()
    assert settings.read(str(tmp_path / "no" / "storage.toml")).hook_of("/srv/x") is None


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[hooks", "cannot be used: "),
        ("hooks = 1", "hooks is 1, not an object"),
        ("[hook]", "hook is not known"),
        ('[hooks]\n"srv" = "/a"', 'hooks."srv" is neither an absolute path nor the name of a network disk'),
        ('[hooks]\n"/srv/../etc" = "/a"', "hooks.\"/srv/../etc\" is a path with '.', '..' or '//' in it"),
        ('[hooks]\n"/srv" = "zfs"', "hooks.\"/srv\" is 'zfs', not the absolute path of a hook"),
        ('[hooks]\n"/srv" = ["/a"]', "hooks.\"/srv\" is ['/a'], not the absolute path of a hook"),
        ("x = '''" + "y" * settings.MAX_BYTES + "'''", f"is larger than {settings.MAX_BYTES} bytes"),
    ],
)
def test_anything_else_is_an_error_with_the_file_and_the_key(tmp_path: Path, text: str, complaint: str) -> None:
    path = written(tmp_path / "storage.toml", text)
    with pytest.raises(StateError) as caught:
        settings.read(path)
    assert caught.value.message.startswith(f"{path} ")
    assert complaint in caught.value.message


def test_a_file_of_other_bytes_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "storage.toml"
    path.write_bytes(b"\xff\xfe")
    path.chmod(0o644)
    with pytest.raises(StateError, match="cannot be used"):
        settings.read(str(path))


def test_a_file_that_others_can_write_is_not_used(tmp_path: Path) -> None:
    path = written(tmp_path / "storage.toml", "[hooks]")
    Path(path).chmod(0o664)
    with pytest.raises(StateError, match=r"can be written by others than its owner \(mode 0664\)") as caught:
        settings.read(path)
    assert caught.value.remedy == f"sudo chown root: {path} && sudo chmod go-w {path}"
