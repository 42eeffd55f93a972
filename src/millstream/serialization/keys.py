"""How the keys of a table are laid out in bytes, so that byte order is the order of the keys.

Local state and changelogs hold keys in this layout. It promises:

- **Order**: of two keys of one type, the smaller one in Python has the smaller bytes.
- **One key, one encoding**: equal keys have equal bytes (``0.0`` and ``-0.0``; one moment in two time zones).
- **Self-delimiting**: no encoding is the beginning of another one. So the encodings of a tuple's elements
  follow one another without anything in between, and a suffix, such as the start of a window, may follow
  any key.
- **Never 0x00 first**: keys that begin with that byte belong to the table itself (invariant 20).
- It never changes: an incompatible layout would be another module.

The layouts, with every byte:

``str``
    UTF-8, then ``01``. The bytes ``00 01 02`` inside are written ``02 02``, ``02 03``, ``02 04``.
    ``"ada"`` is ``61 64 61 01``, ``""`` is ``01``. UTF-8 sorts as code points do, and so does Python.
``bytes``
    The same, without the UTF-8.
``int``
    From -2**63 to 2**63 - 1: ``80``, then the number plus 2**63 in 8 bytes, big endian. ``0`` is
    ``80 80 00 00 00 00 00 00 00``, ``-1`` is ``80 7f ff ff ff ff ff ff ff``.
    Above: ``81``, the count of bytes of the magnitude in 4 bytes, the magnitude, all big endian.
    Below: ``7f``, then the same for the absolute value with every bit inverted.
``float``
    ``80``, then IEEE 754 in 8 bytes, big endian, with all bits inverted if the number is negative and the
    first bit inverted if not. ``-0.0`` is written as ``0.0``; NaN has no place in any order and is refused.
``bool``
    ``01`` for False, ``02`` for True.
``uuid.UUID``
    ``80``, then its 16 bytes.
``datetime.datetime``
    Aware ones only: microseconds since 1970-01-01 UTC, as an int. Comes back in UTC.
``enum.Enum``
    Its value, if all values are str or all are int; members that share one sort as their values do.
``tuple[str, int]``, ``NamedTuple``, frozen ``dataclass``, frozen ``msgspec.Struct``
    The encodings of the elements or fields, in order; nested as deep as you like.
    ``("ada", 0)`` is ``61 64 61 01 80 80 00 00 00 00 00 00 00``.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import typing
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

import msgspec

from millstream.errors import ConfigurationError
from millstream.serialization._key_layout import KeyLayout
from millstream.serialization._key_records import EnumLayout, RecordLayout, TupleLayout
from millstream.serialization._key_scalars import (
    BoolLayout,
    BytesLayout,
    DatetimeLayout,
    FloatLayout,
    IntLayout,
    StrLayout,
    UuidLayout,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["KeyLayout", "key_layout"]

K = TypeVar("K")

_SCALARS: Mapping[Any, type[KeyLayout[Any]]] = {
    str: StrLayout,
    int: IntLayout,
    float: FloatLayout,
    bool: BoolLayout,
    bytes: BytesLayout,
    UUID: UuidLayout,
    datetime: DatetimeLayout,
}
_SUPPORTED = (
    "str, int, float, bool, bytes, UUID, datetime, an Enum of str or of int values, and tuple[...],"
    " NamedTuple, frozen dataclass or frozen msgspec.Struct of these"
)


def key_layout(key_type: type[K]) -> KeyLayout[K]:
    """The layout for keys of a type; `typing.Annotated`, `NewType` and ``Literal`` are looked through.

    Raises:
        ConfigurationError: keys cannot be of that type; the message names it and those that work.
    """
    return typing.cast("KeyLayout[K]", _layout(key_type))


def _layout(key_type: Any) -> KeyLayout[Any]:
    if isinstance(key_type, typing.NewType):
        return _layout(key_type.__supertype__)
    origin, args = typing.get_origin(key_type), typing.get_args(key_type)
    if origin is typing.Annotated:
        return _layout(args[0])
    if origin is typing.Literal and len(kinds := {type(value) for value in args}) == 1:
        return _layout(kinds.pop())
    if origin is tuple and args and Ellipsis not in args:
        return TupleLayout([_layout(element) for element in args])
    if origin is None and inspect.isclass(key_type):
        if key_type in _SCALARS:
            return _SCALARS[key_type]()
        if issubclass(key_type, enum.Enum):
            return _enum_layout(key_type)
        fields = _fields(key_type)
        if fields:
            layouts = {name: _layout(kind) for name, kind in fields.items()}
            return RecordLayout(key_type, layouts, key_type)
    raise _unsupported(key_type)


def _enum_layout(kind: type[enum.Enum]) -> EnumLayout:
    kinds = {type(member.value) for member in kind}
    if kinds in ({str}, {int}) and not issubclass(kind, enum.Flag):
        return EnumLayout(kind, _SCALARS[kinds.pop()]())
    raise _unsupported(kind)


def _fields(kind: type) -> dict[str, Any]:
    """Names and types of a record's fields; empty when it is no record, or may change."""
    if issubclass(kind, msgspec.Struct):
        if not kind.__struct_config__.frozen:
            raise _unsupported(kind, " (it is not frozen: class ...(msgspec.Struct, frozen=True))")
        return {field.name: field.type for field in msgspec.structs.fields(kind)}
    if dataclasses.is_dataclass(kind):
        if not kind.__dataclass_params__.frozen:  # type: ignore[attr-defined]
            raise _unsupported(kind, " (it is not frozen: @dataclass(frozen=True))")
        types = typing.get_type_hints(kind, include_extras=True)
        return {field.name: types[field.name] for field in dataclasses.fields(kind) if field.init}
    if issubclass(kind, tuple) and hasattr(kind, "_fields"):
        types = typing.get_type_hints(kind, include_extras=True)
        return {name: types.get(name, Any) for name in kind._fields}
    return {}


def _unsupported(key_type: Any, why: str = "") -> ConfigurationError:
    name = key_type.__name__ if inspect.isclass(key_type) else str(key_type)
    return ConfigurationError(f"a key cannot be of type {name}{why}; it may be {_SUPPORTED}")
