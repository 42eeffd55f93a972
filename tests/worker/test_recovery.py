"""Replaying changelogs: what is left of them, where a replay goes on, and state that is too old to be gone on with."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

import millstream as ms
from millstream import hooks
from millstream.clock import ManualClock
from millstream.records import OutgoingRecord, TopicPartition
from millstream.state.memory import MemoryBackend, MemoryStore
from millstream.tables import POSITION_KEY, StorePosition, decode_position, encode_position
from millstream.tables._position import plan_recovery
from millstream.testing import TestApp
from millstream.transports.base import TopicSpec
from millstream.transports.memory import MemoryTransport
from millstream.worker import _recovery
from millstream.worker._recovery import RecoveryProgress, Replay, recover

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

HOUR_MS = 3_600_000
TABLES = ("a", "b")


class Stopped(Exception):
    """What ends a recovery as a kill does."""


class Shard:
    """A store, two changelogs in a log that is compacted by hand, and a clock that is moved by hand."""

    def __init__(self, transport: MemoryTransport, clock: ManualClock) -> None:
        self.transport, self.clock = transport, clock
        self.store: MemoryStore = MemoryBackend().open("1-0")
        self.written = dict.fromkeys(TABLES, 0)
        self.topic_ids: dict[str, str] = {}

    async def write(self, table: str, *changes: tuple[bytes, bytes | None]) -> None:
        """Each change in a batch of its own, as compaction leaves the newest batch alone."""
        for key, value in changes:
            record = OutgoingRecord(self.clock.now(), key, value, [])
            await self.transport.append({TopicPartition(f"{table}-log", 0): [record]})
            self.written[table] += 1

    async def recover(self, *, until: int = 1_000, turns: int = 4) -> RecoveryProgress:
        """Recover; stopped after so many slices."""
        progress, left = RecoveryProgress(), until

        def watch(point: str, _: dict[str, object]) -> None:
            nonlocal left
            if point == "recovery.slice":
                left -= 1
                if not left:
                    raise Stopped

        infos = await self.transport.topics()
        replays = [
            Replay(
                table=table,
                tp=TopicPartition(f"{table}-log", 0),
                topic_id=infos[f"{table}-log"].topic_id,
            )
            for table in TABLES
        ]
        with hooks.observe(watch):
            await recover(
                self.store,
                replays,
                transport=self.transport,
                app="app",
                clock=self.clock,
                progress=progress,
                shard="1-0",
                turns=asyncio.Semaphore(turns),
            )
        return progress

    def entries(self, table: str) -> dict[bytes, bytes]:
        """What the store has."""
        return {k: v for k, v in self.store.table(table).items() if k != POSITION_KEY}

    def position(self, table: str) -> StorePosition:
        """How far the store is."""
        found = decode_position(self.store.table(table).get(POSITION_KEY))
        assert found is not None
        return found

    async def compact(self) -> None:
        """Compaction, until it has nothing to do."""
        for _ in range(10):
            await self.transport.maintain()


@pytest.fixture
async def shard() -> AsyncIterator[Shard]:
    """Two empty changelogs and an empty store."""
    clock = ManualClock()
    async with MemoryTransport(clock=clock) as transport:
        await transport.create_topics(
            [TopicSpec(name=f"{t}-log", partitions=1, compacted=True) for t in TABLES]
        )
        yield Shard(transport, clock)


async def test_what_compaction_leaves(shard: Shard) -> None:
    """The last value of each key, without those that were deleted; an empty changelog is whole at once."""
    await shard.write("a", (b"x", b"1"), (b"y", b"1"), (b"x", b"2"), (b"y", None), (b"z", b"3"))
    await shard.compact()
    progress = await shard.recover()
    assert shard.entries("a") == {b"x": b"2", b"z": b"3"}
    assert shard.entries("b") == {}
    assert progress.records_done == progress.records_total == 5
    assert (shard.position("a").offset, shard.position("b").offset) == (5, 0)


async def test_it_goes_on_where_it_was(shard: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped again and again, each record is read once and a piece at most once more."""
    monkeypatch.setattr(_recovery, "FETCH_BYTES_MAX", 1_000)
    values = [(b"%03d" % n, b"v" * 100) for n in range(200)]
    await shard.write("a", *values)
    read = 0
    for _ in range(100):
        before = shard.store.table("a").get(POSITION_KEY)
        try:
            progress = await shard.recover(until=3)
        except Stopped:
            assert shard.store.table("a").get(POSITION_KEY) != before, "nothing was kept"
            continue
        read += progress.records_done
        break
    assert shard.entries("a") == dict(values)
    assert read < 50, "the last one has read only what the others had left"


