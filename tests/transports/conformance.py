"""The contract of `millstream.transports.base` as tests; every implementation passes them all.

A module of an implementation imports them (``from tests.transports.conformance import *``) and gives the fixture
``lab``. They use real time, because a broker does, but never as a way to synchronise.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from millstream.errors import (
    ConfigurationError,
    FencedError,
    IllegalGenerationError,
    OffsetOutOfRangeError,
    UnknownMemberError,
    UnknownTopicError,
)
from millstream.hooks import observe
from millstream.records import OutgoingRecord, TopicPartition
from millstream.transports.base import Epoch, OffsetAndMetadata, TopicSpec
from millstream.transports.batch import headers_of, iterate_records

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

    from millstream.transports.base import Assignment, Fetched, Membership, Transport

DEADLINE_S = 20.0
SESSION_S = 5.0
A0, A1, A2 = (TopicPartition("a", number) for number in range(3))
TABLE = TopicPartition("table", 0)
SHORT = TopicPartition("short", 0)
HOUR_MS = 3_600_000
LARGE_RECORDS = {"max.message.bytes": "4000000"}
"""For brokers, which take a megabyte where nothing else is said."""


class Lab(Protocol):
    """What the suite needs to know about an implementation."""

    @property
    def dense(self) -> bool:
        """Whether offsets count records alone: an epoch takes none for itself, neither done nor undone."""
        ...

    def open_transport(self) -> Transport:
        """Another worker's view of one and the same log; not entered yet."""
        ...

    async def evict(self, group: str, member_id: str) -> None:
        """Remove a member from its group behind its back."""
        ...

    def advance(self, milliseconds: int) -> None:
        """Let time pass, as the log sees it; skips the test where that cannot be."""
        ...


@pytest.fixture
async def transport(lab: Lab) -> AsyncIterator[Transport]:
    """A log with topic ``a`` of three partitions."""
    async with lab.open_transport() as opened:
        await opened.create_topics([TopicSpec(name="a", partitions=3, config=LARGE_RECORDS)])
        yield opened


# what the tests say often


def rec(
    key: str | None,
    value: str | None = "v",
    *,
    at: int = 1_000,
    headers: Sequence[tuple[str, bytes]] = (),
) -> OutgoingRecord:
    """A record with text for bytes."""
    return OutgoingRecord(
        at,
        None if key is None else key.encode(),
        None if value is None else value.encode(),
        list(headers),
    )


def assign(members: Mapping[str, bytes]) -> dict[str, bytes]:
    """Three shards in turn to the members in the order of their metadata."""
    order = sorted(members, key=lambda name: (members[name], name))
    shards: dict[str, list[int]] = {name: [] for name in order}
    for shard in range(3):
        shards[order[shard % len(order)]].append(shard)
    return {name: json.dumps(mine).encode() for name, mine in shards.items()}


def shards_of(assignment: Assignment) -> list[int]:
    """What `assign` gave."""
    return list(json.loads(assignment.assigned))


def epoch(
    assignment: Assignment,
    offsets: Mapping[TopicPartition, int] | None = None,
    records: Mapping[TopicPartition, Sequence[OutgoingRecord]] | None = None,
    group: str = "g",
) -> Epoch:
    """An epoch of the member that has this assignment."""
    return Epoch(
        group=group,
        member_id=assignment.member_id,
        generation=assignment.generation,
        offsets={tp: OffsetAndMetadata(offset) for tp, offset in (offsets or {}).items()},
        records=records or {},
    )


async def join(transport: Transport, metadata: bytes = b"m", group: str = "g") -> Membership:
    """Join with the suite's assign function."""
    return await transport.join(
        group, metadata=metadata, assign=assign, session_timeout_s=SESSION_S
    )


async def assigned(
    membership: Membership, until: Callable[[Assignment], bool] = lambda _: True
) -> Assignment:
    """The next assignment for which ``until`` holds."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            membership.alive()
            assignment = await membership.next_assignment()
            if until(assignment):
                return assignment


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until it holds, or fail."""
    deadline = time.monotonic() + DEADLINE_S
    while not await condition():
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.005)


async def read(
    transport: Transport, tp: TopicPartition, position: int | None = None
) -> list[tuple[int, str | None, str | None]]:
    """Every record from a position (or the start) to the end: offset, key, value."""
    reader = transport.reader()
    if position is None:
        position = (await transport.start_offsets([tp]))[tp]
    end = (await transport.end_offsets([tp]))[tp]
    found: list[tuple[int, str | None, str | None]] = []
    while position < end:
        (fetched,) = await reader.fetch({tp: position}, max_bytes=1 << 20, max_wait_s=DEADLINE_S)
        assert fetched.tp == tp
        assert fetched.next_offset > position
        for record in iterate_records(fetched.data, where=str(tp), position=position):
            key = None if record.key is None else record.key.decode()
            found.append(
                (record.offset, key, None if record.value is None else record.value.decode())
            )
        position = fetched.next_offset
    await reader.close()
    return found


async def holds(lab: Lab, transport: Transport, counts: Mapping[TopicPartition, int]) -> None:
    """See that so many records can be read, and that no offset is taken by anything else where that can be."""
    if lab.dense:
        assert await transport.end_offsets(list(counts)) == counts
    for tp, count in counts.items():
        assert len(await read(transport, tp)) == count


