"""Clones as records tell of them: those that a driver could have made are known from all others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import pytest

from snapmount.core.document import to_document
from snapmount.core.user import User
from snapmount.storage import drivers, shapes
from snapmount.storage.driver import Clone
from snapmount.storage.shapes import BtrfsKept, HookKept, LvmKept, ReflinkKept

KEPT: Mapping[str, Any] = {
    "reflink": ReflinkKept("/srv", 1, 2),
    "btrfs": BtrfsKept("/srv", "/srv/vms", "0b7d2c39-3c5d-4b61-9cf4-0d9f1a6f8f11", (257,), 2),
    "lvm": LvmKept("vg", "vm1-snapmount-3f2a91bc", "vm1", "pool", 0, False, "snapmount-3f2a91bc", 1, 2),
    "hook": HookKept("/hooks/zfs", "3f2a91bc", "snapmount-3f2a91bc-7b9c0e24", User(1, 2, ()), {}),
}


def a_clone(driver: str, **changes: Any) -> Clone:
    return Clone(driver, ("/srv/vms/a",), ("/srv/frozen",), to_document(KEPT[driver]) | changes)


def test_every_driver_has_a_shape() -> None:
    assert shapes.SHAPES.keys() == drivers.DRIVERS.keys() == KEPT.keys()


@pytest.mark.parametrize("driver", KEPT)
def test_what_a_driver_keeps_is_of_its_shape_and_nothing_else_is(driver: str) -> None:
    shapes.check(a_clone(driver))
    for field in fields(KEPT[driver]):
        with pytest.raises(ValueError, match=f"kept of the {driver} clone.{field.name} is null"):
            shapes.check(a_clone(driver, **{field.name: None}))
    with pytest.raises(ValueError, match=f"kept of the {driver} clone.other is not known"):
        shapes.check(a_clone(driver, other=1))


@pytest.mark.parametrize("driver", KEPT)
def test_only_a_hook_has_to_be_asked_where_its_clone_is(driver: str) -> None:
    nowhere = replace(a_clone(driver), frozen=())
    if driver == "hook":
        shapes.check(nowhere)
    else:
        with pytest.raises(ValueError, match=f"the {driver} clone of /srv/vms/a is nowhere"):
            shapes.check(nowhere)


def test_a_driver_of_another_version_is_named() -> None:
    with pytest.raises(ValueError, match="storage driver that this version of snapmount does not know: 'tape'"):
        shapes.check(replace(a_clone("hook"), driver="tape"))


@pytest.mark.parametrize(("origins", "frozen"), [((), ()), (("/a",), ("/b", "/c")), (("/a", "/b"), ("/c",))])
def test_a_clone_has_an_image_for_each_origin(origins: tuple[str, ...], frozen: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=f"a clone of {len(origins)} origins cannot have {len(frozen)} frozen images"):
        Clone("reflink", origins, frozen)
