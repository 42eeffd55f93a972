"""Codecs of values on their way through internal topics and buffers, and what converts older ones."""

from __future__ import annotations

import functools
import inspect
import struct
from typing import TYPE_CHECKING, Any

import msgspec

from millstream.serialization import codec_for, strict_codec, type_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from millstream.serialization import Codec

__all__ = [
    "PairCodec",
    "annotate",
    "each_upgraded",
    "has_no_upgrade",
    "needs_a_name",
    "upgrade_with",
    "value_codec",
]

_length = struct.Struct(">i")


def value_codec(value_type: Any) -> Codec[Any]:
    """The codec of values whose type is what annotations say; what they say wrong, or not at all, it refuses."""
    return strict_codec(codec_for("json", value_type), value_type, annotate)


def annotate(value: Any) -> str:
    """What to do about a value whose type a stream does not know."""
    return f"annotate what the function returns, or give map(..., value={type_of(value)})"


def each_upgraded(
    upgrade: Callable[[Any], Any] | None, value_type: Any, *, ranked: bool = False
) -> Callable[[Any], Any] | None:
    """What converts a list in which some values are of an older form, from what converts one of those.

    Args:
        value_type: of the values; those that can be read as that stay as they are.
        ranked: the list has pairs of a number and a value.
    """
    if upgrade is None or not callable(upgrade) or inspect.iscoroutinefunction(upgrade):
        return upgrade  # to be refused as it is
    loads = value_codec(value_type).loads

    def upgrade_one(value: Any) -> Any:
        try:
            return loads(msgspec.json.encode(value))
        except (ValueError, TypeError):
            return upgrade(value)

    def upgrade_each(kept: list[Any]) -> list[Any]:
        if ranked:
            return [(number, upgrade_one(value)) for number, value in kept]
        return [upgrade_one(value) for value in kept]

    return functools.update_wrapper(upgrade_each, upgrade)


def upgrade_with(step: str) -> str:
    """What to do about stored values of a step that do not decode, where it converts them."""
    return f"Convert it with {step}(..., upgrade=), or reset the table"


def has_no_upgrade(step: str) -> str:
    """Likewise where it does not."""
    return (
        f"{step}() converts nothing: give the values the type back that they had, or the table another"
        f" name= to begin anew, or reset it"
    )


def needs_a_name(step: str) -> str:
    """Likewise where it is a step of a table that would convert them if it had a name."""
    return (
        f"Give {step}(), which makes these values, a name= and upgrade=, and the step behind it name= with"
        f" this table's name; or reset the table"
    )


class PairCodec:
    """A change of a table as one record: ``(new, old)``, either of which may be None."""

    name = "change"

    def __init__(self, codec: Codec[Any]) -> None:
        self._codec = codec
        self.type_name = codec.type_name

    def dumps(self, pair: tuple[Any, Any]) -> bytes:
        """Two values to bytes: the new one's length first, -1 where there is none."""
        new, old = pair
        first = b"" if new is None else self._codec.dumps(new)
        rest = b"" if old is None else b"\x01" + self._codec.dumps(old)
        return _length.pack(-1 if new is None else len(first)) + first + rest

    def loads(self, data: bytes) -> tuple[Any, Any]:
        """Bytes to two values."""
        (size,) = _length.unpack_from(data)
        end = 4 + max(size, 0)
        new = None if size < 0 else self._codec.loads(data[4:end])
        return new, None if len(data) == end else self._codec.loads(data[end + 1 :])
