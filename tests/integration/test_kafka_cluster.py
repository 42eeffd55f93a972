"""Three brokers, of which one is gone for a while."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from millstream.errors import LogDamagedError
from millstream.records import OutgoingRecord, TopicPartition
from millstream.transports.base import OffsetAndMetadata, TopicSpec
from millstream.transports.batch import iterate_records
from millstream.transports.kafka import KafkaTransport
from tests.brokers import unique
from tests.integration.groups import member_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.brokers import Broker, Cluster

DEADLINE_S = 60.0


def rec(key: str) -> OutgoingRecord:
    """A record with a key."""
    return OutgoingRecord(1_000, key.encode(), b"v", [])


def leader_of(cluster: Cluster, tp: TopicPartition) -> Broker:
    """The broker that leads a partition."""
    found = cluster.admin().list_topics(tp.topic, timeout=10).topics[tp.topic]
    node = found.partitions[tp.partition].leader
    (broker,) = [each for each in cluster.brokers if each.node == node]
    return broker


async def read(
    transport: KafkaTransport, tp: TopicPartition, until: Callable[[list[str]], bool]
) -> list[str]:
    """The keys of a partition from its start."""
    reader, position = transport.reader(), 0
    found: list[str] = []
    async with asyncio.timeout(DEADLINE_S):
        while not until(found):
            for fetched in await reader.fetch({tp: position}, max_bytes=1 << 20, max_wait_s=1):
                found += [
                    record.key.decode()
                    for record in iterate_records(fetched.data, where=str(tp), position=position)
                ]
                position = fetched.next_offset
    await reader.close()
    return found


@pytest.mark.parametrize("which", ["leader", "other"])
async def test_epochs_go_on_without_a_broker(kafka_cluster: Cluster, which: str) -> None:
    """A broker is killed in the middle: each epoch is there once, in order, and reading follows the leader."""
    group, name = unique("group"), unique("topic")
    tps = [TopicPartition(name, number) for number in range(3)]
    async with KafkaTransport(kafka_cluster.url) as transport:
        await transport.create_topics([TopicSpec(name=name, partitions=3, replication=3)])
        member = await member_of(kafka_cluster.url, group)
        victim = leader_of(kafka_cluster, tps[0])
        if which == "other":
            victim = next(each for each in kafka_cluster.brokers if each is not victim)
        reading = asyncio.ensure_future(read(transport, tps[0], lambda found: len(found) == 60))
        for number in range(60):
            if number == 20:
                victim.kill()
            await transport.commit(
                member.epoch(dict.fromkeys(tps, number + 1), {tp: [rec(f"{number}")] for tp in tps})
            )
        expected = [f"{number}" for number in range(60)]
        assert await reading == expected
        for tp in tps[1:]:
            assert await read(transport, tp, lambda found: len(found) == 60) == expected
        assert await transport.committed(group, tps) == dict.fromkeys(tps, OffsetAndMetadata(60))


async def test_a_log_that_was_cut(kafka_cluster: Cluster) -> None:
    """A leader without what was read, after an unclean election, is noticed and not read on from."""
    name = unique("topic")
    tp = TopicPartition(name, 0)
    config = {"unclean.leader.election.enable": "true", "min.insync.replicas": "1"}
    async with KafkaTransport(kafka_cluster.url) as transport:
        await transport.create_topics(
            [TopicSpec(name=name, partitions=1, replication=2, config=config)]
        )
        await transport.append({tp: [rec("both")]})
        leader = leader_of(kafka_cluster, tp)
        found = kafka_cluster.admin().list_topics(name, timeout=10).topics[name]
        (other,) = [
            each
            for each in kafka_cluster.brokers
            if each.node in found.partitions[0].replicas and each is not leader
        ]
        await asyncio.to_thread(other.kill)
        await transport.append({tp: [rec(f"one of them {number}") for number in range(5)]})
        reader = transport.reader()
        position = 0
        async with asyncio.timeout(DEADLINE_S):
            while position < 6:
                for fetched in await reader.fetch({tp: position}, max_bytes=1 << 20, max_wait_s=1):
                    position = fetched.next_offset
        await asyncio.to_thread(leader.kill)
        await asyncio.to_thread(other.start)
        for number in range(7):
            await transport.append({tp: [rec(f"another history {number}")]})
        with pytest.raises(LogDamagedError, match=r"offset 1 to 5.*unclean"):
            await reader.fetch({tp: position}, max_bytes=1 << 20, max_wait_s=DEADLINE_S)