async def fetch_now(
    transport: Transport, positions: Mapping[TopicPartition, int], max_bytes: int = 1 << 20
) -> list[Fetched]:
    """One fetch that does not wait."""
    return await transport.reader().fetch(positions, max_bytes=max_bytes, max_wait_s=0)


async def maintain(transport: Transport) -> None:
    """Call `maintain` as often as any pass may take."""
    for _ in range(10):
        await transport.maintain()


# topics


async def test_a_topic_is_described_as_it_was_created(transport: Transport) -> None:
    """Partitions, retention and compaction are those of the spec."""
    await transport.create_topics(
        [TopicSpec(name="t", partitions=2, retention_ms=7_000, compacted=True)]
    )
    found = (await transport.topics())["t"]
    assert (found.name, found.partitions, found.retention_ms, found.compacted) == (
        "t",
        2,
        7_000,
        True,
    )
    assert found.topic_id != (await transport.topics())["a"].topic_id


async def test_an_existing_topic_stays_as_it_is(transport: Transport) -> None:
    """Creating it again changes neither settings nor records, and creates the others."""
    before = (await transport.topics())["a"]
    await transport.append({A0: [rec("k")]})
    await transport.create_topics(
        [TopicSpec(name="a", partitions=9, compacted=True), TopicSpec(name="b", partitions=1)]
    )
    topics = await transport.topics()
    assert topics["a"] == before
    assert topics["b"].partitions == 1
    assert await read(transport, A0) == [(0, "k", "v")]


async def test_a_topic_made_again_is_another_one(transport: Transport) -> None:
    """It has a new id and neither records nor committed positions of the old one."""
    before = (await transport.topics())["a"]
    await transport.append({A0: [rec("k")]})
    await transport.set_committed("g", {A0: OffsetAndMetadata(1)})
    await transport.delete_topics(["a", "never-was"])
    assert "a" not in await transport.topics()
    await transport.create_topics([TopicSpec(name="a", partitions=3)])
    assert (await transport.topics())["a"].topic_id != before.topic_id
    assert await transport.end_offsets([A0]) == {A0: 0}
    assert await transport.committed("g", [A0]) == {}
    await maintain(transport)
    assert await transport.append({A0: [rec("new")]}) == {A0: 0}
    assert await read(transport, A0) == [(0, "new", "v")]


@pytest.mark.parametrize(
    ("name", "partitions"), [("", 1), ("a b", 1), ("ü", 1), ("x" * 250, 1), ("..", 1), ("x", 0)]
)
async def test_a_topic_that_no_log_takes(transport: Transport, name: str, partitions: int) -> None:
    """A wrong name or count is an error, and none of the topics is created."""
    before = set(await transport.topics())  # a broker has other tests' topics too
    with pytest.raises(ConfigurationError):
        await transport.create_topics(
            [TopicSpec(name="right", partitions=1), TopicSpec(name=name, partitions=partitions)]
        )
    assert set(await transport.topics()) == before


@pytest.mark.parametrize("tp", [TopicPartition("none", 0), TopicPartition("a", 3)], ids=str)
async def test_what_does_not_exist_is_an_error(
    lab: Lab, transport: Transport, tp: TopicPartition
) -> None:
    """Every question and every write that names an unknown topic or partition says so."""
    assignment = await assigned(await join(transport))
    attempts: list[Awaitable[object]] = [
        transport.start_offsets([tp]),
        transport.end_offsets([A0, tp]),
        transport.offsets_at([tp], 0),
        transport.purge({tp: 0}),
        transport.append({A0: [rec("k")], tp: [rec("k")]}),
        transport.commit(epoch(assignment, {A1: 1}, {A0: [rec("k")], tp: [rec("k")]})),
        transport.commit(epoch(assignment, {tp: 1}, {A0: [rec("k")]})),
        fetch_now(transport, {A0: 0, tp: 0}),
    ]
    for attempt in attempts:
        with pytest.raises(UnknownTopicError, match=tp.topic):
            await attempt
    await holds(lab, transport, {A0: 0})
    assert await transport.committed("g", [A1]) == {}


# appending and reading


async def test_a_record_comes_back_as_it_was(transport: Transport) -> None:
    """Timestamp, null key, null value, and headers with their order and repeated names."""
    headers = [("h", b"1"), ("é", b""), ("h", b"2")]
    sent = [
        rec("k", "v", at=5, headers=headers),
        rec(None, "only value", at=3),
        rec("only key", None, at=1_700_000_000_000),
        rec("", "", at=0),
    ]
    await transport.append({A0: sent})
    (fetched,) = await fetch_now(transport, {A0: 0})
    found = [
        OutgoingRecord(r.timestamp, r.key, r.value, list(r.headers))
        for r in iterate_records(fetched.data, where="a/0")
    ]
    assert found == sent


