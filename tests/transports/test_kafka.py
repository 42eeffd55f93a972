"""Kafka brokers pass the suite: each of the two protocols for transactions has one."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

import pytest
from kio.schema.errors import ErrorCode

from millstream.errors import MillstreamError
from millstream.records import OutgoingRecord, TopicPartition
from millstream.transports.base import Epoch, OffsetAndMetadata
from millstream.transports.kafka import _transactions
from millstream.transports.kafka.transport import KafkaTransport
from tests.brokers import Cluster, unique
from tests.integration.groups import evict
from tests.transports.conformance import *  # noqa: F403

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TOPICS = ["a", "b", "right", "short", "t", "table"]
GROUPS = ["g", "h"]
DEADLINE_S = 30.0


class KafkaLab:
    """A broker of the tests' own, without what the suite has left there before."""

    dense = False

    def __init__(self, broker: Cluster) -> None:
        self._broker = broker
        admin = broker.admin()
        for name in self._topics():
            admin.delete_topics([name])[name].result(DEADLINE_S)
        patience = time.monotonic() + DEADLINE_S
        while left := self._topics():  # a broker lists one for a moment after it is deleted
            assert time.monotonic() < patience, f"{left} were deleted, and are still listed"
        there = {each.group_id for each in admin.list_consumer_groups().result(DEADLINE_S).valid}
        for name in there & set(GROUPS):
            admin.delete_consumer_groups([name])[name].result(DEADLINE_S)

    def _topics(self) -> set[str]:
        return set(self._broker.admin().list_topics(timeout=DEADLINE_S).topics) & set(TOPICS)

    def open_transport(self) -> KafkaTransport:
        return KafkaTransport(self._broker.url)

    async def evict(self, group: str, member_id: str) -> None:
        await evict(self._broker.url, group, member_id)

    def advance(self, milliseconds: int) -> None:
        pytest.skip("a broker has its own clock")


@pytest.fixture(scope="session")
def classic_kafka() -> Iterator[Cluster]:
    """A broker of today whose transactions are those from before KIP-890."""
    with Cluster(features={"transaction.version": 0}) as cluster:
        yield cluster


@pytest.fixture(params=["own_kafka", "classic_kafka"], ids=["KIP-890", "classic"])
def lab(request: pytest.FixtureRequest) -> KafkaLab:
    """A broker as if it were new, for each of the two protocols of transactions."""
    return KafkaLab(request.getfixturevalue(request.param))


# the order of requests of a transaction before KIP-890

EPOCHS = 30
"""So many one after the other meet the markers of the one before."""


async def _commit_some(kafka: Cluster) -> None:
    """Epochs with records and positions, one right after the other, of which all are there in the end."""
    topic, group = kafka.topic("records"), unique("group")
    tp = TopicPartition(topic, 0)
    async with KafkaTransport(kafka.url) as transport:
        for number in range(1, EPOCHS + 1):
            await transport.commit(
                Epoch(
                    group=group,
                    member_id="",
                    generation=-1,
                    offsets={tp: OffsetAndMetadata(number, "")},
                    records={tp: [OutgoingRecord(number, b"k", b"v", [])]},
                )
            )
        assert (await transport.committed(group, [tp]))[tp].offset == EPOCHS
    assert len(kafka.read(topic)) == EPOCHS


async def _nothing(*_: object) -> None:
    pass


def _leave_out(name: str, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_transactions.Transactions, name, _nothing)


def _take_no_for_an_answer(patch: pytest.MonkeyPatch) -> None:
    again = _transactions._AGAIN - {ErrorCode.concurrent_transactions}
    patch.setattr(_transactions, "_AGAIN", again)


async def test_the_order_of_requests(classic_kafka: Cluster) -> None:
    """Partitions and positions are announced first, and what the markers of the epoch before hold up is sent again."""
    await _commit_some(classic_kafka)


@pytest.mark.parametrize(
    "mutate",
    [
        partial(_leave_out, "_add_partitions"),
        partial(_leave_out, "_add_offsets"),
        _take_no_for_an_answer,
    ],
    ids=["no AddPartitionsToTxn", "no AddOffsetsToTxn", "CONCURRENT_TRANSACTIONS is an error"],
)
async def test_another_order_is_found(
    classic_kafka: Cluster,
    mutate: Callable[[pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The broker refuses it."""
    mutate(monkeypatch)
    with pytest.raises(MillstreamError):
        await _commit_some(classic_kafka)
