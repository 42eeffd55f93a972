"""Programs of others on one cluster with ours: Kafka's Java clients, Kafka Streams, and librdkafka."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

import millstream as ms
from millstream.errors import PlacementError, UnavailableError
from tests.brokers import Record, unique
from tests.integration.peer import Peer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence
    from pathlib import Path

    from millstream.app._runtime import Runtime
    from millstream.app._web import Questions
    from tests.brokers import Kafka

DEADLINE_S = 60.0
PARTITIONS = 4
COMPRESSIONS = ["none", "gzip", "snappy", "lz4", "zstd"]
KEYS = [f"ключ-{number}" if number % 3 else f"k{number}" for number in range(24)]
HEADERS = (("trace", b"\x00\xff"), ("trace", b"2"), ("пусто", b""), ("null", None))
WINDOW_MS = 10_000


@pytest.fixture(scope="module")
def peer(kafka: Kafka, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    """Kafka's Java clients, in a process of their own."""
    with Peer(kafka.bootstrap, log=tmp_path_factory.mktemp("peer") / "log") as peer:
        yield peer


def librdkafka_of(kafka: Kafka) -> Callable[..., Awaitable[list[int]]]:
    """Writes records as `Peer.write` does, through librdkafka with the partitioner of the Java client."""

    async def write(topic: str, records: Sequence[Record], *, compression: str) -> list[int]:
        chosen = {"partitioner": "murmur2_random", "compression_type": compression}
        await asyncio.to_thread(kafka.write, topic, records, **chosen)
        return []

    return write


async def until(read: Callable[[], Awaitable[Any]], wanted: Any) -> None:
    """Until it reads what is wanted."""
    found = None
    try:
        async with asyncio.timeout(DEADLINE_S):
            while (found := await read()) != wanted:  # noqa: ASYNC110  nobody tells when it is so
                await asyncio.sleep(0.05)
    except TimeoutError:
        assert found == wanted


def reading(questions: Questions, table: str) -> Callable[[], Awaitable[dict[Any, Any]]]:
    """What a table holds, by key; nothing as long as it is being recovered."""
    view = questions.view(table, None)

    async def read() -> dict[Any, Any]:
        try:
            return {key: value async for key, value in view.items()}
        except UnavailableError:
            return {}

    return read


async def test_both_ways(kafka: Kafka, peer: Peer, tmp_path: Path) -> None:
    """What Java and librdkafka write in every compression we join and count; what we write both of them read."""
    orders, customers = (kafka.topic(name, partitions=PARTITIONS) for name in ("orders", "names"))
    joined = {
        each: kafka.topic(
            "joined",
            partitions=PARTITIONS,
            compression_type="uncompressed" if each == "none" else each,
        )
        for each in COMPRESSIONS
    }
    half = len(KEYS) // 2
    names = [Record(key=key.encode(), value=f'"name of {key}"'.encode()) for key in KEYS]
    placed = dict(zip(KEYS[:half], await peer.write(customers, names[:half]), strict=True))
    await librdkafka_of(kafka)(customers, names[half:], compression="zstd")

    app = ms.App(unique("interop"), broker=kafka.url, state_dir=tmp_path, web=False)
    order = app.topic(orders, key=str, value=dict[str, str])
    name_of = app.table("names", topic=app.topic(customers, key=str, value=str))
    counts = app.table("counts", key=str, value=int, default=0)
    outputs = {
        each: app.topic(name, key=str, value=str, codec="str") for each, name in joined.items()
    }

    @app.agent(order)
    async def join(stream: ms.Stream[dict[str, str]]) -> None:
        async for event in stream.events():
            counts[event.key] += 1
            text = f"{name_of[event.key]} by {event.value['by']}"
            out = outputs[event.value["compression"]]
            await out.send(text, key=event.key, headers=event.headers)

    writers = {"java": peer.write, "librdkafka": librdkafka_of(kafka)}
    async with app.running(worker=True, web=False):
        runtime: Runtime | None = app.runtime
        assert runtime is not None
        questions = runtime.questions()
        await until(reading(questions, "names"), {key: f"name of {key}" for key in KEYS})
        for by, compression in itertools.product(writers, COMPRESSIONS):
            values = f'{{"by": "{by}", "compression": "{compression}"}}'.encode()
            records = [Record(key=key.encode(), value=values, headers=HEADERS) for key in KEYS]
            found = await writers[by](orders, records, compression=compression)
            placed |= dict(zip(KEYS, found, strict=False))
        await until(reading(questions, "counts"), dict.fromkeys(KEYS, 2 * len(COMPRESSIONS)))

    assert set(placed) == set(KEYS)
    wanted = Counter(
        (key.encode(), f"name of {key} by {by}".encode(), HEADERS, placed[key])
        for key in KEYS
        for by in writers
    )
    for topic in joined.values():
        by_java = await peer.read(topic)
        assert Counter((r.key, r.value, r.headers, r.partition) for r in by_java) == wanted
        assert await asyncio.to_thread(kafka.read, topic) == by_java


