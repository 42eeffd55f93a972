"""Copies of shards: standbys that take over, and copies that are warmed up before a shard moves."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from millstream import hooks
from millstream.errors import NotHereError
from millstream.records import OutgoingRecord, TopicPartition
from millstream.tables._query import Read
from millstream.worker import _assign_group, _copies, _copy, _recovery
from tests.worker.copying import KEYS, Group, Member, group, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def standby(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Group]:
    """A group with a standby of each shard."""
    monkeypatch.setattr(_copies, "LOOK_S", 0.05)
    async with group(standby_replicas=1) as made:
        yield made


async def test_a_standby_takes_over(standby: Group) -> None:
    """It has everything already: nothing, or the last epoch, is replayed; and it goes on counting."""
    first, second = await standby.start("a"), await standby.start("b")
    await standby.write(5)
    await standby.settled()
    assert (
        sorted(first.owned + first.copied) == sorted(second.owned + second.copied) == [0, 1, 2, 3]
    )
    before = second.replayed
    await standby.stop("a", crash=True)
    await until(lambda: second.owned == [0, 1, 2, 3])
    await until(second.worker.ready.is_set)
    assert second.replayed == before
    assert second.copied == []
    await standby.write()
    await standby.settled()


async def test_an_owner_becomes_a_standby(standby: Group) -> None:
    """Its store is followed from where it is: what it has is not read again."""
    first = await standby.start("a")
    await standby.write(5)
    await standby.settled()
    second = await standby.start("b")
    await standby.settled()
    assert (len(first.owned), len(first.copied)) == (2, 2)
    assert first.followed == 0
    changes = second.followed + second.replayed
    await standby.write()
    await standby.settled()
    gave = [
        word
        for word in KEYS
        if second.tables["counts"].shard_of(_key(second, word)) in first.copied
    ]
    assert first.followed == len(gave)
    assert second.followed + second.replayed - changes == len(KEYS) - len(gave)


async def test_tables_that_are_read_from_a_topic(standby: Group) -> None:
    """A copy has them as far as their reader has come, without the records that it has left out (invariant 22)."""
    first, second = await standby.start("a"), await standby.start("b")
    for number in range(20):
        await first.last.send(number, key=f"key-{number % 10}")
    bad = OutgoingRecord(0, b"key-1", b"no number", [])
    place = first.tables["seen"].shard_of(first.tables["seen"].layout.encode("key-1"))
    await first.runtime.transport.append({TopicPartition("last", place): [bad]})
    await standby.settled()

    def copied() -> dict[bytes, bytes]:
        return {
            key: value
            for member in (first, second)
            for copy in member.worker.copies.by_shard.values()
            for key, value in copy.store.table("seen").items()
            if member.tables["seen"].parse_state_key(key) is not None
        }

    def owned() -> dict[bytes, bytes]:
        return {
            key: value
            for member in (first, second)
            for shard in member.worker.shards.values()
            for key, value in shard.store.table("seen").items()
            if member.tables["seen"].parse_state_key(key) is not None
        }

    await until(lambda: len(owned()) == 10 and copied() == owned(), "the same table")
    assert all(value.isdigit() for value in copied().values())
    before = second.replayed
    await standby.stop("a", crash=True)
    await until(lambda: len(second.owned) == 4 and second.worker.ready.is_set())
    assert second.replayed == before
    assert len(owned()) == 10


# answers


def _key(member: Member, word: str) -> bytes:
    return bytes(member.app.tables["counts"].layout.encode(word))


async def _ask(member: Member, word: str, **terms: Any) -> Any:
    info = member.tables["counts"]
    key = _key(member, word)
    queries = member.queries()
    try:
        read = Read(table="counts", key=key, shards=(info.shard_of(key),), **terms)
        return await queries.read(read)
    finally:
        queries.close()


async def test_a_standby_answers(standby: Group) -> None:
    """Those who are content with an older answer get it, with its age and position; others are sent to the owner."""
    first, second = await standby.start("a"), await standby.start("b")
    await standby.write(3)
    await standby.settled()
    word = next(w for w in KEYS if first.tables["counts"].shard_of(_key(first, w)) in first.copied)
    with pytest.raises(NotHereError, match="is not owned by"):
        await _ask(first, word)
    page = await _ask(first, word, stale_ms=5_000)
    assert [int(entry.value) for entry in page.entries] == [3]
    assert 0 <= page.stale_ms <= 5_000
    current = await _ask(second, word)
    assert current.stale_ms is None
    copy = first.worker.copies.by_shard[4, first.tables["counts"].shard_of(_key(first, word))]
    await until(lambda: copy.position_text() == current.position)
    page = await _ask(first, word, stale_ms=5_000)
    assert page.position == current.position


async def test_a_standby_that_hears_nothing_gets_old(
    standby: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It refuses, and says by how much it is behind; what it says is current would be a lie (invariant 24)."""
    first, _ = await standby.start("a"), await standby.start("b")
    await standby.write()
    await standby.settled()
    word = next(w for w in KEYS if first.tables["counts"].shard_of(_key(first, w)) in first.copied)

    async def silent(self: Any) -> None:
        return None

    monkeypatch.setattr(_copies.Copies, "_look", silent)
    await until(lambda: all(c.age_s() > 0.2 for c in first.worker.copies.by_shard.values()))
    with pytest.raises(NotHereError, match=r"is behind by \d"):
        await _ask(first, word, stale_ms=100)
    assert (await _ask(first, word, stale_ms=60_000)).stale_ms > 100