async def test_records_that_retention_took(shard: Shard) -> None:
    """A store whose position is not in the log any more begins anew; so too where it happens on the way."""
    await shard.write("a", (b"x", b"1"), (b"y", b"1"))
    await shard.recover()
    await shard.write("a", (b"z", b"1"), (b"w", b"1"))
    await shard.transport.purge({TopicPartition("a-log", 0): 3})
    progress = await shard.recover()
    assert shard.entries("a") == {b"w": b"1"}
    assert progress.rebuilt == {"a/1-0": "log purged"}


async def test_retention_that_is_faster(shard: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was to be read next is gone: it is planned anew, and does not fail."""
    monkeypatch.setattr(_recovery, "FETCH_BYTES_MAX", 1)
    await shard.write("a", *((b"%d" % n, b"1") for n in range(6)))
    purged = False
    fetch = type(shard.transport.reader()).fetch

    async def late(self: Any, positions: Any, **terms: Any) -> Any:
        nonlocal purged
        if not purged and positions.get(TopicPartition("a-log", 0)) == 2:
            purged = True
            await shard.transport.purge({TopicPartition("a-log", 0): 4})
        return await fetch(self, positions, **terms)

    monkeypatch.setattr(type(shard.transport.reader()), "fetch", late)
    await shard.recover()
    assert purged
    assert shard.entries("a") == {b"4": b"1", b"5": b"1"}


async def deleted_while_away(shard: Shard) -> dict[bytes, bytes]:
    """A replay in three parts, twenty hours apart; a key that the first one has read is deleted before the second.

    The second part does not come to the tombstone, and then the tombstone goes as well.
    """
    await shard.write("a", (b"dead", b"1"), *((b"%d" % n, b"1") for n in range(9)))
    with pytest.raises(Stopped):
        await shard.recover(until=1)
    await shard.write("a", (b"dead", None), (b"last", b"1"), (b"newest", b"1"))
    shard.clock.advance(20 * HOUR_MS / 1_000)
    with pytest.raises(Stopped):
        await shard.recover(until=1)
    shard.clock.advance(20 * HOUR_MS / 1_000)
    await shard.compact()
    await shard.recover()
    return shard.entries("a")


async def test_deleted_keys_stay_dead(shard: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    """However a replay was interrupted (invariant 18)."""
    monkeypatch.setattr(_recovery, "FETCH_BYTES_MAX", 1)
    found = await deleted_while_away(shard)
    assert found == {b"last": b"1", b"newest": b"1", **{b"%d" % n: b"1" for n in range(9)}}


async def test_positions_on_the_way_that_are_young(
    shard: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If they told the time of the replay, the dead would come back: the test above would see it."""
    monkeypatch.setattr(_recovery, "FETCH_BYTES_MAX", 1)
    position = _recovery._position

    def young(each: Any, app: str) -> bytes:
        each.written = shard.clock.now()
        return position(each, app)

    monkeypatch.setattr(_recovery, "_position", young)
    assert b"dead" in await deleted_while_away(shard)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        # made again under its name, or that of another cluster
        ({"topic_id": "of before"}, "other log"),
        ({"app": "of others"}, "other log"),
        # the log has lost what the store still has
        ({"offset": 1_000}, "ahead of the log"),
    ],
)
async def test_state_of_another_log(shard: Shard, other: dict[str, Any], reason: str) -> None:
    """It is thrown away, and what the log says takes its place (invariant 18)."""
    for number in range(3):
        await shard.write("a", (b"x%d" % number, b"1"))
    await shard.recover()
    foreign = msgspec.structs.replace(shard.position("a"), **other)
    shard.store.write({"a": {b"of others": b"1", POSITION_KEY: encode_position(foreign)}})
    progress = await shard.recover()
    assert shard.entries("a") == {b"x%d" % number: b"1" for number in range(3)}
    assert progress.rebuilt == {"a/1-0": reason}


