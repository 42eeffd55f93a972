"""Tables whose values are kept with a timestamp: those that streams make, or use as tables.

The part's values are pairs ``(timestamp, value)``, or the bytes of both, stored as eight bytes (ms, big endian) and the
value's own. What programs see is the value alone.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from millstream.tables._part import DELETED, MISSING, TablePart

if TYPE_CHECKING:
    from millstream.context import Scope

__all__ = ["PackedPart", "StampedPart", "stamp"]

_long = struct.Struct(">Q")
_pack, _unpack = _long.pack, _long.unpack_from


def stamp(timestamp: int, data: bytes) -> bytes:
    """A value's bytes as they are stored with a timestamp."""
    return _long.pack(timestamp) + data


class PackedPart(TablePart):
    """Entries are bytes, as they are stored: of a table whose values come as the bytes of records.

    Nothing is encoded, and each who reads a value has an object of its own.
    """

    __slots__ = ()

    @property
    def kept_as(self) -> str:
        return "values with the time of each"

    def __init__(self, name: str, **arguments: Any) -> None:
        """Arguments as for `TablePart`."""
        super().__init__(name, **{**arguments, "mutable": False})

    def put(self, key: Any, data: bytes | None, timestamp: int, scope: Scope) -> None:
        """Give the key the value that ``data`` stands for, or none."""
        stored = DELETED if data is None else _pack(timestamp) + data
        if scope.journal is None and key in self.dirty:
            self.dirty[key] = stored
        else:
            self.set(key, stored, scope)

    def pair(self, key: Any, scope: Scope) -> tuple[Any, int] | None:
        """Value and timestamp of a key."""
        stored = self.dirty.get(key) if scope.journal is None else self.get(key, scope)
        if stored is None:
            stored = self.load(key)
        if stored is MISSING or stored is DELETED:
            return None
        try:
            return self.loads(stored[8:]), _unpack(stored)[0]
        except Exception:
            return super().decode(key, stored[8:]), _unpack(stored)[0]  # says what is wrong

    def _encode(self, key: Any, value: Any) -> bytes:
        data: bytes = value
        return data

    def decode(self, key: Any, data: bytes) -> Any:
        return data

    def check_entry(self, key: Any, data: bytes) -> None:
        super().decode(key, data[8:])

    def value_of(self, stored: Any) -> Any:
        value = super().decode(None, stored[8:])
        return value if self.show is None else self.show(value)


class StampedPart(TablePart):
    """Entries are pairs of timestamp and value."""

    __slots__ = ()

    @property
    def kept_as(self) -> str:
        return "values with the time of each"

    def _encode(self, key: Any, value: Any) -> bytes:
        try:
            data = self.dumps(value[1])
            if len(data) <= self.value_bytes_max:
                return _pack(value[0]) + data
        except Exception:  # met again, and said, below
            pass
        return _pack(value[0]) + super()._encode(key, value[1])

    def decode(self, key: Any, data: bytes) -> Any:
        try:
            return _unpack(data)[0], self.loads(data[8:])
        except Exception:
            return _unpack(data)[0], super().decode(key, data[8:])  # says what is wrong

    def value_of(self, stored: Any) -> Any:
        return stored[1] if self.show is None else self.show(stored[1])

    def copy(self, key: Any, value: Any) -> Any:
        """Another object like a value of this key, which may change in place.

        Raises:
            EncodeError, RecordTooLargeError: the value cannot be kept.
        """
        try:
            return self.loads(self.dumps(value))
        except Exception:
            return self.decode(key, self._encode(key, (0, value)))[1]  # says what is wrong

    def replace(self, key: Any, value: Any, timestamp: int, scope: Scope) -> tuple[int, Any] | None:
        """Give the key a value, or none where it is None; what it had before, or None."""
        stored = self.get(key, scope)
        self.set(key, DELETED if value is None else (timestamp, value), scope)
        return None if stored is MISSING else stored
