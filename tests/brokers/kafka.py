"""A broker as a test sees it: an address, and what an independent client (librdkafka) writes and reads there."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from confluent_kafka import (
    TIMESTAMP_NOT_AVAILABLE,
    Consumer,
    KafkaError,
    KafkaException,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, NewTopic

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from confluent_kafka import Message

__all__ = ["Kafka", "Record", "unique"]

DEADLINE_S = 60.0
PARTITIONER = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A record, as librdkafka writes and reads it.

    ``partition`` None leaves the choice to its partitioner, ``timestamp`` None (milliseconds) is now.
    """

    key: bytes | None = None
    value: bytes | None = None
    headers: tuple[tuple[str, bytes | None], ...] = ()
    timestamp: int | None = None
    partition: int | None = None
    offset: int | None = None


def unique(prefix: str) -> str:
    """Return a name that nobody has: tests share a broker, and each has its own topics and groups."""
    return f"{prefix}-{uuid.uuid4().hex[:12]}"


class Kafka:
    """A broker or several, wherever they come from.

    Args:
        bootstrap: ``host:port,host:port``.
        settings: What librdkafka needs beside the address, such as a password.
    """

    def __init__(self, bootstrap: str, settings: Mapping[str, Any] | None = None) -> None:
        self.bootstrap = bootstrap
        self._settings = dict(settings or {})

    @property
    def url(self) -> str:
        """The address as Millstream's setting ``broker``."""
        return f"kafka://{self.bootstrap}"

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of a client of librdkafka."""
        # no log lines on standard error: what goes wrong comes back from the calls
        return {"bootstrap.servers": self.bootstrap, "log_level": 0, **self._settings}

    def admin(self) -> AdminClient:
        """Return librdkafka's admin client."""
        return AdminClient(self.settings)

    def topic(self, name: str = "topic", *, partitions: int = 1, **config: Any) -> str:
        """Create a topic and return its name, which is made unique; it is there when this returns.

        Old records stay in it, unless ``retention_ms`` says otherwise.

        Args:
            name: What the name begins with.
            partitions: How many.
            config: Settings, with ``_`` for ``.``: ``cleanup_policy="compact"``.
        """
        chosen = unique(name)
        settings = {"retention.ms": "-1"}
        settings |= {key.replace("_", "."): str(value) for key, value in config.items()}
        admin = self.admin()
        created = admin.create_topics([NewTopic(chosen, partitions, -1, config=settings)])
        created[chosen].result(DEADLINE_S)
        patience = time.monotonic() + DEADLINE_S
        while not self._is_known(admin, chosen, partitions):
            assert time.monotonic() < patience, f"{chosen} was created, and has no leader"
            time.sleep(0.02)
        return chosen

    def write(self, topic: str, records: Sequence[Record], **settings: Any) -> None:
        """Write records, and return when the broker has all of them.

        Args:
            topic: Where.
            records: What, in this order.
            settings: librdkafka's, with ``_`` for ``.``: ``compression_type="lz4"``.
        """
        more = {key.replace("_", "."): value for key, value in settings.items()}
        producer = Producer({**self.settings, **more})
        refused: list[KafkaError] = []

        def on_delivery(error: KafkaError | None, _: Message) -> None:
            if error is not None:
                refused.append(error)

        for record in records:
            producer.produce(
                topic,
                key=record.key,
                value=record.value,
                headers=list(record.headers),
                timestamp=record.timestamp or 0,
                partition=PARTITIONER if record.partition is None else record.partition,
                on_delivery=on_delivery,
            )
        left = producer.flush(DEADLINE_S)
        assert not left, f"{left} records were not taken in {DEADLINE_S:.0f} s"
        if refused:
            raise KafkaException(refused[0])

    def in_sync(self, topic: str) -> int:
        """Return how many brokers have the partition that the fewest of them have."""
        found = self.admin().list_topics(topic, timeout=DEADLINE_S).topics[topic].partitions
        return min(len(one.isrs) for one in found.values())

    def read(self, topic: str, *, committed: bool = True) -> list[Record]:
        """Return what a topic holds now, in the order of partition and offset.

        Args:
            topic: Which.
            committed: Whether open and aborted transactions are left out.
        """
        level = "read_committed" if committed else "read_uncommitted"
        more: dict[str, Any] = {"group.id": unique("reader"), "isolation.level": level}
        more |= {"enable.partition.eof": True, "enable.auto.commit": False, "fetch.wait.max.ms": 10}
        consumer = Consumer({**self.settings, **more})
        try:
            partitions = consumer.list_topics(topic, timeout=DEADLINE_S).topics[topic].partitions
            consumer.assign([TopicPartition(topic, number, 0) for number in partitions])
            return _read_to_the_end(consumer, len(partitions))
        finally:
            consumer.close()

    def _is_known(self, admin: AdminClient, topic: str, partitions: int) -> bool:
        found = admin.list_topics(topic, timeout=DEADLINE_S).topics[topic].partitions
        return len(found) == partitions and all(one.leader >= 0 for one in found.values())


def _read_to_the_end(consumer: Consumer, partitions: int) -> list[Record]:
    found: list[Record] = []
    ended: set[int | None] = set()
    patience = time.monotonic() + DEADLINE_S
    while len(ended) < partitions:
        assert time.monotonic() < patience, f"not at the end after {DEADLINE_S:.0f} s: {found}"
        message = consumer.poll(0.1)
        if message is None:
            continue
        error = message.error()
        if error is None:
            found.append(_record(message))
        elif error.code() == KafkaError._PARTITION_EOF:
            ended.add(message.partition())
        elif not error.retriable():
            raise KafkaException(error)
    return sorted(found, key=lambda record: (record.partition or 0, record.offset or 0))


def _record(message: Message) -> Record:
    kind, timestamp = message.timestamp()
    headers: Any = message.headers() or ()
    return Record(
        key=message.key(),
        value=message.value(),
        headers=tuple(headers),
        timestamp=None if kind == TIMESTAMP_NOT_AVAILABLE else timestamp,
        partition=message.partition(),
        offset=message.offset(),
    )
