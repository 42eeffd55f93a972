"""Groups on a real broker: what goes beyond the suite that every transport passes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from confluent_kafka import Consumer
from confluent_kafka.admin import ResourceType

from millstream.errors import ConfigurationError, FencedError, SettingError
from millstream.records import TopicPartition
from millstream.transports.base import GroupInputs
from millstream.transports.kafka import KafkaTransport, Security
from millstream.transports.kafka._address import parse_url
from millstream.transports.kafka._cluster import GROUP, Access, Cluster
from millstream.transports.kafka._failover import RETURN_S
from millstream.worker import (
    MemberMetadata,
    assign_shards,
    decode_assignment,
    encode_metadata,
)
from millstream.worker._assign import Assignor
from millstream.worker._assign_plan import plan_shards
from tests.brokers import Action, Api, Program, unique
from tests.brokers.security import PASSWORDS
from tests.integration.groups import evict
from tests.transports.conformance import assign, assigned, eventually, shards_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from millstream.transports.base import Assignment, Membership
    from tests.brokers import Cluster as Brokers
    from tests.brokers import Kafka, Proxy
    from tests.brokers.security import Secured

LONG_S = 30.0
"""A session time-out that no test waits for."""
SHORT_S = 1.5


@contextlib.asynccontextmanager
async def member(
    url: str, group: str, metadata: bytes = b"m", *, session_s: float = LONG_S, **settings: Any
) -> AsyncIterator[Membership]:
    """A member with a connection of its own, whose loop is heard of all the time."""
    async with KafkaTransport(url, **settings) as transport:
        membership = await transport.join(
            group, metadata=metadata, assign=assign, session_timeout_s=session_s
        )
        living = asyncio.create_task(_live(membership))
        try:
            yield membership
        finally:
            living.cancel()


async def _live(membership: Membership) -> None:
    while True:
        membership.alive()
        await asyncio.sleep(0.1)


async def of(membership: Membership, size: int) -> Assignment:
    """The next assignment of a group of so many."""
    return await assigned(membership, lambda a: len(a.members) == size)


async def nothing_new(membership: Membership, *, within_s: float) -> None:
    """No assignment comes for a while."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(within_s):
            await membership.next_assignment()


@pytest.fixture
def group() -> str:
    """A group of the test's own."""
    return unique("group")


@pytest.fixture(params=["kafka", "old_kafka"], ids=["newest", "Kafka 2.8"])
def any_kafka(request: pytest.FixtureRequest) -> Kafka:
    """A broker of the newest line that we support, and one of the oldest."""
    found: Kafka = request.getfixturevalue(request.param)
    return found


# joining and leaving


async def test_who_stays_sees_every_generation(any_kafka: Kafka, group: str) -> None:
    """Under the same member id, one after the other, although others come and go, and it does not look."""
    async with member(any_kafka.url, group, b"1") as first:
        seen = [await of(first, 1)]
        async with member(any_kafka.url, group, b"2") as second:
            await of(second, 2)
            async with member(any_kafka.url, group, b"3") as third:
                await of(third, 3)
                await of(second, 3)
            await of(second, 2)
        while len(seen) < 5:
            seen.append(await first.next_assignment())
        assert {each.member_id for each in seen} == {seen[0].member_id}
        assert [each.generation - seen[0].generation for each in seen] == [0, 1, 2, 3, 4]
        assert [shards_of(each) for each in seen] == [[0, 1, 2], [0, 2], [0], [0, 2], [0, 1, 2]]


async def test_many_join_at_once(kafka: Kafka, group: str) -> None:
    """All of them are in one generation in the end, and everything is given once."""
    async with AsyncExitStack() as stack:
        entering = [stack.enter_async_context(member(kafka.url, group)) for _ in range(8)]
        memberships = await asyncio.gather(*entering)
        found = [await of(each, 8) for each in memberships]
        # one that was slow to join may have begun another generation of the same eight
        while (newest := max(each.generation for each in found)) > min(
            each.generation for each in found
        ):
            for at, each in enumerate(memberships):
                while found[at].generation < newest:
                    found[at] = await assigned(each)
        assert sorted(shard for each in found for shard in shards_of(each)) == [0, 1, 2]
        assert all(each.shares == found[0].shares for each in found)


async def test_what_a_removed_member_had_not_taken_is_void(kafka: Kafka, group: str) -> None:
    """The first assignment after that is one under its new id."""
    async with member(kafka.url, group, b"1") as first:
        old = await of(first, 1)
        async with member(kafka.url, group, b"2") as second:
            await of(second, 2)
            await evict(kafka.url, group, old.member_id)
            await assigned(second, lambda a: len(a.members) == 2 and old.member_id not in a.members)
            inside: Any = first

            async def confirmed() -> bool:
                return bool(inside._member.confirmed_at > float("-inf"))

            await eventually(confirmed)
            assert not first.current(), (
                "the group has confirmed an id that its worker has not heard of"
            )
            new = await first.next_assignment()
            assert first.current()
            assert new.member_id != old.member_id
            assert len(new.members) == 2


async def test_a_group_of_other_consumers(kafka: Kafka, group: str) -> None:
    """It does not take us, and the error says so."""
    topic = kafka.topic()
    other = Consumer({**kafka.settings, "group.id": group})
    try:
        other.subscribe([topic])

        async def there() -> bool:
            other.poll(0)
            return bool(other.assignment())

        await eventually(there)
        with pytest.raises(ConfigurationError, match="no Millstream workers"):
            async with member(kafka.url, group):
                pass
    finally:
        other.close()


async def test_a_group_that_we_may_not_join(secured_kafka: Secured, group: str) -> None:
    """The error says which one, and what to grant."""
    url = f"kafka://{secured_kafka.cluster.address('SASL_PLAINTEXT')}"
    alice = Security(mechanism="PLAIN", username="alice", password=PASSWORDS["alice"])
    with pytest.raises(ConfigurationError, match=rf"group '{group}'.*on the group"):
        async with member(url, group, security=alice):
            pass
    secured_kafka.allow("User:alice", ResourceType.GROUP, group)
    async with (
        member(url, group, b"1", security=alice) as first,
        member(url, group, b"2", security=alice) as second,
    ):
        assert (await of(first, 2)).members == (await of(second, 2)).members


async def test_a_session_time_out_that_the_broker_does_not_take(kafka: Kafka, group: str) -> None:
    """Too long is an error; too short is made as long as brokers usually want it."""
    with pytest.raises(SettingError, match=r"group\.max\.session\.timeout\.ms"):
        async with member(kafka.url, group, session_s=100_000):
            pass
    async with member(kafka.url, group, session_s=0.001, max_poll_interval_s=LONG_S) as short:
        await of(short, 1)


# death


async def test_a_killed_member_is_removed_after_the_session_time_out(
    kafka: Kafka, group: str, tmp_path: Path
) -> None:
    """Whoever is left gets its shards."""
    async with member(kafka.url, group, b"1", session_s=SHORT_S) as first:
        await of(first, 1)
        program = Program(
            "tests.integration.member", kafka.url, group, "2", str(SHORT_S), log=tmp_path / "log"
        )
        try:
            await asyncio.to_thread(program.start)
            both = await of(first, 2)
            assert (await program.hear("assignment"))["shards"] == "[1]"
        finally:
            program.kill()
        alone = await of(first, 1)
        assert (alone.generation, alone.member_id) == (both.generation + 1, both.member_id)
        assert shards_of(alone) == [0, 1, 2]


async def test_a_killed_member_is_removed_by_a_survivor(
    kafka: Kafka, group: str, tmp_path: Path
) -> None:
    """At once, by the one whose turn it is, although its session would go on for long."""
    async with (
        member(kafka.url, group, b"1") as first,
        member(kafka.url, group, b"2") as second,
    ):
        program = Program(
            "tests.integration.member", kafka.url, group, "3", str(LONG_S), log=tmp_path / "log"
        )
        try:
            await asyncio.to_thread(program.start)
            before = await of(first, 3)
            await of(second, 3)
            dead = (await program.hear("assignment"))["member_id"]
        finally:
            program.kill()
        began = time.monotonic()
        removed = await asyncio.gather(
            *(each.suspect(dead, processes={dead: "third"}) for each in (first, second))
        )
        assert sorted(removed) == [False, True]
        after = await of(first, 2)
        assert time.monotonic() - began < LONG_S / 3
        assert after.generation == before.generation + 1
        assert dead not in after.members
        assert not await first.suspect(dead)
        assert sorted(shards_of(after) + shards_of(await of(second, 2))) == [0, 1, 2]


async def test_members_that_do_not_reach_each_other(any_kafka: Kafka, group: str) -> None:
    """Each suspects the other all the time: each removes it by mistake once, and then leaves it in peace for long."""
    async with (
        member(any_kafka.url, group, b"1") as first,
        member(any_kafka.url, group, b"2") as second,
    ):
        await of(first, 2)
        before = await of(second, 2)
        ids = {b"1": before.members, b"2": before.members}
        processes: dict[str, str] = {}
        removals: list[bytes] = []

        async def follow(own: bytes, each: Membership) -> None:
            while True:
                ids[own] = (await each.next_assignment()).members

        async def suspect(own: bytes, each: Membership) -> None:
            while True:
                processes.update({name: data.decode() for name, data in ids[own].items()})
                for name, data in ids[own].items():
                    if data != own and await each.suspect(name, processes=dict(processes)):
                        removals.append(own)
                await asyncio.sleep(0.05)

        tasks = [
            asyncio.create_task(act(own, each))
            for act in (follow, suspect)
            for own, each in ((b"1", first), (b"2", second))
        ]
        try:
            _, running = await asyncio.wait(
                tasks, timeout=3 * RETURN_S, return_when=asyncio.FIRST_EXCEPTION
            )
            assert len(running) == len(tasks)
            async with asyncio.timeout(LONG_S):
                while not ids[b"1"] == ids[b"2"] != before.members:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        assert 1 <= len(removals) == len(set(removals)), removals
        assert set(ids[b"1"].values()) == {b"1", b"2"}


async def test_a_stopped_loop_loses_its_membership(kafka: Kafka, group: str) -> None:
    """Although its thread lives; when it turns again, it joins under another id."""
    async with (
        KafkaTransport(kafka.url, max_poll_interval_s=0.3) as transport,
        KafkaTransport(kafka.url) as observer,
    ):
        membership = await transport.join(
            group, metadata=b"", assign=assign, session_timeout_s=SHORT_S
        )
        old = await assigned(membership)

        async def gone() -> bool:
            return not (await observer.describe_group(group)).members

        await eventually(gone)
        assert not membership.current()
        await nothing_new(membership, within_s=0.5)
        membership.alive()
        new = await assigned(membership)
        assert new.member_id != old.member_id
        assert new.generation > old.generation


async def test_a_slow_callback_does_not_cost_the_membership(kafka: Kafka, group: str) -> None:
    """The loop stands still for longer than the session time-out, and less than it may."""
    async with member(kafka.url, group, session_s=SHORT_S) as slow:
        before = await of(slow, 1)
        time.sleep(2 * SHORT_S)  # noqa: ASYNC251  # this is the callback
        assert slow.current()
        await nothing_new(slow, within_s=0.5)
        async with member(kafka.url, group):
            after = await of(slow, 2)
        assert (after.generation, after.member_id) == (before.generation + 1, before.member_id)


async def test_leaving_does_not_wait_for_a_broker(
    own_kafka: Brokers, group: str, kafka_proxy: Proxy
) -> None:
    """A broker that cannot be reached learns of it by the time-out."""
    async with member(f"kafka://{kafka_proxy.bootstrap}", group) as membership:
        await of(membership, 1)
        kafka_proxy.refuse()
        async with asyncio.timeout(15):
            await membership.leave()


# places


