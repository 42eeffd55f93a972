"""Records of several types in one stream: what merges topics or streams of different types hands on."""

from __future__ import annotations

import functools
import operator as operators
import types
import typing
from typing import TYPE_CHECKING, Any, NamedTuple, get_args, get_origin

from millstream.errors import ConfigurationError, TopologyError
from millstream.serialization import codec_for, type_name, uses_pydantic

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Mixed", "check_one_type", "mix"]

_PLAIN = (type(None), bool, int, float, str, list, dict)
"""Classes that JSON gives back where no type is declared."""


class Mixed(NamedTuple):
    """Types that do not tell their values apart, by the names of where they come from."""

    kinds: dict[str, Any]
    union: Any


def mix(kinds: Sequence[tuple[str, Any, Mixed | None]]) -> tuple[Any, Mixed | None]:
    """The type of records that come from several places.

    Args:
        kinds: by place: its name, the type of its values, and what that is mixed of.

    Returns:
        The type; of types whose values cannot be told apart in what is kept, also which they are.
    """
    found = [kind for _, kind, _ in kinds]
    if all(kind == found[0] for kind in found):
        return found[0], kinds[0][2]
    if Any in found or object in found:
        return Any, None
    try:
        union = functools.reduce(operators.or_, found)
    except TypeError:  # no types, but what stands for them
        return Any, None
    if not any(map(uses_pydantic, found)):  # which takes the first type that fits
        try:
            codec_for("json", union)
        except ConfigurationError:
            pass
        else:
            return union, None
    if all(map(_is_plain, found)):
        return Any, None
    places: dict[str, Any] = {}
    for name, kind, mixed in kinds:
        places.update({name: kind} if mixed is None else mixed.kinds)
    return union, Mixed(places, union)


def _is_plain(kind: Any) -> bool:
    """Whether values are what JSON gives back where no type is declared."""
    origin = get_origin(kind) or kind
    if origin in (typing.Union, types.UnionType, list, dict):
        return all(map(_is_plain, get_args(kind)))
    return origin in _PLAIN or origin is typing.Literal or typing.is_typeddict(origin)


def check_one_type(mixed: Mixed | None, value_type: Any) -> None:
    """Refuse to keep values, or to move them, that would not come back as what they are.

    Args:
        mixed: what they were mixed of before their type may have changed.
    """
    if mixed is None or value_type is not mixed.union:
        return
    listed = " and ".join(
        f"those of {name!r} of type {type_name(kind)}" for name, kind in mixed.kinds.items()
    )
    raise TopologyError(
        f"the stream has records of several types, {listed}: where they are kept, or moved to the shards"
        f" of other keys, nothing tells which one is what. Give them one type before they meet, for example"
        f" app.stream(one).map(f, value=T).merge(app.stream(other).map(g, value=T))"
    )
