"""What an independent client finds in the topics of a program: committed records only, a partition number at a time.

A run of two million events leaves more records than fit into memory as Python has them. The model needs one
partition number of all topics at a time, and so that is what is read and kept.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from confluent_kafka import Consumer, KafkaError, KafkaException
from confluent_kafka import TopicPartition as ConfluentPartition

from millstream.records import TopicPartition
from tests.brokers import unique
from tests.crash.program import Entry, LogView

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from millstream.transports.base import OffsetAndMetadata
    from tests.brokers import Kafka

__all__ = ["KafkaView"]

DEADLINE_S = 120.0
BATCH = 10_000


class KafkaView(LogView):
    """A log on brokers that nobody writes to any more, as `Checker` looks at it.

    Args:
        kafka: where.
        prefix: what the names of the program's topics begin with, and what is left out of them here.
        positions: the committed positions of its group.
    """

    def __init__(
        self, kafka: Kafka, prefix: str, positions: Mapping[TopicPartition, OffsetAndMetadata]
    ) -> None:
        super().__init__({}, positions)
        self.count = 0
        """Records that were read."""
        self._prefix = prefix
        self._consumer = Consumer(
            {
                **kafka.settings,
                "group.id": unique("reader"),
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
                "enable.auto.commit": False,
                "auto.offset.reset": "error",
                "fetch.wait.max.ms": 10,
                "queued.max.messages.kbytes": 32_768,
            }
        )
        known = self._consumer.list_topics(timeout=30).topics
        self._counts = {
            name.removeprefix(prefix): len(found.partitions)
            for name, found in known.items()
            if name.startswith(prefix)
        }
        self._number = -1
        self._found: Mapping[str, Sequence[Entry]] = {}

    def of(self, topic: str, partition: int) -> Sequence[Entry]:
        """A partition's records; those of the other topics with this number come along."""
        if partition != self._number:
            self._found, self._number = {}, partition  # first, as both do not fit
            tps = [TopicPartition(name, partition) for name in self._counts]
            starts = {tp: 0 for tp in tps if partition < self._counts[tp.topic]}
            self._found = {tp.topic: found for tp, found in self._read(starts).items()}
            self.count += sum(map(len, self._found.values()))
        return self._found.get(topic, ())

    def behind(self, positions: Mapping[TopicPartition, int]) -> list[TopicPartition]:
        """The partitions that have records from a position on."""
        found = self._read(positions)
        return [tp for tp in positions if found[tp]]

    def close(self) -> None:
        """Hang up."""
        self._consumer.close()

    def _read(self, starts: Mapping[TopicPartition, int]) -> dict[TopicPartition, list[Entry]]:
        found: dict[TopicPartition, list[Entry]] = {tp: [] for tp in starts}
        self._consumer.assign(
            [
                ConfluentPartition(self._prefix + tp.topic, tp.partition, at)
                for tp, at in starts.items()
            ]
        )
        left, deadline = set(starts), time.monotonic() + DEADLINE_S
        while left:
            if time.monotonic() > deadline:
                raise AssertionError(f"not at the end of {sorted(left)}")
            for message in self._consumer.consume(BATCH, timeout=0.05):
                name = (message.topic() or "").removeprefix(self._prefix)
                tp = TopicPartition(name, message.partition() or 0)
                error = message.error()
                if error is None:
                    offset, (_, timestamp) = message.offset(), message.timestamp()
                    assert offset is not None
                    found[tp].append(Entry(offset, timestamp, message.key(), message.value()))
                elif error.code() == KafkaError._PARTITION_EOF:
                    left.discard(tp)
                elif not error.retriable():
                    raise KafkaException(error)
        return found
