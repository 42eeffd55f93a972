"""Fixtures that give a test a broker: the same one to all, started when the first test asks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.brokers.cluster import Cluster

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["kafka", "kafka_cluster"]


@pytest.fixture(scope="session")
def kafka() -> Iterator[Cluster]:
    """A broker; tests share it, and so each makes topics and groups of its own."""
    with Cluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def kafka_cluster() -> Iterator[Cluster]:
    """Three brokers, which a test may kill and pause; it leaves them running."""
    with Cluster(3) as cluster:
        yield cluster
