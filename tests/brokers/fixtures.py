"""Fixtures that give a test a broker: the same one to all, started when the first test asks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.brokers.cluster import Cluster
from tests.brokers.found import found
from tests.brokers.old import OldCluster
from tests.brokers.proxy import Proxy, proxies
from tests.brokers.security import secured

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.brokers.kafka import Kafka
    from tests.brokers.security import Secured

__all__ = ["kafka", "kafka_cluster", "kafka_proxy", "old_kafka", "own_kafka", "secured_kafka"]

_BROKERS = ("kafka", "own_kafka", "secured_kafka", "old_kafka", "kafka_cluster")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests that need a broker last, those of the same broker together: it lives from the first to the end."""
    items.sort(key=last_broker)


def last_broker(item: pytest.Item) -> int:
    """Return the place of a test by the brokers that it needs; 0 when it needs none."""
    names = getattr(item, "fixturenames", ())
    return max((place for place, name in enumerate(_BROKERS, 1) if name in names), default=0)


@pytest.fixture(scope="session")
def kafka(request: pytest.FixtureRequest) -> Iterator[Kafka]:
    """A broker: that of MILLSTREAM_TEST_BROKER, or one in Docker, or one of our own.

    Tests share it, and so each makes topics and groups of its own.
    """
    with found() as elsewhere:
        yield elsewhere or request.getfixturevalue("own_kafka")


@pytest.fixture(scope="session")
def own_kafka() -> Iterator[Cluster]:
    """A broker of our own, wherever ``kafka`` is."""
    with Cluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def old_kafka() -> Iterator[OldCluster]:
    """A broker of our own of the oldest line that we support, Kafka 2.8."""
    with OldCluster() as cluster:
        yield cluster


@pytest.fixture
def kafka_proxy(own_kafka: Cluster) -> Iterator[Proxy]:
    """A proxy before the broker ``own_kafka``, which a client finds at ``kafka_proxy.bootstrap``."""
    with proxies(own_kafka) as (proxy,):
        yield proxy


@pytest.fixture(scope="session")
def _three_brokers() -> Iterator[Cluster]:
    with Cluster(3) as cluster:
        yield cluster


@pytest.fixture
def kafka_cluster(_three_brokers: Cluster) -> Iterator[Cluster]:
    """Three brokers of our own, which a test may kill and pause; afterwards all of them run."""
    _three_brokers.heal()
    yield _three_brokers
    _three_brokers.heal()


@pytest.fixture(scope="session")
def secured_kafka() -> Iterator[Secured]:
    """A broker of our own with TLS, SASL and access rules."""
    with secured() as found:
        yield found
