"""What becomes of a worker when topics change: more partitions, new topics, others' topics."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka.admin import NewPartitions

import millstream as ms
from millstream.errors import PartitionCountError
from millstream.worker import _worker
from tests.brokers import Record, unique

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.brokers import Kafka

DEADLINE_S = 60.0


def grow(kafka: Kafka, topic: str, partitions: int) -> None:
    """Give a topic more partitions."""
    admin = kafka.admin()
    for done in admin.create_partitions([NewPartitions(topic, partitions)]).values():
        done.result(30)


def write(kafka: Kafka, topic: str, count: int) -> None:
    """A record into each of so many partitions."""
    kafka.write(topic, [Record(key=b"k%d" % n, value=b'"x"', partition=n) for n in range(count)])


def reader(
    kafka: Kafka, app_id: str, folder: Path, *names: str, **declared: Any
) -> tuple[ms.App, list[tuple[str, int]]]:
    """An app without tables, and topic and partition of what it has read."""
    app = ms.App(app_id, broker=kafka.url, state_dir=folder, web=False)
    seen: list[tuple[str, int]] = []

    @app.agent(app.topic(*names, key=str, value=str, **declared))
    async def read(stream: ms.Stream[str]) -> None:
        async for event in stream.events():
            seen.append((event.topic, event.partition))  # noqa: PERF401  a stream is no list

    return app, seen


async def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(DEADLINE_S):
        while not holds():  # noqa: ASYNC110  nobody tells when it is so
            await asyncio.sleep(0.02)


async def test_a_source_grows_while_the_app_runs(
    kafka: Kafka, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker ends with an error that names both counts; an app without tables goes on with all, losing nothing."""
    monkeypatch.setattr(_worker, "LOOK_INTERVAL_S", 0.1)
    app_id, topic = unique("growing"), kafka.topic("words", partitions=2)
    app, seen = reader(kafka, app_id, tmp_path, topic)
    await asyncio.to_thread(write, kafka, topic, 2)
    with pytest.raises(PartitionCountError, match=r"has 4 partitions now, and had 2.*again"):  # noqa: PT012  it ends there
        async with app.running(worker=True, web=False):
            await until(lambda: len(seen) == 2)
            await asyncio.to_thread(grow, kafka, topic, 4)
            await asyncio.Event().wait()
    await asyncio.to_thread(write, kafka, topic, 4)
    app, again = reader(kafka, app_id, tmp_path, topic)
    async with app.running(worker=True, web=False):
        await until(lambda: {number for _, number in seen + again} == {0, 1, 2, 3})


async def test_a_pattern_follows_new_topics(
    kafka: Kafka, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A topic that is made later is read from its first record, and across a restart; another one is not read."""
    monkeypatch.setattr(_worker, "TOPICS_INTERVAL_S", 0.1)
    app_id, prefix = unique("patterns"), unique("orders")
    first = kafka.topic(f"{prefix}-a", partitions=2)
    app, seen = reader(kafka, app_id, tmp_path, pattern=f"{prefix}-.*")
    await asyncio.to_thread(write, kafka, first, 2)
    async with app.running(worker=True, web=False):
        await until(lambda: len(seen) == 2)
        second = await asyncio.to_thread(kafka.topic, f"{prefix}-b", partitions=2)
        other = await asyncio.to_thread(kafka.topic, f"other-{prefix}", partitions=2)
        for topic in (second, other):
            await asyncio.to_thread(write, kafka, topic, 2)
        await until(lambda: len(seen) == 4)
    assert {topic for topic, _ in seen} == {first, second}
    app, seen = reader(kafka, app_id, tmp_path, pattern=f"{prefix}-.*")
    async with app.running(worker=True, web=False):
        await asyncio.to_thread(write, kafka, second, 2)
        await until(lambda: len(seen) == 2)
    assert [topic for topic, _ in seen] == [second, second]
