"""What every key layout does; the layouts themselves are described in `millstream.serialization.keys`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic, TypeVar

__all__ = ["KeyLayout", "after_prefix"]

K = TypeVar("K")


class KeyLayout(ABC, Generic[K]):
    """Writes keys of one type as bytes, text and JSON, and reads them back.

    `encode` raises `TypeError` for a key of another type and `ValueError` for one that has no place in the
    order. All that reads raises `ValueError`, with what was expected.
    """

    type_name: str

    @abstractmethod
    def encode(self, key: K) -> bytes:
        """The key's bytes."""

    @abstractmethod
    def read(self, data: bytes, at: int = 0) -> tuple[K, int]:
        """The key whose bytes begin at ``at``, and the place where they end: where a suffix begins."""

    def decode(self, data: bytes) -> K:
        """The key, from its bytes and nothing more."""
        key, end = self.read(data)
        if end != len(data):
            raise ValueError(f"{len(data) - end} bytes after a key of type {self.type_name}")
        return key

    def prefix(self, prefix: Any) -> tuple[bytes, bytes | None]:
        """Bounds ``start <= bytes < end`` of all keys that begin with ``prefix``; None is no upper bound.

        For str and bytes any beginning of the key; for tuples and their like the leading elements, as a
        tuple, or one element by itself. Suffixes of these keys are inside the bounds.

        Raises:
            TypeError: keys of this type have no beginning, or it is of another type.
        """
        raise TypeError(f"keys of type {self.type_name} have no prefix: give start= and end=")

    @abstractmethod
    def parse(self, text: str) -> K:
        """The key as people write it in a URL or on the command line.

        str as it is; bytes as text, or ``0x`` and hex digits; numbers in decimal; ``true`` and ``false``;
        UUIDs; datetimes in ISO 8601 with a zone; an Enum's value; all others as a JSON array, or an object
        where the fields have names.
        """

    def format(self, key: K) -> str:
        """The key as text that `parse` reads."""
        return str(self.to_json(key))

    @abstractmethod
    def to_json(self, key: K) -> Any:
        """The key as a value that JSON can hold."""

    @abstractmethod
    def from_json(self, value: Any) -> K:
        """The key from what `to_json` made of it."""

    def _wrong(self, key: object) -> TypeError:
        return TypeError(f"expected a key of type {self.type_name}, got {type(key).__name__}")

    def _not(self, value: object, example: str) -> ValueError:
        return ValueError(f"{value!r} is not a key of type {self.type_name}: write {example}")


def after_prefix(start: bytes) -> bytes | None:
    """The smallest bytes above all that begin with ``start``; None when there are none."""
    kept = start.rstrip(b"\xff")
    return kept[:-1] + bytes((kept[-1] + 1,)) if kept else None
