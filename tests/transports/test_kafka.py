"""A Kafka broker passes the suite."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from millstream.transports.kafka.transport import KafkaTransport
from tests.transports.conformance import *  # noqa: F403

if TYPE_CHECKING:
    from tests.brokers import Cluster


class KafkaLab:
    """A broker that other tests have left something on, for the suite: its names are removed first."""

    dense = False

    def __init__(self, broker: Cluster) -> None:
        self._broker = broker
        self._clean()

    def _clean(self) -> None:
        admin = self._broker.admin()
        names = [name for name in admin.list_topics(timeout=10).topics if not name.startswith("__")]
        for done in admin.delete_topics(names).values() if names else ():
            done.result(30)
        groups = [found.group_id for found in admin.list_consumer_groups().result(30).valid]
        for done in admin.delete_consumer_groups(groups).values() if groups else ():
            done.result(30)

    def open_transport(self) -> KafkaTransport:
        return KafkaTransport(self._broker.url)

    async def evict(self, group: str, member_id: str) -> None:
        raise NotImplementedError

    def advance(self, milliseconds: int) -> None:
        pytest.skip("a broker has its own clock")


@pytest.fixture
def lab(kafka: Cluster) -> KafkaLab:
    """A broker as if it were new."""
    return KafkaLab(kafka)