async def test_offsets_are_consecutive(transport: Transport) -> None:
    """Each append begins where the one before it ended, in each partition by itself."""
    assert await transport.append({A0: [rec("x"), rec("y")]}) == {A0: 0}
    assert await transport.append({A1: [rec("z")]}) == {A1: 0}
    assert await transport.append({A0: [rec("w")]}) == {A0: 2}
    assert await transport.end_offsets([A0, A1, A2]) == {A0: 3, A1: 1, A2: 0}
    assert await transport.append({A0: [rec("u")], A1: [rec("v")]}) == {A0: 3, A1: 1}
    assert [offset for offset, _, _ in await read(transport, A0)] == [0, 1, 2, 3]


async def test_a_large_append_is_whole(transport: Transport) -> None:
    """More records than one batch takes, and a record above a megabyte, come back in order."""
    many = [rec(str(number), "v" * 80) for number in range(25_000)]
    await transport.append({A0: many, A1: [rec("big", "v" * 3_000_000), rec("small")]})
    assert [key for _, key, _ in await read(transport, A0)] == [str(n) for n in range(25_000)]
    assert [(key, len(value or "")) for _, key, value in await read(transport, A1)] == [
        ("big", 3_000_000),
        ("small", 1),
    ]


async def test_a_position_inside_a_batch(transport: Transport) -> None:
    """The batch comes whole; its earlier records are the reader's to skip."""
    await transport.append({A0: [rec("x"), rec("y"), rec("z")]})
    (fetched,) = await fetch_now(transport, {A0: 2})
    assert (fetched.next_offset, fetched.end_offset) == (3, 3)
    assert [r.offset for r in iterate_records(fetched.data, where="", position=2)] == [2]
    assert [header.base_offset for header in headers_of(fetched.data)] == [0]


async def test_a_partition_at_its_end_has_nothing_to_say(transport: Transport) -> None:
    """Only partitions with something new are in the answer."""
    await transport.append({A0: [rec("x")]})
    await transport.append({A1: [rec("y")]})
    assert [f.tp for f in await fetch_now(transport, {A0: 1, A1: 0, A2: 0})] == [A1]


async def test_a_fetch_without_data_ends_in_time(transport: Transport) -> None:
    """The answer is empty when the time is up."""
    async with asyncio.timeout(DEADLINE_S):
        assert (await transport.reader().fetch({A0: 0}, max_bytes=1 << 20, max_wait_s=0.03)) == []


async def test_a_waiting_fetch_is_woken_by_another_worker(lab: Lab, transport: Transport) -> None:
    """New data ends the wait, whoever wrote it."""
    async with lab.open_transport() as other:
        for number in range(5):
            fetch = asyncio.ensure_future(
                transport.reader().fetch(
                    {A0: number, A1: 0}, max_bytes=1 << 20, max_wait_s=DEADLINE_S
                )
            )
            await asyncio.sleep(0)
            await other.append({A0: [rec(str(number))]})
            async with asyncio.timeout(DEADLINE_S / 2):
                assert [(f.tp, f.next_offset) for f in await fetch] == [(A0, number + 1)]


@pytest.mark.parametrize("position", [0, 1, 4], ids=["purged", "below the start", "above the end"])
async def test_a_position_outside_the_log(transport: Transport, position: int) -> None:
    """It is an error that names partition, position and bounds."""
    await transport.append({A0: [rec("x"), rec("y"), rec("z")]})
    await transport.purge({A0: 2})
    with pytest.raises(OffsetOutOfRangeError) as caught:
        await fetch_now(transport, {A0: position})
    error = caught.value
    assert (error.partition, error.position, error.start, error.end) == ("a/0", position, 2, 3)


async def test_a_batch_larger_than_the_bound_comes_all_the_same(transport: Transport) -> None:
    """Every answered partition has at least one whole batch."""
    await transport.append({A0: [rec("x", "v" * 10_000)]})
    (fetched,) = await fetch_now(transport, {A0: 0}, max_bytes=100)
    assert fetched.next_offset == 1


async def test_a_fetch_is_bounded(transport: Transport) -> None:
    """Batches are added while they fit, and the next fetch goes on behind them."""
    for number in range(20):
        await transport.append({A0: [rec(str(number), "v" * 1_000)]})
    position, rounds = 0, 0
    while position < 20:
        (fetched,) = await fetch_now(transport, {A0: position}, max_bytes=5_000)
        assert len(fetched.data) <= 5_000
        assert fetched.next_offset > position
        position, rounds = fetched.next_offset, rounds + 1
    assert rounds == 5


async def test_no_partition_starves(transport: Transport) -> None:
    """One reader that can take a single batch at a time goes round all partitions."""
    for _ in range(10):
        await transport.append({A0: [rec("x", "v" * 1_000)] * 5})
    await transport.append({A1: [rec("y")]})
    await transport.append({A2: [rec("z", "v" * 3_000)]})
    reader, positions = transport.reader(), {A0: 0, A1: 0, A2: 0}
    for _ in range(3):
        for fetched in await reader.fetch(positions, max_bytes=100, max_wait_s=DEADLINE_S):
            positions[fetched.tp] = fetched.next_offset
    assert positions[A1] == 1
    assert positions[A2] == 1
    assert positions[A0] > 0


