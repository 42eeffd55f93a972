"""What a declared type reads, as a short text: stored values have to be looked at again when it changes.

Two programs with one text read the same bytes, as far as declarations tell: names, types, constraints, tags, and which
fields there have to be. Not in it are names of classes, defaults, descriptions; and what a type does by itself while it
is read (``__post_init__``, validators), which nobody can compare.
"""

from __future__ import annotations

import hashlib
import inspect
from typing import TYPE_CHECKING, Any

import msgspec

from millstream.serialization._typed import uses_pydantic
from millstream.serialization.upgrading import UpgradingCodec

if TYPE_CHECKING:
    from millstream.serialization.base import Codec

__all__ = ["value_schema"]

_TYPED = ("json", "msgpack")
_DEFAULTS = ("default", "default_factory")
_NOT_READ = ("cls", *_DEFAULTS, "extra", "extra_json_schema")


def value_schema(codec: Codec[Any], value_type: Any, *, defaults: bool = False) -> str:
    """The text for a codec, which may convert older values, and the type that it was made for.

    Args:
        defaults: whether it is another one as well where what is read is to be of other values.
    """
    described: Any = codec.type_name
    if codec.name in _TYPED:
        described = (
            _pydantic_schema(value_type)
            if uses_pydantic(value_type)
            else _schema(value_type, defaults)
        )
    converted = _name_of(codec.upgrade) if isinstance(codec, UpgradingCodec) else None
    data = msgspec.json.encode([codec.name, described, converted], order="deterministic")
    return hashlib.sha256(data).hexdigest()[:32]


def _name_of(function: Any) -> str:
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def _schema(value_type: Any, defaults: bool) -> Any:
    try:
        return _described(msgspec.inspect.type_info(value_type), {}, defaults)
    except TypeError:  # object, and what only a codec of the user's knows
        return repr(value_type)


def _pydantic_schema(value_type: Any) -> Any:
    from pydantic import TypeAdapter
    from pydantic.errors import PydanticInvalidForJsonSchema

    try:
        return TypeAdapter(value_type).json_schema()
    except PydanticInvalidForJsonSchema:
        return repr(value_type)


def _described(part: Any, seen: dict[int, int], defaults: bool) -> Any:
    """A description of `msgspec.inspect` as plain values; those that were met before by their number."""
    if isinstance(part, (tuple, list)):
        return [_described(element, seen, defaults) for element in part]
    if isinstance(part, (msgspec.inspect.Type, msgspec.inspect.Field)):
        if hasattr(part, "fields"):  # only a class can have itself inside
            if id(part) in seen:
                return {"again": seen[id(part)]}
            seen[id(part)] = len(seen)
        # without what is not set: a constraint that msgspec learns some day changes nothing here
        found = {
            name: _described(value, seen, defaults)
            for name in part.__struct_fields__
            if (name not in _NOT_READ or (defaults and name in _DEFAULTS))
            and (value := getattr(part, name)) is not None
        }
        found["kind"] = type(part).__name__
        if isinstance(part, msgspec.inspect.EnumType):
            found["values"] = sorted(repr(member.value) for member in part.cls)
        elif isinstance(part, msgspec.inspect.LiteralType):
            found["values"] = sorted(map(repr, part.values))
        elif isinstance(part, msgspec.inspect.CustomType):
            found["class"] = part.cls.__qualname__
        return found
    if isinstance(part, (str, int, float, bool, type(None))):
        return part
    return _name_of(part) if inspect.isfunction(part) else repr(part)
