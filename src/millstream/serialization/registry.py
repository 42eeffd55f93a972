"""Codecs by name, and those of keys.

| name | Python type | bytes |
|---|---|---|
| ``json`` | any that msgspec or pydantic knows | JSON text |
| ``msgpack`` | the same | MessagePack |
| ``raw`` | bytes | as they are |
| ``str`` | str | UTF-8; Kafka's ``StringSerializer`` |
| ``short`` ``integer`` ``long`` | int | 2, 4, 8 bytes, big endian; Kafka's ``ShortSerializer``, ``IntegerSerializer``, ``LongSerializer`` |
| ``float`` ``double`` | float | IEEE 754, 4 and 8 bytes, big endian; Kafka's ``FloatSerializer``, ``DoubleSerializer`` |
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from millstream.errors import ConfigurationError
from millstream.serialization._json_keys import json_key_codec
from millstream.serialization._plain import number_codec, raw_codec, str_codec
from millstream.serialization._typed import json_codec, msgpack_codec

if TYPE_CHECKING:
    from millstream.serialization.base import Codec, CodecFactory

__all__ = ["codec_for", "codec_names", "key_codec_for", "register_codec"]

_factories: dict[str, CodecFactory] = {
    "json": json_codec,
    "msgpack": msgpack_codec,
    "raw": raw_codec,
    "str": str_codec,
    "short": number_codec("short"),
    "integer": number_codec("integer"),
    "long": number_codec("long"),
    "float": number_codec("float"),
    "double": number_codec("double"),
}
_PICKLES = ("pickle", "cloudpickle", "dill", "marshal")


def codec_for(name: str, value_type: Any) -> Codec[Any]:
    """The codec of a name for values of a declared type.

    Raises:
        ConfigurationError: there is no such codec, or it cannot serve the type.
    """
    factory = _factories.get(name)
    if factory is not None:
        return factory(value_type)
    if name in _PICKLES:
        raise ConfigurationError(
            f"there is no codec {name!r}: reading it runs whatever code the record's writer put there,"
            f" and its bytes change with your classes. Use json or msgpack with a declared type"
        )
    raise ConfigurationError(
        f"there is no codec {name!r}: use one of {', '.join(codec_names())}, or add it with"
        f" register_codec({name!r}, factory)"
    )


def codec_names() -> list[str]:
    """Names of all codecs, sorted."""
    return sorted(_factories)


def register_codec(name: str, factory: CodecFactory) -> None:
    """Add a codec, or put another one in the place of an existing one.

    ``factory`` is called with the declared type of each topic or table that asks for the codec.
    """
    _factories[name] = factory


def key_codec_for(key_type: Any, name: str | None = None) -> Codec[Any]:
    """The codec for keys on topics: of that name, or the one that the type calls for.

    str is UTF-8, bytes are as they are, all others are JSON text. Equal keys have equal bytes, which decide
    their partition. None, a record without a key, is the caller's affair.

    Raises:
        ConfigurationError: as `codec_for`.
    """
    if name is not None and name != "json":
        return codec_for(name, key_type)
    if name is None and key_type is str:
        return codec_for("str", str)
    if name is None and key_type is bytes:
        return codec_for("raw", bytes)
    return json_key_codec(key_type)