async def test_who_gets_nothing_is_told_of_its_end(transport: Transport) -> None:
    """A partition for which there was no room comes without data: who reads in order of time has to wait for it."""
    for tp in (A0, A1, A2):
        await transport.append({tp: [rec("x", "v" * 1_000)] * 3})
    reader = transport.reader()
    ends: dict[TopicPartition, int] = {}
    async with asyncio.timeout(DEADLINE_S):
        while ends.keys() != {A0, A1, A2}:
            for fetched in await reader.fetch(
                {A0: 0, A1: 0, A2: 0}, max_bytes=100, max_wait_s=DEADLINE_S
            ):
                assert fetched.next_offset == (3 if fetched.data else 0)
                ends[fetched.tp] = fetched.end_offset
    assert ends == {A0: 3, A1: 3, A2: 3}
    fetched = (await fetch_now(transport, {A0: 0, A1: 0, A2: 0}, max_bytes=100))[0]
    assert fetched.data


async def test_partitions_share_one_fetch(transport: Transport) -> None:
    """A long backlog of one partition leaves room for the others in the same answer."""
    for _ in range(50):
        await transport.append({A0: [rec("x", "v" * 1_000)]})
    await transport.append({A1: [rec("y")]})
    await transport.append({A2: [rec("z")]})
    answer = await fetch_now(transport, {A0: 0, A1: 0, A2: 0}, max_bytes=10_000)
    assert {f.tp for f in answer} == {A0, A1, A2}


async def test_a_cancelled_fetch_loses_nothing(transport: Transport) -> None:
    """The same reader brings everything afterwards, wherever the fetch was cancelled."""
    reader, position = transport.reader(), 0
    for number in range(30):
        fetch = asyncio.ensure_future(
            reader.fetch({A0: position}, max_bytes=1 << 20, max_wait_s=DEADLINE_S)
        )
        for _ in range(number % 4):
            await asyncio.sleep(0)
        await transport.append({A0: [rec(str(number))]})
        fetch.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            for fetched in await fetch:
                position = fetched.next_offset
    (fetched,) = await reader.fetch({A0: 0}, max_bytes=1 << 20, max_wait_s=0)
    keys = [r.key for r in iterate_records(fetched.data, where="")]
    assert keys == [str(number).encode() for number in range(30)]


# times and bounds

TIMES = [
    # timestamp asked for, offset of the first record that has at least it
    (0, 0),
    (100, 0),
    (101, 2),  # the second record, at 50, is late
    (200, 2),
    (201, 3),  # in the middle of the second batch
    (400, 4),
    (401, 5),  # none: the end
]


@pytest.mark.parametrize(("timestamp", "offset"), TIMES)
async def test_offsets_at_a_time(transport: Transport, timestamp: int, offset: int) -> None:
    """The first record with at least that timestamp, also within a batch and out of order."""
    await transport.append({A0: [rec("a", at=100), rec("b", at=50)]})
    await transport.append({A0: [rec("c", at=200), rec("d", at=300), rec("e", at=400)]})
    assert await transport.offsets_at([A0, A1], timestamp) == {A0: offset, A1: 0}


async def test_offsets_at_a_time_that_was_purged(transport: Transport) -> None:
    """Records below the start are not found, though their batch is still there."""
    await transport.append({A0: [rec("a", at=100), rec("b", at=200), rec("c", at=300)]})
    await transport.purge({A0: 2})
    assert await transport.offsets_at([A0], 0) == {A0: 2}


async def test_purge_moves_the_start(transport: Transport) -> None:
    """The start goes up, never down, and the end stays; upkeep changes nothing of that."""
    for key in "abcd":
        await transport.append({A0: [rec(key), rec(key)]})
    await transport.purge({A0: 3})
    await transport.purge({A0: 1})
    await maintain(transport)
    assert await transport.start_offsets([A0]) == {A0: 3}
    assert await transport.end_offsets([A0]) == {A0: 8}
    assert [offset for offset, _, _ in await read(transport, A0)] == [3, 4, 5, 6, 7]


async def test_purge_to_the_end_and_beyond(transport: Transport) -> None:
    """A partition may be emptied; an offset above its end is an error that changes nothing."""
    await transport.append({A0: [rec("a")]})
    await transport.append({A1: [rec("b")]})
    with pytest.raises(OffsetOutOfRangeError):
        await transport.purge({A1: 1, A0: 2})
    assert await transport.start_offsets([A0, A1]) == {A0: 0, A1: 0}
    await transport.purge({A0: 1})
    await maintain(transport)
    assert await read(transport, A0) == []
    assert await transport.append({A0: [rec("c")]}) == {A0: 1}
    assert await read(transport, A0) == [(1, "c", "v")]


# epochs


async def test_an_epoch_is_visible_as_a_whole(lab: Lab, transport: Transport) -> None:
    """Records and positions are there for every worker when commit returns."""
    assignment = await assigned(await join(transport))
    await transport.append({A1: [rec("before")]})
    result = await transport.commit(
        epoch(assignment, {A0: 7}, {A1: [rec("x"), rec("y")], A2: [rec("z")]})
    )
    assert result.next_offsets == {A1: 3, A2: 1}
    async with lab.open_transport() as other:
        assert await read(other, A1, 1) == [(1, "x", "v"), (2, "y", "v")]
        assert await read(other, A2) == [(0, "z", "v")]
        assert await other.committed("g", [A0, A1]) == {A0: OffsetAndMetadata(7, "")}


