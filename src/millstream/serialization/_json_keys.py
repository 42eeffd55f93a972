"""JSON text as the key of a record: equal keys have equal bytes, for these decide the partition."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from millstream.errors import ConfigurationError
from millstream.serialization._plain import FunctionCodec, type_name
from millstream.serialization._typed import check_served, json_codec, uses_pydantic
from millstream.serialization.keys import key_layout

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["json_key_codec"]


def json_key_codec(key_type: Any) -> FunctionCodec:
    """Compact JSON of a key.

    A key that a table can have is first brought into the one form that it has there (floats without
    ``-0.0``, datetimes in UTC), and so is checked to be of its type. Sets and dicts are sorted.
    """
    if uses_pydantic(key_type):
        return json_codec(key_type)
    check_served("json", key_type)
    return FunctionCodec(
        "json",
        type_name(key_type),
        _dumps(key_type),
        msgspec.json.Decoder(Any if key_type is object else key_type).decode,
    )


def _dumps(key_type: Any) -> Callable[[Any], bytes]:
    encode = msgspec.json.Encoder(order="deterministic").encode
    if key_type is int:
        return _dump_int
    try:
        layout = key_layout(key_type)
    except ConfigurationError:
        return encode
    to_bytes, from_bytes = layout.encode, layout.decode
    return lambda key: encode(from_bytes(to_bytes(key)))


def _dump_int(key: Any) -> bytes:
    if isinstance(key, bool) or not isinstance(key, int):
        raise TypeError(f"expected a key of type int, got {type(key).__name__}")
    return b"%d" % key