async def test_data_without_a_position(shard: Shard) -> None:
    """What a kill has left of a replay that had not come to its first position is not taken for the table."""
    shard.store.write({"a": {b"dead": b"1"}})
    await shard.write("a", (b"x", b"1"))
    await shard.recover()
    assert shard.entries("a") == {b"x": b"1"}


async def test_turns(shard: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards that share turns fetch and apply one after the other where there is one turn."""
    monkeypatch.setattr(_recovery, "FETCH_BYTES_MAX", 1)
    await shard.write("a", *((b"%d" % n, b"1") for n in range(5)))
    shards = [Shard(shard.transport, shard.clock) for _ in range(5)]
    turns, at_once, most = asyncio.Semaphore(2), 0, 0
    apply = _recovery.replay_slices

    def counted(*positional: Any, **named: Any) -> Any:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        yield from apply(*positional, **named)
        at_once -= 1

    monkeypatch.setattr(_recovery, "replay_slices", counted)
    replay = Replay(table="a", tp=TopicPartition("a-log", 0), topic_id="id")
    await asyncio.gather(
        *(
            recover(
                each.store,
                [replay],
                transport=shard.transport,
                app="app",
                clock=shard.clock,
                progress=RecoveryProgress(),
                shard=f"5-{number}",
                turns=turns,
            )
            for number, each in enumerate(shards)
        )
    )
    assert all(len(each.entries("a")) == 5 for each in shards)
    assert most == 2


@pytest.mark.parametrize(
    ("behind", "hours", "tail_kept", "reason"),
    [
        # a table that nobody writes to: nothing lies behind it, or the end of its last transaction
        (0, 1_000, 1, ""),
        (1, 1_000, 1, ""),
        # not so where the end is not that of the log: what was there may be compacted away
        (1, 1_000, 0, "away too long"),
        (2, 22, 1, ""),
        (2, 24, 1, "away too long"),
    ],
)
def test_how_long_state_may_be_away(behind: int, hours: int, tail_kept: int, reason: str) -> None:
    """By what it lacks, and for how long."""
    found = StorePosition(10, "id", 0, "app")
    plan = plan_recovery(
        found,
        topic_id="id",
        app="app",
        log_start=0,
        log_end=10 + behind,
        now=hours * HOUR_MS,
        tail_kept=tail_kept,
    )
    assert plan.reason == reason
    assert plan.start == (0 if reason else 10)
    assert plan.written == (hours * HOUR_MS if reason else 0)


async def test_two_tables_of_one_topic() -> None:
    """Each of them is restored, also where one is further than the other."""
    app = ms.App("shop", partitions=1)
    rates = app.topic("rates", key=str, value=float)
    tables = [app.table(name, topic=rates) for name in ("one", "other")]
    async with TestApp(app) as t:
        await t.send(rates, 1.5, key="EUR")
        await t.crash(lose_state=True)
        assert [t.table(table) for table in tables] == [{"EUR": 1.5}] * 2
        (shard,) = t.worker.shards.values()
        shard.store.write({"one": {b"\x00position": None}})
        await t.crash()
        assert [t.table(table) for table in tables] == [{"EUR": 1.5}] * 2
