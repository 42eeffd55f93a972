"""Exactly-once under fire, as the usual run and the long one have it; see `tests.crash.fire`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.brokers import say
from tests.crash.fire import USUAL, heat_of, run_seed

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.brokers import Cluster

SEEDS = 3
LONG_SEEDS = 50
LONG_EVENTS = 2_000
MANY_EVENTS = 2_000_000


@pytest.mark.parametrize("seed", range(SEEDS))
def test_exactly_once(
    seed: int, kafka_cluster: Cluster, record_property: Callable[[str, object], None]
) -> None:
    """Every result is there once and in order, and every table is the fold of the input."""
    for name, value in run_seed(seed, kafka_cluster, USUAL).items():
        record_property(name, value)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(SEEDS, SEEDS + LONG_SEEDS))
def test_exactly_once_for_long(seed: int, kafka_cluster: Cluster) -> None:
    """The same with many more seeds."""
    say(**run_seed(seed, kafka_cluster, heat_of(LONG_EVENTS)))


@pytest.mark.slow
def test_exactly_once_over_many_events(kafka_cluster: Cluster) -> None:
    """The same with two million events in one run, about half an hour on two cores."""
    say(**run_seed(SEEDS + LONG_SEEDS, kafka_cluster, heat_of(MANY_EVENTS)))
