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
LONG_EVENTS = 40_000
"""50 seeds of them are two million."""


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
    """The same with many more seeds, and longer: two million events in all."""
    say(**run_seed(seed, kafka_cluster, heat_of(LONG_EVENTS)))