async def test_epochs_without_records_and_without_anything(transport: Transport) -> None:
    """Offsets alone are an epoch, and an empty one passes the fence."""
    assignment = await assigned(await join(transport))
    assert (await transport.commit(epoch(assignment, {A0: 3}))).next_offsets == {}
    assert (await transport.commit(epoch(assignment, {}, {A1: []}))).next_offsets == {}
    assert await transport.committed("g", [A0]) == {A0: OffsetAndMetadata(3)}


async def test_positions_for_those_who_look_on(transport: Transport) -> None:
    """They come without waiting for anybody, and so a moment later."""
    assignment = await assigned(await join(transport))
    await transport.commit(epoch(assignment, {A0: 3}))
    async with asyncio.timeout(10):
        while not (found := await transport.committed("g", [A0, A1], settled=False)):  # noqa: ASYNC110  nobody tells
            await asyncio.sleep(0.01)
    assert found == {A0: OffsetAndMetadata(3)}


async def test_metadata_comes_back(transport: Transport) -> None:
    """A position carries up to 4,096 bytes of text, and the last commit wins."""
    assignment = await assigned(await join(transport))
    text = "é" * 2_048
    for metadata in ("first", text):
        await transport.commit(
            Epoch(
                group="g",
                member_id=assignment.member_id,
                generation=assignment.generation,
                offsets={A0: OffsetAndMetadata(1, metadata)},
                records={},
            )
        )
    assert await transport.committed("g", [A0]) == {A0: OffsetAndMetadata(1, text)}


async def test_groups_are_apart(transport: Transport) -> None:
    """Positions and members of one group are nothing to another."""
    one = await assigned(await join(transport, group="g"))
    two = await assigned(await join(transport, group="h"))
    await transport.commit(epoch(one, {A0: 1}, group="g"))
    await transport.commit(epoch(two, {A0: 2}, group="h"))
    assert await transport.committed("g", [A0]) == {A0: OffsetAndMetadata(1)}
    assert await transport.committed("h", [A0]) == {A0: OffsetAndMetadata(2)}
    assert set((await transport.describe_group("g")).members) == {one.member_id}


async def test_an_epoch_of_another_generation_is_fenced(lab: Lab, transport: Transport) -> None:
    """Neither an older nor a later generation commits; nothing of the epoch is written."""
    membership = await join(transport)
    old = await assigned(membership)
    await membership.update(b"new")
    new = await assigned(membership, lambda a: a.generation > old.generation)
    for generation in (old.generation, new.generation + 1):
        wrong = Epoch(
            group="g",
            member_id=new.member_id,
            generation=generation,
            offsets={A0: OffsetAndMetadata(1)},
            records={A1: [rec("x")]},
        )
        with pytest.raises(IllegalGenerationError):
            await transport.commit(wrong)
    assert await transport.committed("g", [A0]) == {}
    await holds(lab, transport, {A1: 0})
    await transport.commit(epoch(new, {A0: 1}))


async def test_an_epoch_of_a_stranger_is_fenced(lab: Lab, transport: Transport) -> None:
    """A member that left, or never was, commits nothing."""
    membership = await join(transport)
    gone = await assigned(membership)
    await membership.leave()
    with pytest.raises(UnknownMemberError):
        await transport.commit(epoch(gone, {A0: 1}, {A1: [rec("x")]}))
    with pytest.raises(UnknownMemberError):
        await transport.commit(epoch(gone, {A0: 1}, group="never-was"))
    assert await transport.committed("g", [A0]) == {}
    await holds(lab, transport, {A1: 0})


POINTS = ["commit.writing", "commit.appended", "commit.positioned"]


async def test_a_commit_reaches_its_points_in_order(transport: Transport) -> None:
    """Writing, appended, positioned: each once, inside the transaction."""
    assignment = await assigned(await join(transport))
    seen: list[str] = []
    with observe(lambda point, _: seen.append(point)):
        await transport.commit(epoch(assignment, {A0: 1}, {A1: [rec("x")]}))
    assert [point for point in seen if point in POINTS] == POINTS


@pytest.mark.parametrize("point", POINTS)
async def test_what_fails_inside_a_commit_leaves_nothing(
    lab: Lab, transport: Transport, point: str
) -> None:
    """Wherever it fails, nothing was written, and the same epoch may be sent again."""
    assignment = await assigned(await join(transport))
    sent = epoch(assignment, {A0: 1}, {A1: [rec("x")], A2: [rec("y")]})

    def fail(reached: str, _: dict[str, object]) -> None:
        if reached == point:
            raise ZeroDivisionError(point)

    with observe(fail), pytest.raises(ZeroDivisionError):
        await transport.commit(sent)
    assert await transport.committed("g", [A0]) == {}
    await holds(lab, transport, {A1: 0, A2: 0})
    await transport.commit(sent)
    await holds(lab, transport, {A1: 1, A2: 1})