async def test_a_count_of_kafka_streams(kafka: Kafka, peer: Peer, tmp_path: Path) -> None:
    """The same input gives the same tables there and here; windowed keys have the same bytes, and Java reads ours."""
    words = kafka.topic("words", partitions=PARTITIONS)
    records = [
        Record(
            key=key.encode(), value=b"x", timestamp=1_000_000 + number * 700, headers=(("h", None),)
        )
        for number, key in enumerate(itertools.chain(KEYS, KEYS[:7], KEYS[:3] * 20))
    ]
    await peer.write(words, records, compression="lz4")
    theirs = [kafka.topic(name, partitions=PARTITIONS) for name in ("counts", "windows")]
    ours = [kafka.topic(name, partitions=PARTITIONS) for name in ("counts", "windows")]

    app = ms.App(unique("same"), broker=kafka.url, state_dir=tmp_path / "ours", web=False)
    grouped = app.stream(app.topic(words, key=str, value=bytes, codec="raw")).group_by()
    numbers = [app.topic(name, key=str, value=str, codec="str") for name in ours]
    counted = grouped.count(name="counted")
    counted.changes().map_values(str).to(numbers[0])
    windowed = grouped.tumbling(WINDOW_MS / 1_000, retention="1d").count(name="windowed")
    windowed.to(numbers[1], value=lambda key, window, n: str(n), windowed_key="kafka-streams")
    async with app.running(worker=True, web=False):
        await peer.count(
            words,
            application=unique("theirs"),
            counts=theirs[0],
            windows=theirs[1],
            size_ms=WINDOW_MS,
            folder=tmp_path / "theirs",
        )
        runtime = app.runtime
        assert runtime is not None
        counted_here = reading(runtime.questions(), "counted")
        await until(counted_here, Counter(str(r.key, "utf-8") for r in records if r.key))

    for their_topic, our_topic in zip(theirs, ours, strict=True):
        assert await last_of(peer, our_topic) == await last_of(peer, their_topic)
    by_java = await peer.read_windows(ours[1], size_ms=WINDOW_MS)
    last = {(one.key, one.start): int(one.value or b"") for one in by_java}
    assert last == Counter(
        (str(r.key, "utf-8"), (r.timestamp or 0) // WINDOW_MS * WINDOW_MS) for r in records if r.key
    )
    assert all(one.end == one.start + WINDOW_MS for one in by_java)


async def last_of(peer: Peer, topic: str) -> dict[bytes | None, tuple[bytes | None, int | None]]:
    """By key: the last value, and in which partition it is; how many came before depends on caches."""
    return {record.key: (record.value, record.partition) for record in await peer.read(topic)}


async def test_sessions_are_read_by_java(kafka: Kafka, peer: Peer, tmp_path: Path) -> None:
    """Their keys hold both ends."""
    words, out = (kafka.topic(name, partitions=PARTITIONS) for name in ("words", "sessions"))
    app = ms.App(unique("sessions"), broker=kafka.url, state_dir=tmp_path, web=False)
    source = app.topic(words, key=str, value=str)
    sessions = app.stream(source).group_by().session("1s").count(name="counted")
    target = app.topic(out, key=str, value=int)
    sessions.to(target, windowed_key="kafka-streams")
    async with app.running(worker=True, web=False):
        for moment in (5_000, 5_900, 9_000):
            await source.send("x", key="ada", timestamp=moment)

        async def read() -> set[tuple[str, int, int, bytes | None]]:
            found = await peer.read_windows(out, size_ms=None)
            return {(one.key, one.start, one.end, one.value) for one in found if one.value}

        await until(
            read,
            {("ada", 5_000, 5_000, b"1"), ("ada", 5_000, 5_900, b"2"), ("ada", 9_000, 9_000, b"1")},
        )


# placed by another partitioner


def counter(kafka: Kafka, topic: str, folder: Path, **declared: Any) -> ms.App:
    """An app that counts by the record's key, and sends every count on."""
    app = ms.App(unique("placed"), broker=kafka.url, state_dir=folder, web=False)
    counts = app.table("counts", key=str, value=int, default=0)
    totals = app.topic(f"{topic}-totals", key=str, value=int, partitions=PARTITIONS)

    @app.agent(app.topic(topic, key=str, value=str, **declared))
    async def count(stream: ms.Stream[str]) -> None:
        async for event in stream.events():
            counts[event.key] += 1
            await totals.send(counts[event.key], key=event.key)

    return app


async def test_placed_by_another_partitioner(kafka: Kafka, tmp_path: Path) -> None:
    """librdkafka's default is an error before any output that says what to declare; declared, it works."""
    topic = kafka.topic("words", partitions=PARTITIONS)
    words = [Record(key=key.encode(), value=b'"x"') for key in KEYS * 3]
    await asyncio.to_thread(kafka.write, topic, words)
    app = counter(kafka, topic, tmp_path / "wrong")
    says = rf"(?s)record {topic}/\d@\d+: its key .* belongs in partition \d.*partitioner='crc32'"
    with pytest.raises(PlacementError, match=says):
        async with asyncio.timeout(DEADLINE_S), app.running(worker=True, web=False):
            await asyncio.Event().wait()
    for name in (f"{topic}-totals", f"{app.id}-counts-changelog"):
        assert await asyncio.to_thread(kafka.read, name) == []

    app = counter(kafka, topic, tmp_path / "right", partitioner="crc32")
    async with app.running(worker=True, web=False):
        runtime = app.runtime
        assert runtime is not None
        questions = runtime.questions()
        await until(reading(questions, "counts"), dict.fromkeys(KEYS, 3))
        assert await questions.view("counts", None).get(KEYS[0]) == 3


async def test_numbers_of_java(kafka: Kafka, peer: Peer, tmp_path: Path) -> None:
    """Keys and values of Java's LongSerializer are counted by, and written so that they meet the same partitions."""
    numbers, sums = (kafka.topic(name, partitions=PARTITIONS) for name in ("numbers", "sums"))
    keys = [-1, 0, 1, 255, 1 << 40, -(1 << 63)]
    records = [Record(key=key.to_bytes(8, signed=True), value=(5).to_bytes(8)) for key in keys]
    placed = dict(zip(keys, await peer.write(numbers, records), strict=True))
    app = ms.App(unique("numbers"), broker=kafka.url, state_dir=tmp_path, web=False)
    longs: dict[str, Any] = {"key": int, "key_codec": "long", "value": int, "codec": "long"}
    source, target = app.topic(numbers, **longs), app.topic(sums, **longs)
    totals = app.table("totals", key=int, value=int, default=0)

    @app.agent(source)
    async def add(stream: ms.Stream[int]) -> None:
        async for event in stream.events():
            totals[event.key] += event.value
            await target.send(totals[event.key], key=event.key)

    async with app.running(worker=True, web=False):
        runtime = app.runtime
        assert runtime is not None
        await until(reading(runtime.questions(), "totals"), dict.fromkeys(keys, 5))
    found = {
        (int.from_bytes(r.key or b"", signed=True), int.from_bytes(r.value or b""), r.partition)
        for r in await peer.read(sums)
    }
    assert found == {(key, 5, placed[key]) for key in keys}
