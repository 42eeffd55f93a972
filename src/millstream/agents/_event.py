"""An event: a record, decoded, with where it came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic

from typing_extensions import TypeVar

from millstream.context import current
from millstream.records import Position

if TYPE_CHECKING:
    from millstream.records import Headers

__all__ = ["Event", "current_event"]

V = TypeVar("V")
K = TypeVar("K", default=Any)


@dataclass(frozen=True, slots=True)
class Event(Generic[V, K]):
    """A record as an agent sees it. ``timestamp`` is event time in ms since the epoch."""

    key: K
    value: V
    timestamp: int
    offset: int
    partition: int
    topic: str
    headers: Headers

    @property
    def id(self) -> str:
        """Unique for ever, the same in every attempt: ``orders/3@5123``. Use it as an idempotency key."""
        return str(Position(self.topic, self.partition, self.offset))


def current_event() -> Event[Any] | None:
    """The record at hand, which drives what is done here; None where time does, or nothing.

    Its value is decoded once more, unlike the stream's. In functions of a declared stream it belongs to the value
    they are given only where no step before has held records back, joined them or given them another key.
    """
    scope = current.get(None)
    if scope is None or not scope.open or scope.record is None or scope.tp is None:
        return None
    record = scope.record
    return Event(
        key=scope.stream.decode_key(scope.tp.topic, record.key),
        value=scope.stream.decode_value(scope.tp.topic, record.value),
        timestamp=scope.timestamp,
        offset=record.offset,
        partition=scope.tp.partition,
        topic=scope.tp.topic,
        headers=record.headers,
    )
