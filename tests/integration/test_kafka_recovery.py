"""Taking a shard over: what is waited for (invariant 13), what compaction has left, and what a kill has."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka import TopicPartition as ConfluentPartition

from millstream.clock import SystemClock
from millstream.records import TopicPartition
from millstream.state.memory import MemoryBackend
from millstream.tables import POSITION_KEY, decode_position
from millstream.transports.base import TopicSpec
from millstream.transports.kafka import KafkaTransport
from millstream.worker._recovery import RecoveryProgress, Replay, recover
from tests.brokers import Program, Record, unique

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    import millstream as ms
    from tests.brokers import Kafka

LOOKS_S = 0.5
HOUR_MS = 3_600_000
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


async def test_readers_do_not_wait_for_an_open_epoch(kafka: Kafka) -> None:
    """Where they come to an end is told apart from the end, and the same with what they fetch: nobody waits for more."""
    other = await asyncio.to_thread(Open, kafka)
    tp = TopicPartition(other.changelog, 0)
    async with KafkaTransport(kafka.url) as transport, asyncio.timeout(DEADLINE_S):
        stable = await asyncio.to_thread(other.last_stable_offset)
        assert (await transport.end_offsets([tp]))[tp] > stable
        assert await transport.readable_ends([tp]) == {tp: stable}
        reader = transport.reader()
        (fetched,) = await reader.fetch({tp: 0}, max_bytes=1 << 20, max_wait_s=DEADLINE_S)
        assert (fetched.next_offset, fetched.end_offset) == (stable, stable)
        assert await reader.fetch({tp: stable}, max_bytes=1 << 20, max_wait_s=0) == []
        await asyncio.to_thread(other.end, commit=True)
        while await transport.readable_ends([tp]) != await transport.end_offsets([tp]):  # noqa: ASYNC110
            await asyncio.sleep(0.01)  # the marker comes after the answer


# what is left


async def test_a_compacted_changelog(kafka: Kafka) -> None:
    """What the broker's own compaction leaves of values and tombstones is the table."""
    changelog = await asyncio.to_thread(
        kafka.topic,
        "changelog",
        cleanup_policy="compact",
        delete_retention_ms=0,
        segment_bytes=1 << 20,
        segment_ms=100,
        min_cleanable_dirty_ratio=0.01,
    )
    table: dict[bytes, bytes] = {}
    written = 0

    def write() -> None:
        nonlocal written
        keys = [b"%d" % number for number in range(50)]
        values = {
            key: None if int(key) % 5 == written // 50 % 5 else b"%d" % written for key in keys
        }
        kafka.write(changelog, [Record(key=k, value=v) for k, v in values.items()])
        written += len(values)
        for key, value in values.items():
            table.pop(key, None)
            if value is not None:
                table[key] = value

    def left() -> int:
        return len(kafka.read(changelog))

    patience = time.monotonic() + DEADLINE_S
    while True:
        await asyncio.to_thread(write)
        if await asyncio.to_thread(left) < written - 50:
            break
        assert time.monotonic() < patience, "the broker has not compacted anything"
        await asyncio.sleep(0.2)
    store = MemoryBackend().open("1-0")
    async with KafkaTransport(kafka.url) as transport:
        await take_over(transport, changelog, store)
    found = {key: value for key, value in store.table("t").items() if key != POSITION_KEY}
    assert found == table


def texts(count: int) -> dict[str, bytes]:
    """Entries that take some space."""
    return {f"key-{number}": b'"%s"' % (b"%d." % number * 60) for number in range(count)}


