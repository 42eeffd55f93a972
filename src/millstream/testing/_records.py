"""Records as a test sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from millstream.records import Headers, Position

__all__ = ["SentRecord"]


class SentRecord(tuple[Any, Any]):
    """A record in a topic: the pair of its key and its value, so that a test compares it with one.

    Attributes:
        headers: pairs of name and bytes, as they were sent.
        timestamp: ms since the epoch.
        topic, partition, offset: where it is.
    """

    headers: Headers
    timestamp: int
    topic: str
    partition: int
    offset: int

    def __new__(
        cls, key: Any, value: Any, headers: Headers, timestamp: int, position: Position
    ) -> SentRecord:
        """Made by `TestApp.records`."""
        record = super().__new__(cls, (key, value))
        record.headers = list(headers)
        record.timestamp = timestamp
        record.topic, record.partition, record.offset = position
        return record

    @property
    def key(self) -> Any:
        """The key, decoded."""
        return self[0]

    @property
    def value(self) -> Any:
        """The value, decoded; None for a tombstone."""
        return self[1]
