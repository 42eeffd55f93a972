"""Codecs of single values: bytes, text, and numbers as Kafka's serializers write them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from struct import Struct
from struct import error as StructError
from typing import TYPE_CHECKING, Any

from millstream.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from millstream.serialization.base import CodecFactory

__all__ = ["FunctionCodec", "number_codec", "raw_codec", "str_codec", "type_name"]

_MODULES = re.compile(r"(?:[\w<>]+\.)+")


@dataclass(frozen=True, slots=True)
class FunctionCodec:
    """A codec made of two functions; see `millstream.serialization.base.Codec`."""

    name: str
    type_name: str
    dumps: Callable[[Any], bytes]
    loads: Callable[[bytes], Any]


def type_name(value_type: Any) -> str:
    """A type as messages call it: ``Order``, ``dict[str, int]``, ``list[Order]``; without the modules."""
    plain = isinstance(value_type, type) and not hasattr(value_type, "__args__")
    return value_type.__name__ if plain else _MODULES.sub("", str(value_type))


def raw_codec(value_type: Any) -> FunctionCodec:
    """bytes as they are."""
    _check("raw", value_type, bytes)
    return FunctionCodec("raw", "bytes", _dump_raw, bytes)


def str_codec(value_type: Any) -> FunctionCodec:
    """Text as UTF-8."""
    _check("str", value_type, str)
    return FunctionCodec("str", "str", dump_str, bytes.decode)


def number_codec(name: str) -> CodecFactory:
    """The factory of a codec for numbers of a fixed size."""
    kind, layout = _NUMBERS[name]

    def factory(value_type: Any) -> FunctionCodec:
        _check(name, value_type, kind)
        return FunctionCodec(name, kind.__name__, *_number_functions(name, kind, layout))

    return factory


_NUMBERS: dict[str, tuple[type[int] | type[float], Struct]] = {
    "short": (int, Struct(">h")),
    "integer": (int, Struct(">i")),
    "long": (int, Struct(">q")),
    "float": (float, Struct(">f")),
    "double": (float, Struct(">d")),
}


def _number_functions(
    name: str, kind: type[int] | type[float], layout: Struct
) -> tuple[Callable[[Any], bytes], Callable[[bytes], Any]]:
    accepted = (int,) if kind is int else (float, int)

    def dumps(value: Any) -> bytes:
        if isinstance(value, bool) or not isinstance(value, accepted):
            raise TypeError(f"expected {kind.__name__}, got {type(value).__name__}")
        try:
            return layout.pack(value)
        except (StructError, OverflowError):
            raise ValueError(f"{value!r} does not fit the {layout.size} bytes of {name}") from None

    def loads(data: bytes) -> Any:
        try:
            return layout.unpack(data)[0]
        except StructError:
            raise ValueError(
                f"expected the {layout.size} bytes of {name}, got {len(data)}"
            ) from None

    return dumps, loads


def _dump_raw(value: Any) -> bytes:
    if type(value) is bytes:
        return value
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    raise TypeError(f"expected bytes, got {type(value).__name__}")


def dump_str(value: Any) -> bytes:
    """Text as UTF-8: the function of the codec ``str``."""
    if isinstance(value, str):
        return value.encode()
    raise TypeError(f"expected str, got {type(value).__name__}")


def _check(codec: str, value_type: Any, served: type) -> None:
    if value_type not in (served, Any, object):
        raise ConfigurationError(
            f"codec {codec!r} is for {served.__name__}, not for {type_name(value_type)}"
        )