async def test_killed_while_it_recovers(kafka: Kafka, tmp_path: Path) -> None:
    """Again and again: what is on the disk by then is not read a second time, and in the end all of it is there."""
    from millstream.serialization import key_codec_for, key_layout, partitioner
    from tests.integration.recovering import PARTITIONS

    app_id, entries = unique("recovering"), texts(30_000)
    source, changelog = f"{app_id}-source", f"{app_id}-texts-changelog"
    async with KafkaTransport(kafka.url) as transport:
        await transport.create_topics(
            [
                TopicSpec(name=source, partitions=PARTITIONS),
                TopicSpec(name=changelog, partitions=PARTITIONS, compacted=True),
            ]
        )
    place, layout = partitioner("murmur2"), key_layout(str)
    placed = key_codec_for(str)
    records = [
        Record(key=layout.encode(key), value=value, partition=place(placed.dumps(key), PARTITIONS))
        for key, value in entries.items()
    ]
    await asyncio.to_thread(kafka.write, changelog, records, batch_size=64 << 10)

    def worker(pieces: int) -> Program:
        return Program(
            "tests.integration.recovering",
            kafka.url,
            app_id,
            str(tmp_path / "state"),
            str(pieces),
            log=tmp_path / "log",
        )

    for _ in range(2):
        killed = worker(18)
        await asyncio.to_thread(killed.start)
        try:
            async with asyncio.timeout(DEADLINE_S):
                while killed.alive:  # noqa: ASYNC110  nobody tells when a process has gone
                    await asyncio.sleep(0.05)
        finally:
            killed.kill()
    last = worker(0)
    await asyncio.to_thread(last.start)
    try:
        replayed = await last.hear("replayed")
    finally:
        last.kill()
    assert 0 < replayed < 0.8 * len(entries), "what two others had replayed is replayed again"
    report = next(
        json.loads(line) for line in last.log.read_text().splitlines() if '"replayed"' in line
    )
    assert report["rebuilt"] == {}
    assert sum(report["entries"]) == len(entries)


# state that is idle


class Later(SystemClock):
    """A clock that is days slow, and moved by hand: brokers refuse records of the future."""

    def __init__(self) -> None:
        self.by_ms = -120 * HOUR_MS

    def now(self) -> int:
        return super().now() + self.by_ms


async def test_a_table_that_nobody_writes(kafka: Kafka, tmp_path: Path) -> None:
    """After days, also of its worker's absence, it is what it was: behind it lies the end of a transaction alone."""
    from tests.integration.test_kafka_worker import counter, work

    app_id, topic, clock = unique("idle"), kafka.topic("words", partitions=2), Later()
    wanted = {str(number): 1 for number in range(20)}

    def write() -> None:
        kafka.write(
            topic,
            [Record(key=b"%d" % n, value=b'"%d"' % n) for n in range(20)],
            partitioner="murmur2",
        )

    def app() -> ms.App:
        made = counter(kafka, app_id, topic, tmp_path)
        made.clock = clock
        return made

    await asyncio.to_thread(write)
    await work(app(), wanted, crash=True)
    clock.by_ms += 48 * HOUR_MS
    replayed, rebuilt = await work(app(), wanted, crash=True)
    assert rebuilt == {}
    assert replayed <= 4
    # a worker that runs: it confirms what it has, and then loses the next epoch with the memory of its process
    idle = app()
    async with idle.running(worker=True, web=False):
        assert idle.runtime is not None
        worker = idle.runtime.worker
        assert worker is not None
        async with asyncio.timeout(DEADLINE_S):
            await worker.ready.wait()
        clock.by_ms += 48 * HOUR_MS
        worker.membership.alive()  # type: ignore[union-attr]
        await worker._upkeep.once()
        positions = {
            (shard.name, name): decode_position(shard.store.table(name).get(POSITION_KEY))
            for shard in worker.shards.values()
            for name in ("counts",)
        }
        for found in positions.values():
            assert found is not None
            assert clock.now() - found.written < HOUR_MS
        worker.abandon()
    await asyncio.to_thread(write)  # another one's work, as far as this disk knows
    other = counter(kafka, app_id, topic, tmp_path / "other")
    other.clock = clock
    await work(other, dict.fromkeys(wanted, 2))
    clock.by_ms += 12 * HOUR_MS
    _, rebuilt = await work(app(), dict.fromkeys(wanted, 2))
    assert rebuilt == {}