async def test_a_cancelled_commit_is_whole_or_nothing(lab: Lab, transport: Transport) -> None:
    """Wherever the caller was cancelled, positions and records agree, and the log goes on."""
    assignment = await assigned(await join(transport))
    done = 0
    for number in range(1, 30):
        sent = epoch(
            assignment, {A0: number}, {A1: [rec(str(number))] * 50, A2: [rec(str(number))]}
        )
        commit = asyncio.ensure_future(transport.commit(sent))
        for _ in range(number % 7):
            await asyncio.sleep(0.0005)
        commit.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await commit
        position = (await transport.committed("g", [A0])).get(A0, OffsetAndMetadata(0)).offset
        if position == number:
            done += 1
        await holds(lab, transport, {A1: 50 * done, A2: done})


async def test_many_commits_at_once(lab: Lab, transport: Transport) -> None:
    """Epochs of one member that are sent together are written one after another."""
    assignment = await assigned(await join(transport))
    epochs = [epoch(assignment, {A0: n}, {A1: [rec(str(n))] * 3}) for n in range(20)]
    results = await asyncio.gather(*(transport.commit(each) for each in epochs))
    found = await read(transport, A1)
    assert sorted(result.next_offsets[A1] for result in results) == [
        found[at + 2][0] + 1 for at in range(0, 60, 3)
    ]
    assert all(len({key for _, key, _ in found[at : at + 3]}) == 1 for at in range(0, 60, 3))
    await holds(lab, transport, {A1: 60})


async def test_positions_are_set_while_nobody_is_there(transport: Transport) -> None:
    """A group with live members refuses; one that is at rest takes them."""
    membership = await join(transport)
    await assigned(membership)
    with pytest.raises(FencedError, match="live members"):
        await transport.set_committed("g", {A0: OffsetAndMetadata(5)})
    assert await transport.committed("g", [A0]) == {}
    await membership.leave()
    await transport.set_committed("g", {A0: OffsetAndMetadata(5, "m"), A1: OffsetAndMetadata(0)})
    assert await transport.committed("g", [A0, A1, A2]) == {
        A0: OffsetAndMetadata(5, "m"),
        A1: OffsetAndMetadata(0),
    }


# groups


async def test_a_group_that_never_was(transport: Transport) -> None:
    """It has generation 0, no members and no positions."""
    found = await transport.describe_group("never-was")
    assert (found.generation, found.members, found.assigned) == (0, {}, {})
    assert await transport.committed("never-was", [A0]) == {}


async def test_groups_are_listed(transport: Transport) -> None:
    """Those with members, and those with positions; not one that was only asked for."""
    before = set(await transport.groups())
    await transport.describe_group("asked-for")
    await transport.set_committed("at-rest", {A0: OffsetAndMetadata(1)})
    membership = await join(transport, group="at-work")
    await assigned(membership)
    assert set(await transport.groups()) - before == {"at-rest", "at-work"}
    assert await transport.groups() == sorted(await transport.groups())
    await membership.leave()
    if not transport.url.startswith("kafka://"):  # brokers list an empty group until they clean up
        assert "at-work" not in await transport.groups()


async def test_the_first_assignment_comes_from_joining(transport: Transport) -> None:
    """A single member gets everything, and is confirmed."""
    membership = await join(transport, b"mine")
    assignment = await assigned(membership)
    assert shards_of(assignment) == [0, 1, 2]
    assert assignment.members == {assignment.member_id: b"mine"}
    assert membership.current()
    found = await transport.describe_group("g")
    assert found.generation == assignment.generation
    assert found.members == assignment.members
    assert found.assigned == {assignment.member_id: assignment.assigned}


async def test_two_members_share(lab: Lab, transport: Transport) -> None:
    """Both receive the same generation, the same members, and what the function gave each."""
    first = await join(transport, b"1")
    alone = await assigned(first)
    async with lab.open_transport() as other:
        second = await join(other, b"2")
        mine = await assigned(first, lambda a: len(a.members) == 2)
        theirs = await assigned(second, lambda a: len(a.members) == 2)
        assert mine.generation == theirs.generation > alone.generation
        assert mine.member_id == alone.member_id
        assert mine.members == theirs.members
        assert sorted(mine.members.values()) == [b"1", b"2"]
        assert (shards_of(mine), shards_of(theirs)) == ([0, 2], [1])
        await other.commit(epoch(theirs, {A1: 1}))
        await transport.commit(epoch(mine, {A0: 1}))
        with pytest.raises(IllegalGenerationError):
            await transport.commit(epoch(alone, {A0: 2}))


async def test_several_members_in_one_transport(transport: Transport) -> None:
    """One process may be in a group more than once, each time as another member."""
    memberships = [await join(transport, str(number).encode()) for number in range(3)]
    found = [await assigned(each, lambda a: len(a.members) == 3) for each in memberships]
    assert sorted(shard for each in found for shard in shards_of(each)) == [0, 1, 2]
    assert len({each.member_id for each in found}) == 3


