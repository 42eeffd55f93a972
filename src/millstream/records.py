"""Values that every layer passes on: partitions, positions, records."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from millstream.errors import ConfigurationError

__all__ = ["GivenHeaders", "Headers", "OutgoingRecord", "Position", "TopicPartition"]

Headers = list[tuple[str, bytes | None]]
"""Headers of a record, in the order in which they were added; names may repeat, and values be None, as in Kafka."""

GivenHeaders = Mapping[str, bytes | str | None] | Iterable[tuple[str, bytes | str | None]]
"""Headers as `send` takes them; text becomes UTF-8."""

_POSITION = re.compile(r"(?P<topic>[A-Za-z0-9._-]{1,249})/(?P<partition>\d+)@(?P<offset>\d+)")


class TopicPartition(NamedTuple):
    """One partition of a topic; written ``orders/3``."""

    topic: str
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}"


class Position(NamedTuple):
    """Where a record is; written ``orders/3@5123``."""

    topic: str
    partition: int
    offset: int

    @property
    def tp(self) -> TopicPartition:
        """The partition, without the offset."""
        return TopicPartition(self.topic, self.partition)

    @classmethod
    def parse(cls, text: str) -> Position:
        """Read ``topic/partition@offset``.

        Raises:
            ConfigurationError: the text has another form.
        """
        found = _POSITION.fullmatch(text.strip())
        if found is None:
            raise ConfigurationError(
                f"{text!r} is not a record: write topic/partition@offset, for example orders/3@5123"
            )
        return cls(found["topic"], int(found["partition"]), int(found["offset"]))

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}@{self.offset}"


class OutgoingRecord(NamedTuple):
    """A record on its way into the log: already encoded, not yet at an offset.

    ``timestamp`` is in ms since the epoch. A plain tuple in this order serves as well.
    """

    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers
