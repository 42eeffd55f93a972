"""The log in memory passes the suite, and does so by its clock alone."""

from __future__ import annotations

import asyncio

import pytest

from millstream.clock import ManualClock, SystemClock
from millstream.errors import InternalError, LogDamagedError, UnknownMemberError
from millstream.transports.base import OffsetAndMetadata, TopicSpec
from millstream.transports.memory import MemoryLog, MemoryTransport
from tests.transports.conformance import *  # noqa: F403
from tests.transports.conformance import A0, A1, assign, join, rec


class ShiftedClock(SystemClock):
    """The machine's clock, so many ms ahead."""

    def __init__(self) -> None:
        self.shift = 0

    def now(self) -> int:
        return super().now() + self.shift


class MemoryLab:
    """A log in memory, for the suite."""

    dense = True

    def __init__(self) -> None:
        self._log = MemoryLog()
        self._clock = ShiftedClock()

    def open_transport(self) -> MemoryTransport:
        return MemoryTransport(clock=self._clock, log=self._log)

    async def evict(self, group: str, member_id: str) -> None:
        self.open_transport().evict(group, member_id)

    def advance(self, milliseconds: int) -> None:
        self._clock.shift += milliseconds


@pytest.fixture
def lab() -> MemoryLab:
    """A new log."""
    return MemoryLab()


async def settle() -> None:
    """Let every task run that can."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_fetch_waits_by_the_clock() -> None:
    """The time-out is the clock's, to the millisecond, and data ends it before."""
    clock = ManualClock()
    transport = MemoryTransport(clock=clock)
    await transport.create_topics([TopicSpec(name="a", partitions=1)])
    reader = transport.reader()
    fetch = asyncio.ensure_future(reader.fetch({A0: 0}, max_bytes=1, max_wait_s=10))
    await settle()
    clock.advance("9999ms")
    await settle()
    assert not fetch.done()
    clock.advance("1ms")
    assert await fetch == []
    fetch = asyncio.ensure_future(reader.fetch({A0: 0}, max_bytes=1, max_wait_s=10))
    await settle()
    await transport.append({A0: [rec("k")]})
    assert [fetched.next_offset for fetched in await fetch] == [1]
    await settle()
    assert clock.next_due() is None


async def test_two_runs_are_the_same() -> None:
    """Topic ids, member ids and generations come from the log, not from chance."""

    async def run() -> list[object]:
        async with MemoryTransport(clock=ManualClock()) as transport:
            await transport.create_topics([TopicSpec(name="a", partitions=1)])
            first = await (await join(transport, b"1")).next_assignment()
            second = await (await join(transport, b"2")).next_assignment()
            return [await transport.topics(), first, second, await transport.describe_group("g")]

    assert await run() == await run()


async def test_who_is_evicted_must_be_there() -> None:
    """Evicting an unknown member is an error of the test."""
    with pytest.raises(UnknownMemberError, match="nobody"):
        MemoryTransport(clock=ManualClock()).evict("g", "nobody")


async def test_others_take_over_from_an_evicted_member() -> None:
    """The remaining members get its shards, and it joins again when it asks for its assignment."""
    transport = MemoryTransport(clock=ManualClock())
    one = await transport.join("g", metadata=b"1", assign=assign, session_timeout_s=5)
    two = await transport.join("g", metadata=b"2", assign=assign, session_timeout_s=5)
    evicted = (await two.next_assignment()).member_id
    await one.next_assignment()
    transport.evict("g", evicted)
    assert not two.current()
    assert len((await one.next_assignment()).members) == 1
    assert len((await two.next_assignment()).members) == 2
    assert len((await one.next_assignment()).members) == 2


async def test_metadata_above_an_ordinary_brokers_limit() -> None:
    """What Kafka would refuse is refused here as well."""
    transport = MemoryTransport(clock=ManualClock())
    await transport.create_topics([TopicSpec(name="a", partitions=1)])
    with pytest.raises(InternalError, match="4,097"):
        await transport.set_committed("g", {A0: OffsetAndMetadata(0, "x" * 4_097)})


async def test_a_damaged_batch_is_named() -> None:
    """A wrong checksum says where it is."""
    transport = MemoryTransport(clock=ManualClock())
    await transport.create_topics([TopicSpec(name="a", partitions=2)])
    await transport.append({A1: [rec("k")]})
    await transport.append({A1: [rec("k")]})
    batches = transport.log._topics["a"].partitions[1].batches
    batches[1] = batches[1]._replace(data=batches[1].data[:-1] + b"\xff")
    with pytest.raises(LogDamagedError, match="a/1: the batch at offset 1"):
        await transport.reader().fetch({A1: 1}, max_bytes=1, max_wait_s=0)