async def test_leaving_hands_over_at_once(lab: Lab, transport: Transport) -> None:
    """The others get its shards without waiting for a time-out; leaving again is nothing."""
    first = await join(transport, b"1")
    async with lab.open_transport() as other:
        second = await join(other, b"2")
        both = await assigned(first, lambda a: len(a.members) == 2)
        left = await assigned(second, lambda a: len(a.members) == 2)
        began = time.monotonic()
        await second.leave()
        await second.leave()
        alone = await assigned(first, lambda a: len(a.members) == 1)
        assert time.monotonic() - began < SESSION_S / 2
        assert alone.generation > both.generation
        assert shards_of(alone) == [0, 1, 2]
        assert not second.current()
        with pytest.raises(UnknownMemberError):
            await other.commit(epoch(left, {A1: 1}))


async def test_closing_a_transport_leaves_its_groups(lab: Lab, transport: Transport) -> None:
    """What was not left is left with the transport."""
    first = await join(transport, b"1")
    async with lab.open_transport() as other:
        await assigned(await join(other, b"2"))
        await assigned(first, lambda a: len(a.members) == 2)
    assert shards_of(await assigned(first, lambda a: len(a.members) == 1)) == [0, 1, 2]


async def test_new_metadata_causes_a_rebalance(lab: Lab, transport: Transport) -> None:
    """Every member sees it, with an assignment that was made from it."""
    first = await join(transport, b"1")
    async with lab.open_transport() as other:
        second = await join(other, b"2")
        before = await assigned(second, lambda a: len(a.members) == 2)
        await first.update(b"3")
        mine = await assigned(first, lambda a: b"3" in a.members.values())
        theirs = await assigned(second, lambda a: b"3" in a.members.values())
        assert mine.generation == theirs.generation > before.generation
        assert mine.member_id != theirs.member_id == before.member_id
        assert (shards_of(theirs), shards_of(mine)) == ([0, 2], [1])


async def test_a_note_is_read_with_the_next_rebalance(lab: Lab, transport: Transport) -> None:
    """It causes none itself; and everybody knows what everybody was given then."""
    first = await join(transport, b"1")
    before = await assigned(first)
    first.note(b"3")
    async with lab.open_transport() as other:
        second = await join(other, b"2")
        mine = await assigned(first, lambda a: len(a.members) == 2)
        theirs = await assigned(second, lambda a: len(a.members) == 2)
        assert mine.generation == before.generation + 1
        assert sorted(mine.members.values()) == [b"2", b"3"]
        assert (shards_of(theirs), shards_of(mine)) == ([0, 2], [1])
        given = {mine.member_id: mine.assigned, theirs.member_id: theirs.assigned}
        assert mine.shares == theirs.shares == given


async def test_a_removed_member_joins_again_by_itself(lab: Lab, transport: Transport) -> None:
    """It comes back under another id; what it had under the old one is fenced."""
    membership = await join(transport, b"1")
    old = await assigned(membership)
    await lab.evict("g", old.member_id)
    with pytest.raises(UnknownMemberError):
        await transport.commit(epoch(old, {A0: 1}, {A1: [rec("x")]}))
    new = await assigned(membership)
    assert new.member_id != old.member_id
    assert new.generation > old.generation
    assert shards_of(new) == [0, 1, 2]
    assert membership.current()
    await transport.commit(epoch(new, {A0: 1}))
    with pytest.raises(UnknownMemberError):
        await transport.commit(epoch(old, {A0: 1}))
    await holds(lab, transport, {A1: 0})


async def test_a_member_is_not_current_between_two_ids(lab: Lab, transport: Transport) -> None:
    """Once removed, it is confirmed again only with the assignment that names its new id."""
    membership = await join(transport)
    old = await assigned(membership)
    await lab.evict("g", old.member_id)

    async def noticed() -> bool:
        return not membership.current()

    await eventually(noticed)
    await assigned(membership)
    assert membership.current()


async def test_a_cancelled_wait_loses_no_assignment(transport: Transport) -> None:
    """Who is cancelled waiting gets the same assignment the next time."""
    membership = await join(transport)
    first = await assigned(membership)
    for number in range(10):
        waiting = asyncio.ensure_future(membership.next_assignment())
        for _ in range(number % 3):
            await asyncio.sleep(0)
        update = asyncio.ensure_future(membership.update(str(number).encode()))
        for _ in range(number % 2):
            await asyncio.sleep(0)
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            first = await waiting
        await update
    last = (await transport.describe_group("g")).generation
    if first.generation < last:
        assert (await assigned(membership, lambda a: a.generation == last)).generation == last


async def test_generations_go_on_after_the_last_member(transport: Transport) -> None:
    """A group that was empty never uses a generation again."""
    seen = []
    for _ in range(3):
        membership = await join(transport)
        seen.append((await assigned(membership)).generation)
        await membership.leave()
        found = await transport.describe_group("g")
        assert found.members == {}
        seen += [found.generation] if found.generation else []
    assert seen == sorted(set(seen))


async def test_an_assign_function_that_fails(transport: Transport) -> None:
    """Its error reaches whoever joined, and the group stays as it was."""

    def fail(_: Mapping[str, bytes]) -> dict[str, bytes]:
        raise ZeroDivisionError

    async def join_and_wait() -> None:
        membership = await transport.join(
            "g", metadata=b"", assign=fail, session_timeout_s=SESSION_S
        )
        await membership.next_assignment()

    with pytest.raises(ZeroDivisionError):
        await join_and_wait()
    assert (await transport.describe_group("g")).members == {}


