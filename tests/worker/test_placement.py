"""Records in a partition that is not their key's: an error before they are processed, where it matters."""

from __future__ import annotations

from typing import Any

import pytest

import millstream as ms
from millstream.errors import AgentError, PlacementError, TopologyError
from millstream.records import OutgoingRecord, TopicPartition
from millstream.serialization import PARTITIONERS, partitioner
from millstream.testing import TestApp
from millstream.worker import _placement

PARTITIONS = 4
KEYS = [f"key-{number}" for number in range(40)]


def program(*, keeps: bool = True, **declared: Any) -> tuple[ms.App, list[str]]:
    """An app that counts by the record's key where it keeps anything; and what it has seen."""
    app = ms.App("placed", partitions=PARTITIONS)
    counts = app.table("counts", key=str, value=int, default=0) if keeps else None
    seen: list[str] = []

    @app.agent(app.topic("words", key=str, value=str, **declared))
    async def count(stream: ms.Stream[str]) -> None:
        async for event in stream.events():
            seen.append(event.key)
            if counts is not None:
                counts[event.key] += 1

    return app, seen


async def write(t: TestApp, keys: list[str], place: Any) -> None:
    """Records as another program places them; nobody waits until they are processed."""
    records: dict[TopicPartition, list[OutgoingRecord]] = {}
    for key in keys:
        tp = TopicPartition("words", place(key.encode(), PARTITIONS))
        records.setdefault(tp, []).append(OutgoingRecord(0, key.encode(), b'"x"', []))
    assert t.app.runtime is not None
    await t.app.runtime.transport.append(records)
    await t.settle()


def backwards(key: bytes, count: int) -> int:
    """A partitioner that we do not know."""
    return count - 1 - partitioner("murmur2")(key, count)


@pytest.mark.parametrize(("place", "fits"), [(partitioner("crc32"), "crc32"), (backwards, None)])
async def test_another_partitioner(place: Any, fits: str | None) -> None:
    """The error names record, key and partition, and the partitioner that fits; nothing is processed."""
    app, seen = program()
    with pytest.raises(PlacementError, match=r"record words/\d@\d+: its key b'key-") as caught:
        async with TestApp(app) as t:
            await write(t, KEYS, place)
    assert caught.value.fits == fits
    assert f"partitioner={fits or 'any'!r}" in str(caught.value)
    assert seen == []


async def test_the_partitioner_is_declared() -> None:
    """Then everything is in its place, and the table has the same."""
    app, _ = program(partitioner="crc32")
    async with TestApp(app) as t:
        await write(t, KEYS, partitioner("crc32"))
        assert t.table(app.tables["counts"].table) == dict.fromkeys(KEYS, 1)


def regrouped(**declared: Any) -> tuple[ms.App, ms.Topic[str, str]]:
    """An app that counts what it has moved to as many other partitions, as the writers of its input choose them."""
    app = ms.App("placed")
    words = app.topic("words", key=str, value=str, partitions=2, partitioner="crc32")
    counts = app.table("counts", key=str, value=int, default=0, partitions=PARTITIONS, **declared)

    @app.agent(app.stream(words).key_by(str).repartition(partitions=PARTITIONS))
    async def count(stream: ms.Stream[str]) -> None:
        async for event in stream.events():
            counts[event.key] += 1

    return app, words


async def send(t: TestApp, words: ms.Topic[str, str]) -> None:
    for key in KEYS:
        await words.send(key, key=key)
    await t.settle()


async def test_a_table_of_what_was_moved_has_its_partitioner() -> None:
    """A topic in between hands on how the keys of its input are placed: so entries are where they are looked for."""
    app, words = regrouped()
    async with TestApp(app) as t:
        await send(t, words)
        shards: Any = [
            shard for (count, _), shard in t.worker.shards.items() if count == PARTITIONS
        ]
        for shard in shards:
            spec, part = shard._tables["counts"], shard.own_parts["counts"]
            stored = part.store.items()
            keys = [part.decode_key(data) for data, _ in stored if data[:1] != b"\x00"]
            assert keys
            assert {spec.partitioner(spec.place(key), PARTITIONS) for key in keys} == {shard.number}


async def test_a_table_that_is_placed_in_another_way_is_found() -> None:
    """Also where the input is one that only the app writes."""
    app, words = regrouped(partitioner="murmur2")
    with pytest.raises(AgentError, match="belongs to shard"):
        async with TestApp(app) as t:
            await send(t, words)


