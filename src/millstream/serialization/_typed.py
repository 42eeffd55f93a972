"""JSON and MessagePack of declared types, by msgspec, or by pydantic for its own models.

Values are written as they come: a dict in its own order, a set in whatever order it has. msgspec could sort
them, but then refuses dicts whose keys are not str, and takes twice as long for the others; nothing here
compares the bytes of values. Keys are another matter (`millstream.serialization.registry.key_codec_for`).
"""

from __future__ import annotations

import typing
from typing import TYPE_CHECKING, Any

import msgspec

from millstream.errors import ConfigurationError
from millstream.serialization._plain import FunctionCodec, type_name

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["check_served", "json_codec", "msgpack_codec", "uses_pydantic"]


def json_codec(value_type: Any) -> FunctionCodec:
    """JSON text. Reading checks the declared type; Any, object and a plain dict are not looked into."""
    if uses_pydantic(value_type):
        adapter = _pydantic_adapter(value_type)
        return FunctionCodec(
            "json", type_name(value_type), adapter.dump_json, adapter.validate_json
        )
    check_served("json", value_type)
    return FunctionCodec(
        "json",
        type_name(value_type),
        msgspec.json.Encoder().encode,
        msgspec.json.Decoder(_untyped(value_type)).decode,
    )


def msgpack_codec(value_type: Any) -> FunctionCodec:
    """MessagePack; types as in JSON, bytes and dict keys as they are."""
    encode = msgspec.msgpack.Encoder().encode
    if uses_pydantic(value_type):
        adapter = _pydantic_adapter(value_type)
        decode = msgspec.msgpack.Decoder().decode
        return FunctionCodec(
            "msgpack",
            type_name(value_type),
            lambda value: encode(adapter.dump_python(value, mode="json")),
            lambda data: adapter.validate_python(decode(data)),
        )
    check_served("msgpack", value_type)

    def dumps(value: Any) -> bytes:
        try:
            return encode(value)
        except OverflowError as problem:  # an int of more than 64 bits
            raise ValueError(str(problem)) from problem

    loads = msgspec.msgpack.Decoder(_untyped(value_type)).decode
    return FunctionCodec("msgpack", type_name(value_type), dumps, loads)


def check_served(codec: str, value_type: Any) -> None:
    """Raise ConfigurationError unless msgspec reads and writes the type."""
    name = type_name(value_type)
    try:
        msgspec.json.Decoder(_untyped(value_type))
        described = msgspec.inspect.type_info(_untyped(value_type))
    except (TypeError, ValueError, NameError) as problem:
        raise ConfigurationError(
            f"codec {codec!r} cannot serve the type {name}: {problem}"
        ) from problem
    for part in _parts(described):
        if isinstance(part, msgspec.inspect.CustomType):
            raise ConfigurationError(
                f"codec {codec!r} cannot serve the type {name}: it does not know {type_name(part.cls)}."
                f" Use a dataclass, TypedDict, attrs class, msgspec.Struct or pydantic model, or write a"
                f" codec and register it with register_codec"
            )


def uses_pydantic(value_type: Any) -> bool:
    """Whether the type is a pydantic model or dataclass, or is made of one; never imports pydantic."""
    if hasattr(value_type, "__pydantic_validator__"):
        return True
    return any(uses_pydantic(argument) for argument in typing.get_args(value_type))


def _pydantic_adapter(value_type: Any) -> Any:
    from pydantic import PydanticSchemaGenerationError, TypeAdapter

    try:
        return TypeAdapter(value_type)
    except PydanticSchemaGenerationError as problem:
        raise ConfigurationError(
            f"pydantic cannot serve the type {type_name(value_type)}: {problem}"
        ) from problem


def _untyped(value_type: Any) -> Any:
    return Any if value_type is object else value_type


def _parts(root: object) -> Iterator[object]:
    """Every description inside one of `msgspec.inspect`, each once, for types may be recursive."""
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, (tuple, list)):
            waiting.extend(part)
        elif isinstance(part, (msgspec.inspect.Type, msgspec.inspect.Field)):
            yield part
            waiting.extend(getattr(part, name) for name in part.__struct_fields__)
