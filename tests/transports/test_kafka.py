"""Kafka brokers pass the suite: each of the two protocols for transactions has one."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from millstream.transports.kafka.transport import KafkaTransport
from tests.brokers import Cluster
from tests.integration.groups import evict
from tests.transports.conformance import *  # noqa: F403

if TYPE_CHECKING:
    from collections.abc import Iterator

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