async def test_an_app_that_keeps_nothing_does_not_care() -> None:
    """It reads topics that are placed in any way; so it does while those grow."""
    app, seen = program(keeps=False)
    async with TestApp(app) as t:
        await write(t, KEYS, backwards)
        assert sorted(seen) == sorted(KEYS)


async def test_a_later_record_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first records of a partition, one of each run is looked at."""
    monkeypatch.setattr(_placement, "FIRST_RECORDS", 3)
    app, seen = program()
    with pytest.raises(PlacementError):  # noqa: PT012  how it got there is checked too
        async with TestApp(app) as t:
            for _ in range(3):
                await write(t, KEYS, partitioner("murmur2"))
            assert len(seen) == 3 * len(KEYS)
            await write(t, KEYS, backwards)
    assert len(seen) == 3 * len(KEYS)


async def test_placed_anywhere() -> None:
    """With 'any' the stream has to be regrouped before tables of its keys, and joins say so at once."""
    app, _ = program(partitioner="any")
    with pytest.raises(AgentError, match=r"belongs to shard \d.*group_by"):
        async with TestApp(app) as t:
            await write(t, KEYS, backwards)

    app = ms.App("placed", partitions=PARTITIONS)
    words = app.topic("words", key=str, value=str, partitioner="any")
    counted = app.stream(words).key_by(lambda word: word).group_by().count()
    others = app.stream(app.topic("others", key=str, value=str))
    with pytest.raises(TopologyError, match=r"may be in any partition.*key_by"):
        app.stream(words).join(others, lambda a, b: a, within="1s", how="inner", name="pairs")
    async with TestApp(app) as t:
        await write(t, KEYS, backwards)
        assert t.table(counted) == {"x": len(KEYS)}


@pytest.mark.parametrize(
    ("declared", "keeps", "place"),
    [
        ({}, True, "murmur2"),  # results lie where their records do
        ({"partitioner": "crc32"}, True, "crc32"),  # elsewhere than these
        ({"partitioner": "any"}, False, "backwards"),
        ({}, False, "backwards"),  # nobody looks where they are
    ],
)
async def test_results_are_placed_as_their_topic_says(
    declared: dict[str, Any], keeps: bool, place: str
) -> None:
    """Also those with the key of their record, whose partition need not be computed where records are looked at."""
    app = ms.App("placed", partitions=PARTITIONS)
    words = app.stream(app.topic("words", key=str, value=str, **declared))
    if keeps:
        words.group_by().count(name="counts")
    results = app.topic("results", key=str, value=str)
    words.to(results)
    words.map_keys(lambda key: f"other-{key}").to(results)
    async with TestApp(app) as t:
        await write(t, KEYS, backwards if place == "backwards" else partitioner(place))
        found = t.records(results)
        assert len(found) == 2 * len(KEYS)
        for record in found:
            assert record.partition == partitioner("murmur2")(record.key.encode(), PARTITIONS)


async def test_what_is_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The event's own key is compared, whatever it is; another one is hashed when an epoch uses it first."""
    murmur2 = partitioner("murmur2")
    hashed: list[bytes] = []

    def counted(key: bytes, count: int) -> int:
        hashed.append(key)
        return murmur2(key, count)

    monkeypatch.setitem(PARTITIONERS, "murmur2", counted)
    names = [f"key-{number}" for number in range(800)]
    other, *own = [key for key in names if murmur2(key.encode(), PARTITIONS) == 0]
    app = ms.App("hashed", partitions=PARTITIONS)
    counts = app.table("counts", key=str, value=int, default=0)

    @app.agent(app.topic("words", key=str, value=str))
    async def count(stream: ms.Stream[str]) -> None:
        async for event in stream.events():
            counts[event.key] += 1
            counts[other] += 1

    async with TestApp(app) as t:
        await write(t, own, murmur2)
        found = hashed.copy()
        assert t.table(counts) == {**dict.fromkeys(own, 1), other: len(own)}
    sampled = _placement.FIRST_RECORDS + len(own) // _placement.FIRST_RECORDS
    assert len(own) > 2 * sampled
    assert len(found) - found.count(other.encode()) <= sampled
    assert 1 <= found.count(other.encode()) < 20