async def test_a_static_member_comes_back_without_a_rebalance(any_kafka: Kafka, group: str) -> None:
    """To the same generation and the same shards, under another member id; the others see nothing of it."""
    async with member(any_kafka.url, group, b"1") as other:
        async with member(any_kafka.url, group, b"2", instance_id="place") as static:
            before = await of(static, 2)
            await of(other, 2)
        async with member(any_kafka.url, group, b"2", instance_id="place") as static:
            after = await static.next_assignment()
            assert after.generation == before.generation
            assert after.assigned == before.assigned
            assert after.member_id != before.member_id
            assert set(after.members.values()) == {b"1", b"2"}
            assert static.current()
            await nothing_new(other, within_s=1)
            assert not await other.suspect(after.member_id)


async def test_two_workers_in_one_place(any_kafka: Kafka, group: str) -> None:
    """The one that was there first hears of it, and why."""
    async with member(any_kafka.url, group, instance_id="place") as first:
        await of(first, 1)
        async with member(any_kafka.url, group, instance_id="place") as second:
            await second.next_assignment()
            with pytest.raises(FencedError, match="two workers share place 'place'"):
                await assigned(first)
            assert second.current()
            assert not first.current()


# faults


async def test_a_connection_that_is_cut(own_kafka: Brokers, group: str, kafka_proxy: Proxy) -> None:
    """It is made again, and the group notices nothing."""
    async with member(f"kafka://{kafka_proxy.bootstrap}", group, session_s=5) as membership:
        await of(membership, 1)
        kafka_proxy.cut()
        await nothing_new(membership, within_s=1.5)
        assert membership.current()


@pytest.mark.parametrize(
    "api",
    [Api.FIND_COORDINATOR, Api.JOIN_GROUP, Api.SYNC_GROUP, Api.HEARTBEAT, Api.DESCRIBE_GROUPS],
)
@pytest.mark.parametrize("side", ["request", "answer"])
async def test_a_message_that_never_arrives(
    own_kafka: Brokers, group: str, kafka_proxy: Proxy, api: Api, side: str
) -> None:
    """Whichever it is, in the end the member is in the group, with everybody else."""
    async with member(own_kafka.url, group, b"1", session_s=SHORT_S) as other:
        rule = getattr(kafka_proxy, f"on_{side}")(api, Action.CUT)
        async with member(
            f"kafka://{kafka_proxy.bootstrap}", group, b"2", session_s=SHORT_S
        ) as membership:
            await asyncio.to_thread(rule.wait)
            await membership.update(b"3")
            mine = await assigned(membership, lambda a: set(a.members.values()) == {b"1", b"3"})
            theirs = await assigned(other, lambda a: a.generation >= mine.generation)
            assert theirs.members == mine.members
            assert sorted(shards_of(mine) + shards_of(theirs)) == [0, 1, 2]


async def test_the_coordinator_dies(kafka_cluster: Brokers, group: str) -> None:
    """Another broker takes the group over, with its members."""
    async with member(kafka_cluster.url, group, b"1", session_s=10) as membership:
        before = await of(membership, 1)
        async with Cluster(Access(addresses=parse_url(kafka_cluster.url))) as cluster:
            node = await cluster.coordinator(GROUP, group)
        (broker,) = (each for each in kafka_cluster.brokers if each.node == node)
        await asyncio.to_thread(broker.kill)
        async with member(kafka_cluster.url, group, b"2", session_s=10) as second:
            after = await of(membership, 2)
            assert after.member_id == before.member_id
            assert after.generation == before.generation + 1
            assert shards_of(await of(second, 2)) == [1]
            async with KafkaTransport(
                kafka_cluster.url
            ) as seen:  # which still hears of the dead one at first
                assert group in await seen.groups()


# shards


def facts(count: int, **more: Any) -> bytes:
    """What a worker says that runs shards of one count."""
    return encode_metadata(MemberMetadata(counts=(count,), topology="t", **more))


