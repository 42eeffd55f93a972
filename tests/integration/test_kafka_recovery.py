"""Taking a shard over: an epoch whose end has not reached the changelog yet is waited for (invariant 13)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka import TopicPartition as ConfluentPartition

from millstream.clock import SystemClock
from millstream.records import TopicPartition
from millstream.state.memory import MemoryBackend
from millstream.transports.kafka import KafkaTransport
from millstream.worker._recovery import RecoveryProgress, Replay, recover
from tests.brokers import unique

if TYPE_CHECKING:
    from collections.abc import Collection

    from tests.brokers import Kafka

LOOKS_S = 1.5
DEADLINE_S = 30.0


class Open:
    """An epoch of another worker that is written to a changelog, and not ended."""

    def __init__(self, kafka: Kafka) -> None:
        self._kafka = kafka
        self.changelog = kafka.topic("changelog", cleanup_policy="compact")
        self._producer = Producer({**kafka.settings, "transactional.id": unique("other")})
        self._producer.init_transactions(DEADLINE_S)
        self._write(b"before")
        self._producer.commit_transaction(DEADLINE_S)
        self._write(b"last")

    def _write(self, value: bytes) -> None:
        self._producer.begin_transaction()
        self._producer.produce(self.changelog, value, b"key", partition=0)
        assert self._producer.flush(DEADLINE_S) == 0

    def end(self, *, commit: bool) -> None:
        """Commit or abort it."""
        if commit:
            self._producer.commit_transaction(DEADLINE_S)
        else:
            self._producer.abort_transaction(DEADLINE_S)

    def last_stable_offset(self) -> int:
        """What an independent client takes for the end."""
        terms = {"group.id": unique("reader"), "isolation.level": "read_committed"}
        consumer = Consumer({**self._kafka.settings, **terms})
        try:
            tp = ConfluentPartition(self.changelog, 0)
            return int(consumer.get_watermark_offsets(tp, DEADLINE_S)[1])
        finally:
            consumer.close()


async def take_over(transport: KafkaTransport, changelog: str, store: Any) -> None:
    """What a shard does that a worker has been given."""
    await recover(
        store,
        [Replay(table="t", tp=TopicPartition(changelog, 0), topic_id="id")],
        transport=transport,
        app="app",
        clock=SystemClock(),
        progress=RecoveryProgress(),
        shard="1-0",
    )


@pytest.mark.parametrize("commit", [True, False])
async def test_an_open_epoch_is_waited_for(kafka: Kafka, commit: bool) -> None:
    """What it brings is in the store, or is not, as it ends."""
    other = await asyncio.to_thread(Open, kafka)
    store = MemoryBackend().open("1-0")
    async with KafkaTransport(kafka.url) as transport:
        taking = asyncio.ensure_future(take_over(transport, other.changelog, store))
        await asyncio.wait([taking], timeout=LOOKS_S)
        assert not taking.done()
        await asyncio.to_thread(other.end, commit=commit)
        async with asyncio.timeout(DEADLINE_S):
            await taking
    assert store.table("t").get(b"key") == (b"last" if commit else b"before")


async def test_the_last_stable_offset_is_not_the_end(
    kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who recovers to it loses the epoch: the test above would see it."""
    other = await asyncio.to_thread(Open, kafka)
    store = MemoryBackend().open("1-0")

    async def stable(
        self: KafkaTransport, tps: Collection[TopicPartition]
    ) -> dict[TopicPartition, int]:
        end = await asyncio.to_thread(other.last_stable_offset)
        return dict.fromkeys(tps, end)

    monkeypatch.setattr(KafkaTransport, "end_offsets", stable)
    async with KafkaTransport(kafka.url) as transport, asyncio.timeout(DEADLINE_S):
        await take_over(transport, other.changelog, store)
    await asyncio.to_thread(other.end, commit=True)
    assert store.table("t").get(b"key") == b"before"
