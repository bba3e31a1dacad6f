"""Values as JSON documents and back: the one way in which dataclasses are written to files and sent to other processes.

A dataclass is a JSON object with a key for each of its fields.  Files may hold anything, so reading is strict: each
field must be of the type that its annotation says, nothing is converted, a key may be missing only if its field has a
default, and a key that is no field is refused.  Types may be other dataclasses, tuples, `X | None`, `str | X`,
enumerations (by value), `datetime` (ISO 8601), `str`, `int`, `float`, `bool`, and `Mapping[str, Any]`, of which no more
is checked.
"""

from __future__ import annotations

import functools
import json
import math
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")

SHOWN_MAX = 60  # characters of a wrong value that an error shows


class DocumentError(ValueError):
    """A document of another shape than it must have: 'snapshot.disks[0].size_bytes is "x", not a whole number'."""


class Reshaped:
    """A dataclass whose document is not just its fields."""

    ignores_unknown_keys = False  # for facts only: derived ones, and those that later versions add

    def document_of(self, written: dict[str, Any]) -> dict[str, Any]:
        """The document, made of that of the fields."""
        return written

    @classmethod
    def fields_of(cls, document: dict[str, Any]) -> dict[str, Any]:
        """The document of the fields, made of the whole one, which it may change.  A KeyError means that this key is
        missing; raises DocumentError or ValueError too.
        """
        return document


def to_document(value: DataclassInstance) -> dict[str, Any]:
    """The JSON object that says what the dataclass says."""
    written = {field.name: _written(getattr(value, field.name)) for field in fields(value)}
    return value.document_of(written) if isinstance(value, Reshaped) else written


def _written(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return to_document(value)
    if isinstance(value, tuple):
        return [_written(each) for each in value]
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Enum):
        return value.value
    return format_time(value) if isinstance(value, datetime) else value


def from_document(kind: type[T], document: object, where: str = "") -> T:
    """The value of that type; `where` is the document's path in a larger one, for errors.

    Raises DocumentError for a document of another shape, and the ValueError of one that `fields_of()` refuses.
    """
    return cast(T, _read(kind, document, where))


def format_time(moment: datetime) -> str:
    """ISO 8601 in UTC with microseconds: '2026-11-23T12:05:01.000123Z'."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def dump(document: Mapping[str, Any]) -> bytes:
    """A JSON document as the bytes of a file: indented, a newline at its end.

    All ASCII: file names that are no UTF-8 come through as escaped surrogates (PEP 383), and JSON stays valid.
    """
    return json.dumps(document, indent=2).encode("ascii") + b"\n"


# -- reading -----------------------------------------------------------------------------------------------------------


def _read(kind: Any, value: object, where: str) -> object:
    if read := _SCALARS.get(kind):
        return read(value, where)
    origin = get_origin(kind)
    if origin is types.UnionType:
        return _either(get_args(kind), value, where)
    if origin is tuple:
        return _tuple(get_args(kind), value, where)
    if origin is Mapping:
        return _object(value, where)
    return _member(kind, value, where) if issubclass(kind, Enum) else _dataclass(kind, value, where)


def _either(kinds: tuple[Any, ...], value: object, where: str) -> object:
    """Of X | None, or of str | X with another X than a scalar."""
    if value is None and types.NoneType in kinds:
        return None
    others = [kind for kind in kinds if kind is not types.NoneType]
    if len(others) > 1:
        others = [kind for kind in others if (kind is str) == isinstance(value, str)]
    (other,) = others
    return _read(other, value, where)


def _text(value: object, where: str) -> str:
    """What can be given to the operating system; os.fsdecode() makes a lone surrogate of each byte that is no UTF-8."""
    if not isinstance(value, str):
        raise _other(value, where, "a text")
    if "\0" in value:
        raise _other(value, where, "a text without zero characters")
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise _other(value, where, "Unicode") from None
    return value


def _whole_number(value: object, where: str) -> int:
    if type(value) is not int:
        raise _other(value, where, "a whole number")
    return value


def _number(value: object, where: str) -> float:
    """JSON has one type for all numbers: what was written as 30.0 may be 30 now."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            if math.isfinite(value):
                return float(value)
        except OverflowError:
            pass  # a whole number beyond what a float can be
    raise _other(value, where, "a number")