# upkeep


async def test_retention_goes_by_the_time_of_appending(lab: Lab, transport: Transport) -> None:
    """Batches appended too long ago go, whatever their timestamps; the end stays."""
    lab.advance(0)
    await transport.create_topics([TopicSpec(name="short", partitions=1, retention_ms=HOUR_MS)])
    await transport.append({SHORT: [rec("old", at=10**13), rec("old", at=0)], A0: [rec("keep")]})
    await maintain(transport)
    assert await transport.start_offsets([SHORT]) == {SHORT: 0}
    lab.advance(HOUR_MS // 2)
    await transport.append({SHORT: [rec("young", at=0)]})
    lab.advance(HOUR_MS // 2 + 1_000)
    await maintain(transport)
    assert await transport.start_offsets([SHORT, A0]) == {SHORT: 2, A0: 0}
    assert await read(transport, SHORT) == [(2, "young", "v")]
    lab.advance(HOUR_MS)
    await maintain(transport)
    assert await transport.start_offsets([SHORT]) == {SHORT: 3}
    assert await transport.append({SHORT: [rec("new")]}) == {SHORT: 3}
    assert await read(transport, A0) == [(0, "keep", "v")]


async def compacted(transport: Transport, **settings: Any) -> None:
    """A compacted topic with four batches."""
    await transport.create_topics(
        [TopicSpec(name="table", partitions=1, compacted=True, **settings)]
    )
    await transport.append({TABLE: [rec("a", "1"), rec("b", "1"), rec("c", "1"), rec(None, "n")]})
    await transport.append({TABLE: [rec("b", "2"), rec("a", "2"), rec("a", "3", at=7)]})
    await transport.append({TABLE: [rec("c", None)]})
    await transport.append({TABLE: [rec("a", "4"), rec("a", "5")]})


COMPACTED = [
    (3, None, "n"),
    (4, "b", "2"),
    (6, "a", "3"),
    (7, "c", None),
    (8, "a", "4"),
    (9, "a", "5"),
]


async def test_compaction_keeps_the_last_of_each_key(lab: Lab, transport: Transport) -> None:
    """Offsets stay, the newest batch is not touched, and records without a key are not either."""
    lab.advance(0)
    await compacted(transport)
    await maintain(transport)
    assert await read(transport, TABLE) == COMPACTED
    assert await transport.start_offsets([TABLE]) == {TABLE: 0}
    assert await transport.end_offsets([TABLE]) == {TABLE: 10}


async def test_every_position_can_be_read_from_after_compaction(
    lab: Lab, transport: Transport
) -> None:
    """A position in a gap goes on with the next record that is there."""
    lab.advance(0)
    await compacted(transport)
    await maintain(transport)
    for position in range(10):
        expected = [row for row in COMPACTED if row[0] >= position]
        assert await read(transport, TABLE, position) == expected
    assert await transport.offsets_at([TABLE], 0) == {TABLE: 3}


async def test_a_tombstone_stays_for_a_day(lab: Lab, transport: Transport) -> None:
    """It goes a day after it was appended, and never before the values that it buries."""
    lab.advance(0)
    await compacted(transport)
    await maintain(transport)
    lab.advance(23 * HOUR_MS)
    await transport.append({TABLE: [rec("d", "1")]})
    await maintain(transport)
    assert (7, "c", None) in await read(transport, TABLE)
    lab.advance(2 * HOUR_MS)
    await transport.append({TABLE: [rec("d", "2")]})
    await maintain(transport)
    assert await read(transport, TABLE) == [
        (3, None, "n"),
        (4, "b", "2"),
        (9, "a", "5"),
        (10, "d", "1"),
        (11, "d", "2"),
    ]


async def test_compaction_again_and_again(lab: Lab, transport: Transport) -> None:
    """After many rounds of writing and upkeep the log holds what a dict would."""
    lab.advance(0)
    await transport.create_topics([TopicSpec(name="table", partitions=1, compacted=True)])
    expected: dict[str | None, tuple[int, str | None, str | None]] = {}
    offset = 0
    for number in range(60):
        records = []
        for key in (f"k{number % 7}", f"k{number * 5 % 11}"):
            value = None if number % 13 == 0 else str(number)
            records.append(rec(key, value))
            expected[key] = (offset, key, value)
            offset += 1
        await transport.append({TABLE: records})
        await transport.maintain()
    await transport.append({TABLE: [rec("last")]})
    await transport.append({TABLE: [rec("last")]})
    await maintain(transport)
    found = {row[1]: row for row in await read(transport, TABLE)}
    del found["last"]
    assert found == expected


async def test_compaction_and_retention_together(lab: Lab, transport: Transport) -> None:
    """What is too old goes, even if it is the last of its key."""
    lab.advance(0)
    await compacted(transport, retention_ms=HOUR_MS)
    await maintain(transport)
    lab.advance(2 * HOUR_MS)
    await transport.append({TABLE: [rec("z", "1")]})
    await maintain(transport)
    assert await read(transport, TABLE) == [(10, "z", "1")]
    assert await transport.start_offsets([TABLE]) == {TABLE: 10}
