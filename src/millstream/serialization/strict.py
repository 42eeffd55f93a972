"""Codecs that refuse values which they would not read again: of another type than declared, or of no type that JSON has.

msgspec and pydantic write whatever they can, so a float goes where an int was declared, and is found out by whoever
reads it, long after. And where nothing is declared, JSON gives a tuple back as a list, a dataclass as a dict, the key 1
as "1".

This much is checked: of a value whose type is declared, that it can be read again; not what is inside of a declared
container (a float in a list[int]), for that would take reading each value. Where nothing is declared, that it comes
back with the same content, of the same classes; a subclass of dict comes back as a dict.
"""

from __future__ import annotations

import reprlib
import types
import typing
from typing import TYPE_CHECKING, Any

from millstream.serialization._plain import FunctionCodec

if TYPE_CHECKING:
    from collections.abc import Callable

    from millstream.serialization.base import Codec

__all__ = ["strict_codec", "type_of"]

_CONTAINERS = (list, dict, set, frozenset, tuple)
_UNIONS = (typing.Union, types.UnionType)
_MODULES = ("builtins", "collections.abc", "typing", "types")


def strict_codec(codec: Codec[Any], value_type: Any, remedy: Callable[[Any], str]) -> FunctionCodec:
    """The codec, which refuses what it would not read again as it is.

    What is inside of values whose type is declared is not looked at; what is inside of containers of undeclared items
    is compared.

    Args:
        remedy: says of a value that is refused what the program should do.
    """
    encode, loads = codec.dumps, codec.loads
    type_name = "a value of unknown type" if value_type in (Any, object) else codec.type_name

    def refused(value: Any, why: str) -> TypeError:
        return TypeError(f"{reprlib.repr(value)} {why}: {remedy(value)}")

    container = typing.get_origin(value_type) or value_type
    # a named tuple, which a program reads by its fields, is no tuple
    subclasses_of = container if container in _CONTAINERS and container is not tuple else ()

    def dumps_compared(value: Any) -> bytes:
        try:
            data = encode(value)
            loaded = loads(data)
        except Exception as exc:
            raise refused(value, f"would not come back as it is ({exc})") from exc
        of_subclass = isinstance(value, subclasses_of) and isinstance(loaded, subclasses_of)
        known = value.__class__ is loaded.__class__ or of_subclass
        if not (known and _is_same(value, loaded)):
            back = reprlib.repr(loaded)
            raise refused(value, f"would come back as {back}, for its type is not declared")
        return data

    certain = _certain_classes(value_type)

    def dumps(value: Any) -> bytes:
        data = encode(value)
        if value.__class__ not in certain:
            try:
                loads(data)
            except Exception as exc:
                raise refused(value, f"would not come back as {type_name} ({exc})") from exc
        return data

    used = dumps if _is_declared(value_type) else dumps_compared
    return FunctionCodec(codec.name, type_name, used, loads)


def _is_same(value: Any, loaded: Any) -> bool:
    """Whether a value came back with what is in it, of the same classes; NaN is the same as NaN."""
    if isinstance(value, dict):
        return (
            isinstance(loaded, dict)
            and len(value) == len(loaded)
            and all(key in loaded and _is_same(one, loaded[key]) for key, one in value.items())
            and {*map(type, value)} == {*map(type, loaded)}
        )
    for kind in (list, tuple):
        if isinstance(value, kind):
            return (
                isinstance(loaded, kind)
                and len(value) == len(loaded)
                and all(map(_is_same, value, loaded))
            )
    if isinstance(value, (set, frozenset)):
        return bool(value == loaded) and {*map(type, value)} == {*map(type, loaded)}
    # an int is a float where one is declared, which nothing else makes of it
    widened = value.__class__ is int and loaded.__class__ is float
    if value.__class__ is not loaded.__class__ and not widened:
        return False
    return bool(value == loaded or (value != value and loaded != loaded))


def type_of(value: Any) -> str:
    """A value's type, as a program would declare it."""
    kind = type(value)
    if kind not in _CONTAINERS or not value:
        return kind.__name__
    inside = value if kind is tuple else next(iter(value.items())) if kind is dict else [*value][:1]
    return f"{kind.__name__}[{', '.join(map(type_of, inside))}]"


def _is_declared(kind: Any) -> bool:
    """Whether the type says what is in its values: no Any, no list of whatever."""
    if kind is Any or kind is object or isinstance(kind, typing.TypeVar) or kind in _CONTAINERS:
        return False
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return _is_declared(args[0])
    if origin in _UNIONS or getattr(origin, "__module__", "") in _MODULES:
        inside = [one for one in args if one is not Ellipsis]
        return origin is typing.Literal or (bool(inside) and all(map(_is_declared, inside)))
    return True


def _certain_classes(kind: Any) -> frozenset[type]:
    """Classes whose values the type reads again, so that nobody has to try. A float may be no number."""
    origin = typing.get_origin(kind)
    if origin in _UNIONS:
        return frozenset().union(*map(_certain_classes, typing.get_args(kind)))
    found = kind if origin is None else origin
    if not isinstance(found, type) or found is float or (origin and found not in _CONTAINERS):
        return frozenset()
    return frozenset({found})