# moves


class _Held:
    """Copies take nothing in while they are held."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.flowing = asyncio.Event()
        take = _copy.Copy.take

        async def held(copy: Any, *positional: Any, **named: Any) -> None:
            await self.flowing.wait()
            await take(copy, *positional, **named)

        monkeypatch.setattr(_copy.Copy, "take", held)


async def test_a_shard_moves_when_its_copy_is_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until then its owner goes on; then it moves, and nothing of it has to be replayed."""
    for module in (_copy, _assign_group):
        monkeypatch.setattr(module, "ACCEPTABLE_LAG", 3)
    monkeypatch.setattr(_copies, "LOOK_S", 0.05)
    held = _Held(monkeypatch)
    async with group() as made:
        first = await made.start("a")
        await made.write(3)
        await made.settled()
        second = await made.start("b")
        await until(lambda: len(second.copied) == 2)
        assert all(copy.warming for copy in second.worker.copies.by_shard.values())
        assert first.owned == [0, 1, 2, 3]
        assert second.owned == []
        begun = dict(first.worker.shards)
        await made.write(2)
        await until(lambda: made.total() == made.written * len(KEYS), "what was written meanwhile")
        assert second.owned == []
        assert first.worker.shards == begun, "a shard was interrupted"
        copies = second.worker.copies.by_shard.values()
        end = second.runtime.transport._partition  # type: ignore[attr-defined]
        await until(
            lambda: all(c._ends[tp] == end(tp).end_offset for c in copies for tp in c._ends)
        )
        held.flowing.set()
        await made.settled()
        assert len(first.owned) == len(second.owned) == 2
        assert all(first.worker.shards[4, n] is begun[4, n] for n in first.owned)
        assert second.followed > 0
        assert second.replayed <= 3 * 2
        assert first.copied == second.copied == []


