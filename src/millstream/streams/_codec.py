"""Codecs of values on their way through internal topics and buffers."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from millstream.serialization import codec_for

if TYPE_CHECKING:
    from millstream.serialization import Codec

__all__ = ["PairCodec", "value_codec"]

_length = struct.Struct(">i")
_PLAIN = (dict, list, str, int, float, bool, type(None))


def value_codec(value_type: Any) -> Codec[Any]:
    """The codec of values whose type is what annotations say; a strict one where they say nothing."""
    return UnknownCodec() if value_type is Any else codec_for("json", value_type)


class UnknownCodec:
    """JSON for values of a type that nothing declares: those that come back as they went, and no others."""

    name = "json"
    type_name = "a value of unknown type"

    def __init__(self) -> None:
        json = codec_for("json", Any)
        self._dumps, self.loads = json.dumps, json.loads

    def dumps(self, value: Any) -> bytes:
        """Value to bytes.

        Raises:
            TypeError: JSON would bring the value back as something else.
        """
        if type(value) not in _PLAIN:
            raise TypeError(
                f"the stream's type is not known, and a {type(value).__name__} would come back as another"
                f" type: annotate what the function returns, or give map(..., value={type(value).__name__})"
            )
        return self._dumps(value)


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