def _truth(value: object, where: str) -> bool:
    if not isinstance(value, bool):
        raise _other(value, where, "true or false")
    return value


def _moment(value: object, where: str) -> datetime:
    try:
        moment = datetime.fromisoformat(_text(value, where))
        if moment.tzinfo is not None:
            return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        pass  # that of the year 1 or 9999 may lie beyond it in UTC
    raise _other(value, where, "a time with its zone")


_SCALARS: dict[Any, Callable[[object, str], object]] = {
    str: _text,
    int: _whole_number,
    float: _number,
    bool: _truth,
    datetime: _moment,
}


def _member(kind: type[Enum], value: object, where: str) -> Enum:
    try:
        return kind(value)
    except ValueError:
        raise _other(value, where, f"one of {', '.join(str(each.value) for each in kind)}") from None


def _tuple(kinds: tuple[Any, ...], value: object, where: str) -> tuple[object, ...]:
    """Of tuple[X, ...] or tuple[X, Y]."""
    if not isinstance(value, list):
        raise _other(value, where, "a list")
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(value)
    if len(kinds) != len(value):
        raise _other(value, where, f"a list of {len(kinds)}")
    return tuple(_read(kind, each, f"{where}[{i}]") for i, (kind, each) in enumerate(zip(kinds, value, strict=True)))


def _object(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _other(value, where, "an object")
    return value


def _dataclass(kind: type[DataclassInstance], value: object, where: str) -> object:
    document, wanted, made = _object(value, where), _fields(kind), {}
    if issubclass(kind, Reshaped):
        document = _reshaped(kind, document, where)
    unknown = sorted(document.keys() - wanted.keys())
    if unknown and not (issubclass(kind, Reshaped) and kind.ignores_unknown_keys):
        raise DocumentError(f"{_below(where, unknown[0])} is not known")
    for name, (field, hint) in wanted.items():
        if name in document:
            made[name] = _field(field, hint, document[name], _below(where, name))
        elif field.default is MISSING and field.default_factory is MISSING:
            raise DocumentError(f"{_below(where, name)} is missing")
    return kind(**made)


def _reshaped(kind: type[Reshaped], document: dict[str, Any], where: str) -> dict[str, Any]:
    try:
        return kind.fields_of(dict(document))
    except KeyError as error:
        raise DocumentError(f"{_below(where, error.args[0])} is missing") from error
    except DocumentError as error:
        raise DocumentError(f"{where}.{error}" if where else str(error)) from error


@functools.cache
def _fields(kind: type[DataclassInstance]) -> dict[str, tuple[Field[Any], Any]]:
    """The fields by their names, and their types."""
    hints = get_type_hints(kind)
    return {field.name: (field, hints[field.name]) for field in fields(kind)}


def _field(field: Field[Any], hint: Any, value: object, where: str) -> object:
    try:
        return _read(hint, value, where)
    except DocumentError:
        if field.repr:
            raise
        raise DocumentError(f"{where} is not what it must be") from None  # it is a secret


# -- errors ------------------------------------------------------------------------------------------------------------


def _other(value: object, where: str, wanted: str) -> DocumentError:
    return DocumentError(f"{where or 'it'} is {_shown(value)}, not {wanted}")


def _below(where: str, key: str) -> str:
    step = key if key.isprintable() and len(key) <= SHOWN_MAX else _shown(key)
    return f"{where}.{step}" if where else step


def _shown(value: object) -> str:
    """The value as JSON, which has no control characters, shortened."""
    text = json.dumps(value, default=repr)
    return text if len(text) <= SHOWN_MAX else f"{text[:SHOWN_MAX]}..."