async def test_nobody_tells_the_group_of_cold_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is one generation for joining and one for the move, however long it takes."""
    for module in (_copy, _assign_group):
        monkeypatch.setattr(module, "ACCEPTABLE_LAG", 3)
    monkeypatch.setattr(_copies, "LOOK_S", 0.01)
    held = _Held(monkeypatch)
    async with group() as made:
        first = await made.start("a")
        await made.write(3)
        await made.settled()
        await made.start("b")
        await until(lambda: len(made.members["b"].copied) == 2)
        joined = first.worker.committer.generation
        await asyncio.sleep(0.2)  # twenty looks
        assert first.worker.committer.generation == joined
        held.flowing.set()
        await made.settled()
        assert first.worker.committer.generation == joined + 1


async def test_copies_are_followed_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those that are far behind."""
    for module in (_copy, _assign_group):
        monkeypatch.setattr(module, "ACCEPTABLE_LAG", 3)
    monkeypatch.setattr(_copies, "COLD_MAX", 1)
    monkeypatch.setattr(_copies, "TELL_S", 0.01)
    held = _Held(monkeypatch)
    async with group(standby_replicas=1) as made:
        await made.start("a")
        await made.write(3)
        await made.settled()
        second = await made.start("b")
        await until(lambda: len(second.copied) == 4)
        copies = second.worker.copies.by_shard.values()
        await until(lambda: any(copy.tables for copy in copies))
        await asyncio.sleep(0.05)  # it would have begun the others by now
        assert sum(1 for copy in copies if copy.tables) == 1
        (one,) = [copy for copy in copies if copy.tables]
        assert one.warming, "those that are to be owned here come first"
        held.flowing.set()
        await made.settled()


async def test_a_rebalance_while_shards_recover(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that stay go on with what they are at; those that leave stop, and keep what they have."""
    for module in (_copy, _assign_group):
        monkeypatch.setattr(module, "ACCEPTABLE_LAG", 10**9)  # whoever has anything is warm
    started: Counter[str] = Counter()
    flowing = asyncio.Event()
    flowing.set()

    def watch(point: str, facts: dict[str, object]) -> None:
        if point == "recovery.started":
            started[str(facts["shard"])] += 1

    replay = _recovery._replay

    async def held(*positional: Any, **named: Any) -> None:
        await flowing.wait()
        await replay(*positional, **named)

    monkeypatch.setattr(_recovery, "_replay", held)
    async with group() as made:
        first = await made.start("a")
        await made.write(3)
        await made.settled()
        await made.stop("a")
        made.states.clear()
        flowing.clear()
        with hooks.observe(watch):
            first = await made.start("a")
            await until(lambda: len(started) == 4)
            recovering = dict(first.worker.shards)
            second = await made.start("b")
            await until(lambda: len(first.owned) == len(second.owned) == 2)
            flowing.set()
            await made.settled()
        stayed = {f"4-{number}" for number in first.owned}
        assert {name for name, times in started.items() if times == 1} >= stayed
        assert all(first.worker.shards[4, n] is recovering[4, n] for n in first.owned)


async def test_entries_with_a_time_to_live(standby: Group) -> None:
    """A copy goes by the slowest sub-topology of its shard: it shows no entry less than the owner does."""
    first, second = await standby.start("a"), await standby.start("b")
    await standby.write()
    await standby.settled()
    number, copy = next(iter(first.worker.copies.by_shard.items()))
    owner = second.worker.shards[number]
    times = sorted(each.stream_time for each in owner.subtopologies)
    assert times[0] == -1 < times[-1], (
        "nobody has sent anything to the table that is read from a topic"
    )
    await until(lambda: copy.position_text() == owner.position_text())
    assert copy.stream_time_of("counts") == -1
    assert owner.stream_time_of("counts") == times[-1]


async def test_workers_that_write_at_least_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard whose copy is warm moves in two rounds, its old store becomes the standby, and then the group rests."""
    monkeypatch.setattr(_copies, "LOOK_S", 0.05)
    async with group(standby_replicas=1, processing_guarantee="at_least_once") as made:
        first = await made.start("a")
        await made.write(3)
        await made.settled()
        second = await made.start("b")
        await made.settled()
        assert (len(first.owned), len(first.copied)) == (2, 2)
        assert first.followed == 0
        assert second.replayed == 0
        generation = first.worker.committer.generation
        assert generation <= 6
        await made.write()
        await made.settled()
        assert first.worker.committer.generation == generation
        await made.stop("a")
        await made.write()
        await made.settled()
        assert second.owned == [0, 1, 2, 3]
