"""Tables whose values are kept with a timestamp: those that streams make, or use as tables.

The part's values are pairs ``(timestamp, value)``, stored as eight bytes (ms, big endian) and the value's own. What
programs see is the value alone.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from millstream.tables._part import DELETED, MISSING, TablePart

if TYPE_CHECKING:
    from millstream.context import Scope

__all__ = ["StampedPart", "stamp"]

_long = struct.Struct(">Q")


def stamp(timestamp: int, data: bytes) -> bytes:
    """A value's bytes as they are stored with a timestamp."""
    return _long.pack(timestamp) + data


class StampedPart(TablePart):
    """Entries are pairs of timestamp and value."""

    __slots__ = ()

    @property
    def kept_as(self) -> str:
        return "values with the time of each"

    def _encode(self, key: Any, value: Any) -> bytes:
        return _long.pack(value[0]) + super()._encode(key, value[1])

    def decode(self, key: Any, data: bytes) -> Any:
        return _long.unpack_from(data)[0], super().decode(key, data[8:])

    def value_of(self, stored: Any) -> Any:
        return stored[1] if self.show is None else self.show(stored[1])

    def replace(self, key: Any, value: Any, timestamp: int, scope: Scope) -> tuple[int, Any] | None:
        """Give the key a value, or none where it is None; what it had before, or None."""
        stored = self.get(key, scope)
        self.set(key, DELETED if value is None else (timestamp, value), scope)
        return None if stored is MISSING else stored
