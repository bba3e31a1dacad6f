"""Whether a value is what the types of its dataclass say: JSON that somebody else has written may hold anything."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints


def check(value: Any) -> None:
    """Raise TypeError or ValueError where a field of a dataclass, or of one within it, has another type than it says,
    or text that cannot be given to the operating system.
    """
    hints = get_type_hints(type(value))
    for field in fields(value):
        if not _is(getattr(value, field.name), hints[field.name]):
            raise TypeError(f"{field.name} has another type")


def _is(value: object, kind: Any) -> bool:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is types.UnionType:
        return any(_is(value, each) for each in arguments)
    if origin is Mapping:
        return isinstance(value, dict) and all(isinstance(key, str) for key in value)
    if origin is tuple:
        return isinstance(value, tuple) and all(_is(each, arguments[0]) for each in value)
    if kind is int:
        return type(value) is int
    if not isinstance(value, kind):
        return False
    if is_dataclass(value):
        check(value)
    if isinstance(value, str):
        _check_text(value)
    return True


def _check_text(text: str) -> None:
    """What os.fsdecode() makes of a name comes back: a lone surrogate for each byte that is no UTF-8 (PEP 383)."""
    text.encode("utf-8", "surrogateescape")
    if "\0" in text:
        raise ValueError("a text has a zero character")