async def test_ten_thousand_shards(kafka: Kafka, group: str) -> None:
    """Two workers and their 10,000 shards with a standby each, as tools see them too."""
    count = 10_000
    inputs = GroupInputs(
        topics=lambda: ["orders", "payments"],
        partitions=lambda data: [
            TopicPartition("orders", number) for _, number in decode_assignment(data).active
        ],
    )
    more = {"stateful": (count,), "standby_replicas": 1, "keeps_copies": True}
    odd = tuple((count, number) for number in range(1, count, 2))
    async with KafkaTransport(kafka.url) as transport:
        one = await transport.join(
            group,
            metadata=facts(count, owned=odd, **more),
            assign=assign_shards,
            session_timeout_s=LONG_S,
            inputs=inputs,
        )
        other = await transport.join(
            group,
            metadata=facts(count, held={(count, n): n for n in range(0, count, 2)}, **more),
            assign=assign_shards,
            session_timeout_s=LONG_S,
            inputs=inputs,
        )
        mine, theirs = await of(one, 2), await of(other, 2)
        first, second = decode_assignment(mine.assigned), decode_assignment(theirs.assigned)
        assert first.active == odd == second.standby
        assert second.active == first.standby
        assert set(second.active) == {(count, number) for number in range(0, count, 2)}
        assert mine.shares == theirs.shares
        sizes = [sum(map(len, each.values())) for each in (mine.members, mine.shares)]
        assert sum(sizes) < 50_000, sizes
        admin = kafka.admin()
        future = admin.describe_consumer_groups([group])[group]
        described = await asyncio.to_thread(future.result, 10)
        seen = sorted(
            (tp.topic, tp.partition)
            for each in described.members
            for tp in each.assignment.topic_partitions
        )
        assert seen == [("orders", number) for number in range(count)]


async def test_a_rolling_upgrade(kafka: Kafka, group: str) -> None:
    """Two releases share a group by the plan of the older one; with its last worker's leaving the new one begins."""
    old = Assignor({1: plan_shards})
    new = Assignor({1: plan_shards, 2: plan_shards})
    async with KafkaTransport(kafka.url) as transport:

        async def join(assignor: Assignor, version: int) -> Membership:
            return await transport.join(
                group,
                metadata=facts(6, version=version),
                assign=assignor,
                session_timeout_s=LONG_S,
            )

        async def versions(size: int, *memberships: Membership) -> set[int]:
            found = [await of(each, size) for each in memberships]
            shards = [decode_assignment(each.assigned) for each in found]
            assert sorted(s for each in shards for s in each.active) == [(6, n) for n in range(6)]
            return {each.version for each in shards}

        first, second = await join(old, 1), await join(old, 1)
        assert await versions(2, first, second) == {1}
        third = await join(new, 2)
        assert await versions(3, first, second, third) == {1}
        await first.leave()
        assert await versions(2, second, third) == {1}
        fourth = await join(new, 2)
        assert await versions(3, second, third, fourth) == {1}
        await second.leave()
        assert await versions(2, third, fourth) == {2}


async def test_a_shard_moves_when_its_next_owner_is_warm(kafka: Kafka, group: str) -> None:
    """The newcomer makes copies, tells the group when they are warm, and owns them with the next generation."""
    more = {"stateful": (4,), "keeps_copies": True}
    async with KafkaTransport(kafka.url) as transport:
        old = await transport.join(
            group, metadata=facts(4, **more), assign=assign_shards, session_timeout_s=LONG_S
        )
        alone = decode_assignment((await of(old, 1)).assigned)
        owning = msgspec.structs.replace(
            MemberMetadata(counts=(4,), topology="t", **more),  # type: ignore[arg-type]
            owned=alone.active,
            generation=1,
        )
        old.note(encode_metadata(owning))
        new = await transport.join(
            group, metadata=facts(4, **more), assign=assign_shards, session_timeout_s=LONG_S
        )
        cold = decode_assignment((await of(new, 2)).assigned)
        kept = decode_assignment((await of(old, 2)).assigned)
        assert kept.active == alone.active
        assert (cold.active, len(cold.warming)) == ((), 2)
        held = dict.fromkeys(cold.warming, 10)
        await new.update(facts(4, warming=cold.warming, held=held, **more))
        warm = decode_assignment((await of(new, 2)).assigned)
        assert warm.active == cold.warming
        assert set((await of(old, 2)).shares) == set(
            (await transport.describe_group(group)).members
        )
